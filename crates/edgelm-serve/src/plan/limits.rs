//! What bounds the memory of this process, as Linux tells: free memory, control groups of both versions, resource limits.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Threads that a server may have for work that blocks.
pub const BLOCKING_THREADS: usize = 62;

/// What these and two more take of an address space, a stack of 2 MiB each. Most of it is never touched.
pub const THREADS_BYTES: u64 = (BLOCKING_THREADS as u64 + 2) * (2 << 20);

/// One bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// What it is called.
    pub name: String,
    /// How much more the process may take; of an address space, beside [`THREADS_BYTES`].
    pub left_bytes: u64,
    /// Counts the address space: mapped files too.
    pub counts_mappings: bool,
}

/// All of them, and what the process has taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// In no order.
    pub limits: Vec<Limit>,
    /// Memory of its own that the process has touched.
    pub own_bytes: u64,
}

impl Limits {
    /// Those of this process now. Empty where the system does not tell.
    pub fn now() -> Self {
        Self::read(Path::new("/"))
    }

    /// The same below another root, for tests.
    pub(super) fn read(root: &Path) -> Self {
        let mut limits = Vec::new();
        let mut add = |name: String, left_bytes: Option<u64>, counts_mappings| {
            limits.extend(left_bytes.map(|left_bytes| Limit { name, left_bytes, counts_mappings }));
        };
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        add("free memory".to_owned(), kilobytes(&text("proc/meminfo"), "MemAvailable:"), false);
        let status = text("proc/self/status");
        let rlimits = text("proc/self/limits");
        let left = |limit: &str, used: &str| {
            let limit = rlimits.lines().find_map(|line| line.strip_prefix(limit))?;
            // `unlimited` is no number.
            let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
            Some(limit.saturating_sub(kilobytes(&status, used)?))
        };
        let address_space = left("Max address space", "VmSize:").map(|left| left.saturating_sub(THREADS_BYTES));
        add("RLIMIT_AS (ulimit -v)".to_owned(), address_space, true);
        add("RLIMIT_DATA (ulimit -d)".to_owned(), left("Max data size", "VmData:"), false);
        for line in text("proc/self/cgroup").lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
            let group = Path::new(group.trim_start_matches('/'));
            // Containers usually see their own group as the root of the tree, whatever path is written here.
            for path in group.ancestors() {
                let name = |file: &str| format!("control group /{} ({file})", path.display());
                if controllers.is_empty() {
                    let folder = root.join("sys/fs/cgroup").join(path);
                    for file in ["memory.max", "memory.high"] {
                        add(name(file), group_left(&folder, file, "memory.current", "inactive_file "), false);
                    }
                } else if controllers.split(',').any(|controller| controller == "memory") {
                    let folder = root.join("sys/fs/cgroup/memory").join(path);
                    let file = "memory.limit_in_bytes";
                    add(name(file), group_left(&folder, file, "memory.usage_in_bytes", "total_inactive_file "), false);
                }
            }
        }
        Self { limits, own_bytes: kilobytes(&status, "RssAnon:").unwrap_or(0) }
    }
}

/// What a group's limit leaves. Pages of files that are not in use are counted by the group and given up when memory is needed.
fn group_left(folder: &Path, limit: &str, usage: &str, inactive: &str) -> Option<u64> {
    // Version 1 writes a number near 2⁶³ for "none".
    const NONE: u64 = 1 << 60;
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = number(folder.join(limit)).filter(|&limit| limit < NONE)?;
    let usage = number(folder.join(usage)).unwrap_or(0);
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok()).unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(inactive)))
}

/// A line `name   number kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    fn left(root: &tempfile::TempDir) -> Vec<(String, u64, bool)> {
        let limits = Limits::read(root.path()).limits;
        limits.into_iter().map(|limit| (limit.name, limit.left_bytes, limit.counts_mappings)).collect()
    }

    #[test]
    fn free_memory_and_resource_limits() {
        let root = tree(&[
            ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n"),
            ("proc/self/status", "VmSize:\t 100 kB\nVmData:\t 50 kB\nRssAnon:\t 30 kB\n"),
            (
                "proc/self/limits",
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max data size             unlimited            unlimited            bytes\n\
                 Max address space         202400000            unlimited            bytes\n",
            ),
        ]);
        let expected =
            [("free memory".to_owned(), 4000 << 10, false), ("RLIMIT_AS (ulimit -v)".to_owned(), 68_079_872, true)];
        assert_eq!(left(&root), expected);
        assert_eq!(Limits::read(root.path()).own_bytes, 30 << 10);
    }

    #[test]
    fn groups_of_version_2_on_the_way_up() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "1000\n"),
            ("sys/fs/cgroup/a/memory.high", "900\n"),
            ("sys/fs/cgroup/a/memory.current", "600\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 100\ninactive_file 200\n"),
        ]);
        let expected = [
            ("control group /a (memory.max)".to_owned(), 600, false),
            ("control group /a (memory.high)".to_owned(), 500, false),
        ];
        assert_eq!(left(&root), expected);
    }

    #[test]
    fn groups_of_version_1() {
        let root = tree(&[
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1500\n"),
            ("sys/fs/cgroup/memory/memory.stat", "cache 900\ntotal_inactive_file 500\n"),
        ]);
        assert_eq!(left(&root), [("control group / (memory.limit_in_bytes)".to_owned(), 4000, false)]);
    }

    #[test]
    fn a_system_that_tells_nothing_bounds_nothing() {
        assert_eq!(left(&tree(&[])), []);
    }
}
