//! Memory of this process, as Linux tells it.

use std::{fs, path::Path};

/// In bytes; `None` where the system does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) resident: Option<u64>,
    pub(super) anonymous: Option<u64>,
    pub(super) peak: Option<u64>,
}

impl Memory {
    pub(super) fn read(root: &Path) -> Self {
        fs::read_to_string(root.join("proc/self/status")).map_or_else(|_| Self::default(), |text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let bytes = |name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        Self { resident: bytes("VmRSS"), anonymous: bytes("RssAnon"), peak: bytes("VmHWM") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let memory = Memory::parse("Name:\tx\nVmHWM:\t    2052 kB\nVmRSS:\t    2048 kB\nRssAnon:\t     148 kB\n");
        assert_eq!(memory, Memory { resident: Some(2048 << 10), anonymous: Some(148 << 10), peak: Some(2052 << 10) });
        assert_eq!(Memory::parse("VmRSS:\t x kB\n"), Memory::default());
    }
}
