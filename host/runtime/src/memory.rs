//! Gives memory back to the system.
//!
//! A version's weights are freed when its last request has been answered, but glibc keeps what lies between blocks that
//! are still in use, in an arena for each of many threads: a host that changed its version thirty times held twice
//! the memory it needed. Asked to, it gives the whole pages of that back.

/// Gives back what has been freed when this is dropped: kept as the last field of what takes much memory.
#[derive(Debug)]
pub(crate) struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        // On a thread of its own: nobody waits for it, and whoever drops this may be in a hurry.
        let started = std::thread::Builder::new().name("edgent-memory".to_owned()).spawn(trim);
        if let Err(error) = started {
            tracing::warn!(%error, "memory is not given back");
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: it may be called at any time, from any thread, and touches no block that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Nothing to do: other allocators give back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::trim;

    const BLOCK_BYTES: usize = 64 << 10;
    const BLOCKS: usize = 2_048;

    #[test]
    fn what_lies_between_blocks_in_use_is_given_back() {
        let mut blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; BLOCK_BYTES]).collect();
        let mut at = 0;
        blocks.retain(|_| {
            at += 1;
            at % 16 == 0
        });
        let before = resident_bytes();
        trim();
        let given_back = before.saturating_sub(resident_bytes());
        assert!(given_back > BLOCKS * BLOCK_BYTES / 2, "{given_back} bytes");
        assert!(blocks.iter().flatten().all(|byte| *byte == 1));
    }

    fn resident_bytes() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }
}
