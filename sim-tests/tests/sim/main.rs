//! Tests of the simulator itself.

mod calls;
mod groups;
mod host;
mod instances;
mod lagging;
mod loops;
mod observers;
mod old_disks;
mod scenarios;
mod slow;
mod voters;
