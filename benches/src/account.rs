//! What processes cost, by their own accounts in /proc: CPU time to the tick (10 ms), memory to the kilobyte.
//!
//! What the kernel does in threads of its own (writing back, the disk's interrupts) is on nobody's account.

use std::fs;
use std::ops::{Add, Sub};
use std::time::Duration;

use anyhow::Context;

/// Whose time is told apart.
#[derive(Clone, Copy)]
pub struct Accounts {
    /// The server under load; `None` where the load goes to PostgreSQL itself.
    pub server: Option<u32>,
    pub postmaster: u32,
}

/// CPU time, user and system together.
#[derive(Clone, Copy, Default)]
pub struct Spent {
    pub server: Duration,
    /// All of PostgreSQL's processes, those that have ended meanwhile included.
    pub postgres: Duration,
    /// This process.
    pub load: Duration,
}

impl Accounts {
    /// What all have spent since they began.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn read(self) -> anyhow::Result<Spent> {
        Ok(Spent {
            server: self.server.map(Times::of).transpose()?.map_or(Duration::ZERO, |times| times.own),
            postgres: family(self.postmaster)?,
            load: Times::of(std::process::id())?.own,
        })
    }
}

impl Sub for Spent {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        // An account may lose a tick when a child's is added to its parent's.
        Self {
            server: self.server.saturating_sub(earlier.server),
            postgres: self.postgres.saturating_sub(earlier.postgres),
            load: self.load.saturating_sub(earlier.load),
        }
    }
}

/// One line of /proc/PID/stat.
struct Times {
    parent: u32,
    own: Duration,
    /// Of the children that have ended and were waited for, and of theirs.
    ended_children: Duration,
}

impl Times {
    fn of(process: u32) -> anyhow::Result<Self> {
        let line = fs::read_to_string(format!("/proc/{process}/stat"))
            .with_context(|| format!("process {process} has ended"))?;
        Self::parse(&line).with_context(|| format!("/proc/{process}/stat is not as expected: {line}"))
    }

    /// proc_pid_stat(5): 4 is the parent, 14 and 15 the process's own ticks, 16 and 17 its ended children's.
    fn parse(line: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold anything.
        let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let time = |first: usize| Some(TICK * u32::try_from(field(first)? + field(first + 1)?).ok()?);
        Some(Self { parent: u32::try_from(field(4)?).ok()?, own: time(14)?, ended_children: time(16)? })
    }
}

/// Linux tells user space of a hundred ticks a second, whatever it counts in itself.
const TICK: Duration = Duration::from_millis(10);

/// A process with its children, living and ended.
fn family(parent: u32) -> anyhow::Result<Duration> {
    let itself = Times::of(parent)?;
    let children = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|process| Times::of(process).ok())
        .filter(|times| times.parent == parent)
        .map(|times| times.own)
        .fold(Duration::ZERO, Add::add);
    Ok(itself.own + itself.ended_children + children)
}

/// The parent of a process.
///
/// # Errors
/// When it has ended.
pub fn parent(process: u32) -> anyhow::Result<u32> {
    Ok(Times::of(process)?.parent)
}

/// The most memory that a process has ever had in RAM.
///
/// # Errors
/// When it has ended.
pub fn peak_memory_bytes(process: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("there is no VmHWM")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_program_is_called() {
        let line = "7 (a (b) 9) S 4 7 7 0 -1 4194560 90 0 0 0 11 12 13 14 20 0 1 0 5 6 7";
        let times = Times::parse(line).unwrap();
        assert_eq!(times.parent, 4);
        assert_eq!(times.own, Duration::from_millis(230));
        assert_eq!(times.ended_children, Duration::from_millis(270));
    }

    #[test]
    fn what_a_child_that_has_ended_spent_is_its_parents() {
        let before = family(std::process::id()).unwrap();
        let spin = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done";
        assert!(std::process::Command::new("sh").args(["-c", spin]).status().unwrap().success());
        assert!(family(std::process::id()).unwrap() > before);
    }

    #[test]
    fn a_process_has_memory() {
        assert!(peak_memory_bytes(std::process::id()).unwrap() > 100_000);
    }
}
