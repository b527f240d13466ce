//! What a process and all below it hold in memory.

use std::fs;
use std::path::{Path, PathBuf};

/// Most processes that are looked at; a program may have as many as its limit allows.
const MOST: usize = 65_536;

/// Whether the system says who is whose child.
pub(crate) fn is_known() -> bool {
    Path::new("/proc/thread-self/children").exists()
}

/// Resident bytes of a process and its descendants. Pages that several share count for each. What ends meanwhile counts as
/// nothing.
pub(crate) fn resident(process: u32) -> u64 {
    let (mut sum, mut seen, mut open) = (0_u64, 0, vec![process]);
    while let Some(process) = open.pop() {
        seen += 1;
        if seen > MOST {
            break;
        }
        let folder = PathBuf::from(format!("/proc/{process}"));
        sum = sum.saturating_add(own(&folder).unwrap_or(0));
        // Children are those of the thread that made them.
        let threads = fs::read_dir(folder.join("task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            open.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    sum
}

/// `VmRSS` of proc(5), which is in KiB.
fn own(folder: &Path) -> Option<u64> {
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn children_of_all_threads_count() {
        let me = std::process::id();
        let alone = resident(me);
        assert!(is_known() && alone > 100_000, "{alone}");
        // A child with a child, made by another thread than this.
        let child =
            std::thread::spawn(|| Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap());
        let mut child = child.join().unwrap();
        let mut with = resident(child.id());
        for _ in 0..200 {
            if with > own(&PathBuf::from(format!("/proc/{}", child.id()))).unwrap_or(u64::MAX) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            with = resident(child.id());
        }
        let shell = own(&PathBuf::from(format!("/proc/{}", child.id()))).unwrap();
        assert!(with > shell && shell > 0, "{with} {shell}");
        let sleeper = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        assert!(Command::new("kill").args(sleeper.split_whitespace()).status().unwrap().success());
        child.wait().unwrap();
        assert_eq!(resident(child.id()), 0);
    }
}
