//! Who is a member, as SWIM sees it.
