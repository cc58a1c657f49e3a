//! The keys of `[instances]` in weft.toml.

use serde::{Deserialize, Serialize};

/// Limits of a home node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InstancesConfig {
    /// Health checks in flight at a time; more wait.
    pub checks_max: u32,
    /// Registrations in progress at a time; more wait. Each begins with a check.
    pub registrations_max: u32,
}

impl Default for InstancesConfig {
    fn default() -> Self {
        InstancesConfig { checks_max: 256, registrations_max: 64 }
    }
}

impl InstancesConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence that names the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        for (key, value) in [("checks_max", self.checks_max), ("registrations_max", self.registrations_max)] {
            if !(1..=65_536).contains(&value) {
                return Err(format!("instances.{key} is {value}; use 1 to 65,536"));
            }
        }
        Ok(())
    }
}
