use std::fmt;
use std::fs;

use rustix::process::Pid;

/// The resident memory of a process, as reported by Linux.
pub struct Memory {
    process: Pid,
    before: Mebibytes,
}

#[derive(Clone, Copy)]
pub struct Mebibytes(f64);

impl Memory {
    /// Starts a new measurement of the peak.
    pub fn of(process: Pid) -> Self {
        // "5" resets the peak to the current size; see proc_pid_clear_refs(5).
        fs::write(path(process, "clear_refs"), "5").unwrap();
        Self { process, before: read(process, "VmRSS:") }
    }

    pub fn before(&self) -> Mebibytes {
        self.before
    }

    /// Growth at the peak.
    pub fn growth(&self) -> Mebibytes {
        Mebibytes(read(self.process, "VmHWM:").0 - self.before.0)
    }

    /// Growth now.
    pub fn kept(&self) -> Mebibytes {
        Mebibytes(read(self.process, "VmRSS:").0 - self.before.0)
    }
}

fn path(process: Pid, name: &str) -> String {
    format!("/proc/{}/{name}", process.as_raw_nonzero())
}

fn read(process: Pid, name: &str) -> Mebibytes {
    // A killed process has no status file.
    let status = fs::read_to_string(path(process, "status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Mebibytes(kibibytes.unwrap_or(f64::NAN) / 1024.0)
}

impl fmt::Display for Mebibytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.0} MiB", self.0)
    }
}
