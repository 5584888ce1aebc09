//! The cost of processes, as reported by /proc: CPU time in ticks of 10 ms, memory in kilobytes.
//!
//! Work of kernel threads, such as write-back and disk interrupts, is not included.

use std::fs;
use std::ops::{Add, Sub};
use std::time::Duration;

use anyhow::Context;

/// The processes whose CPU time is measured separately.
#[derive(Clone, Copy)]
pub struct Accounts {
    /// The server under load; `None` if the load goes to PostgreSQL directly.
    pub server: Option<u32>,
    pub postmaster: u32,
}

/// CPU time, user and system.
#[derive(Clone, Copy, Default)]
pub struct Spent {
    pub server: Duration,
    /// All of PostgreSQL's processes, including those that have ended.
    pub postgres: Duration,
    /// This process, which produces the load.
    pub load: Duration,
}

impl Accounts {
    /// The CPU time of all processes since their start.
    ///
    /// # Errors
    /// If one of them has ended.
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
        // The sum may lose a tick when a child's time is added to its parent's.
        Self {
            server: self.server.saturating_sub(earlier.server),
            postgres: self.postgres.saturating_sub(earlier.postgres),
            load: self.load.saturating_sub(earlier.load),
        }
    }
}

/// A line of /proc/PID/stat.
struct Times {
    parent: u32,
    own: Duration,
    /// Of children that have ended and were waited for, and of their children.
    ended_children: Duration,
}

impl Times {
    fn of(process: u32) -> anyhow::Result<Self> {
        let line = fs::read_to_string(format!("/proc/{process}/stat"))
            .with_context(|| format!("process {process} has ended"))?;
        Self::parse(&line).with_context(|| format!("/proc/{process}/stat is not as expected: {line}"))
    }

    /// Fields in proc_pid_stat(5): 4 is the parent, 14 and 15 are the process's own ticks, 16 and 17 those of its ended
    /// children.
    fn parse(line: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may contain anything.
        let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let time = |first: usize| Some(TICK * u32::try_from(field(first)? + field(first + 1)?).ok()?);
        Some(Self { parent: u32::try_from(field(4)?).ok()?, own: time(14)?, ended_children: time(16)? })
    }
}

/// Linux reports 100 ticks a second to user space, whatever it uses internally.
const TICK: Duration = Duration::from_millis(10);

/// A process with its running and ended children.
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
/// If the process has ended.
pub fn parent(process: u32) -> anyhow::Result<u32> {
    Ok(Times::of(process)?.parent)
}

/// The peak resident memory of a process.
///
/// # Errors
/// If the process has ended.
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
    fn a_program_name_with_spaces_and_parentheses_is_parsed() {
        let line = "7 (a (b) 9) S 4 7 7 0 -1 4194560 90 0 0 0 11 12 13 14 20 0 1 0 5 6 7";
        let times = Times::parse(line).unwrap();
        assert_eq!(times.parent, 4);
        assert_eq!(times.own, Duration::from_millis(230));
        assert_eq!(times.ended_children, Duration::from_millis(270));
    }

    #[test]
    fn an_ended_childs_time_counts_for_its_parent() {
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
