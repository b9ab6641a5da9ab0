//! What the kernel knows of a proxy: CPU time, anonymous memory, system calls.

use super::Failure;
use bursar::cli::throwaway;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

/// USER_HZ, the unit of /proc/PID/stat: 100 on every Linux architecture Bursar builds for (proc(5)).
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of a process, all threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    /// In user code.
    pub(crate) user: Duration,
    /// In the kernel.
    pub(crate) system: Duration,
}

impl Cpu {
    /// Reads /proc/PID/stat; resolution 10 ms.
    pub(crate) fn of(pid: u32) -> Result<Cpu, Failure> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the name in parentheses and may contain anything: count from its end.
        let (_, fields) = stat.rsplit_once(')').ok_or("unreadable /proc/PID/stat")?;
        let mut fields = fields.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
        let mut next = || -> Result<Duration, Failure> {
            let ticks = fields.next().ok_or("short /proc/PID/stat")??;
            Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
        };
        Ok(Cpu { user: next()?, system: next()? })
    }

    /// What was spent between an earlier look and this one.
    pub(crate) fn since(self, before: Cpu) -> Cpu {
        Cpu { user: self.user.saturating_sub(before.user), system: self.system.saturating_sub(before.system) }
    }
}

/// Anonymous memory of a process in bytes, swapped-out pages included: heap and stacks, not the
/// program's file pages, not the kernel's socket buffers.
pub(crate) fn anonymous_bytes(pid: u32) -> Result<u64, Failure> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kilobytes = |key: &str| -> Option<u64> {
        let line = rollup.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let anonymous = kilobytes("Anonymous:").ok_or("no Anonymous: in smaps_rollup")?;
    Ok((anonymous + kilobytes("Swap:").unwrap_or(0)) * 1024)
}

/// Counts the system calls of all threads of a process while `work` runs.
pub(crate) fn count_syscalls(pid: u32, work: impl FnOnce() -> Result<(), Failure>) -> Result<u64, Failure> {
    let strace = throwaway::find_in_path("strace").ok_or("strace is not installed")?;
    // Its own end of the pipe tells when it is attached, and later carries the summary.
    let mut tracer = Command::new(strace)
        .args(["-f", "-c", "-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = tracer.stderr.take().ok_or("strace without stderr")?;
    let mut lines = BufReader::new(stderr).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    if !first.contains("attached") {
        throwaway::stop(&mut tracer, "INT");
        return Err(format!("strace could not attach: {first}").into());
    }
    let done = work();
    throwaway::stop(&mut tracer, "INT");
    done?;
    let summary: Vec<String> = lines.collect::<Result<_, _>>()?;
    Ok(summary.iter().filter_map(|line| calls_in(line)).sum())
}

/// `% time  seconds  usecs/call  calls  [errors]  name`
fn calls_in(line: &str) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [share, _, _, calls, .., name] = fields.as_slice() else { return None };
    (share.parse::<f64>().is_ok() && *name != "total").then_some(calls.parse().ok()).flatten()
}
