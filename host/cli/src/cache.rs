//! Where a host, or the tool, keeps what it need not find out again.

use std::path::{Path, PathBuf};

/// Beside the versions, if there is a store, or in the user's cache.
pub(crate) fn folder(store: Option<&Path>) -> Option<PathBuf> {
    let cache = || {
        let given = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let home = std::env::var_os("HOME").filter(|dir| !dir.is_empty()).map(|home| Path::new(&home).join(".cache"));
        Some(given.or(home)?.join("edgent"))
    };
    store.map(Path::to_owned).or_else(cache)
}

/// Of code that ships with this program: compiled, it is kept there.
pub(crate) fn code(store: Option<&Path>) -> Option<PathBuf> {
    Some(folder(store)?.join("edgent-code"))
}
