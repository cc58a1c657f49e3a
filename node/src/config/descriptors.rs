//! How a process's descriptors are shared: what the node itself needs comes first, clients get the rest.

use super::{Config, ConfigError};
use crate::gateways::door::REFUSALS_MAX;

/// With fewer descriptors no node starts.
const LIMIT_MIN: u64 = 256;

/// Who may have how many of a process's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// All of them: `ulimit -n`.
    pub limit: u64,
    /// Connections of clients.
    pub api: u32,
    /// Connections of operators.
    pub admin: u32,
    /// Segment files kept open.
    pub files: u32,
}

impl Shares {
    /// Shares out `limit` descriptors: no part is larger than it is configured to be.
    ///
    /// # Errors
    /// There are too few to run a node at all.
    pub fn of(config: &Config, limit: u64) -> Result<Shares, ConfigError> {
        if limit < LIMIT_MIN {
            let reason =
                format!("the limit of open files is {limit}, but must be at least {LIMIT_MIN}: raise `ulimit -n`");
            return Err(ConfigError { place: String::new(), key: String::new(), reason });
        }
        let at_most = |wanted: u32, part: u64| u32::try_from(part).map_or(wanted, |part| wanted.min(part));
        let reserved = at_most(config.node.descriptors_reserved, limit / 4);
        let files = at_most(config.storage.files_open_max, limit / 8);
        let admin = at_most(config.admin.connections_max, limit / 16);
        let taken = u64::from(reserved) + u64::from(files) + u64::from(admin) + u64::from(REFUSALS_MAX);
        let api = at_most(config.api.connections_max, limit - taken);
        Ok(Shares { limit, api, admin, files })
    }

    /// What clients get less than they were to have; `None` if nothing.
    pub fn cut(&self, config: &Config) -> Option<String> {
        let wanted = config.api.connections_max;
        (self.api < wanted).then(|| {
            let (limit, api) = (self.limit, self.api);
            format!("api.connections_max is {wanted}, but `ulimit -n` is {limit}: clients get {api} connections")
        })
    }

    /// Bounds the doors and the open files of `config`.
    pub fn bound(&self, config: &mut Config) {
        config.api.connections_max = self.api;
        config.admin.connections_max = self.admin;
        config.storage.files_open_max = self.files;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_high_limit_changes_nothing() {
        let mut config = Config::default();
        let shares = Shares::of(&config, 1 << 20).expect("plenty");
        assert_eq!((shares.api, shares.admin, shares.files), (10_000, 64, 256));
        assert_eq!(shares.cut(&config), None);
        shares.bound(&mut config);
        assert_eq!(config.api.connections_max, 10_000);
    }

    #[test]
    fn a_low_limit_leaves_the_node_its_own() {
        let mut config = Config::default();
        let shares = Shares::of(&config, 1024).expect("enough");
        assert_eq!((shares.api, shares.admin, shares.files), (512, 64, 128));
        assert!(shares.cut(&config).expect("less than wanted").contains("clients get 512 connections"));
        shares.bound(&mut config);
        assert_eq!((config.api.connections_max, config.storage.files_open_max), (512, 128));
    }

    #[test]
    fn every_limit_is_shared_out_whole_or_refused() {
        let mut config = Config::default();
        config.node.descriptors_reserved = u32::MAX;
        config.storage.files_open_max = u32::MAX;
        config.admin.connections_max = u32::MAX;
        for limit in LIMIT_MIN..5_000 {
            let shares = Shares::of(&config, limit).expect("enough");
            let others = shares.api + shares.admin + shares.files + REFUSALS_MAX;
            assert!(shares.api > 0 && u64::from(others) <= limit - limit / 4, "{limit}: {shares:?}");
        }
        let error = Shares::of(&config, 255).expect_err("too few");
        assert!(error.reason.contains("ulimit -n"), "{error}");
    }
}
