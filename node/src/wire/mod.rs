//! What all doors share: how errors leave and come in, and the checks of what clients send.

pub mod checks;
mod status;

pub use status::{DOMAIN, errors_page, from_status, status};
pub use weft_cluster::errors::{code_of, error, not_owner, reason, retry_name, row_of};
