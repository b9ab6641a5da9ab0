//! One pgbench run through a proxy: what came out at the front, and what the proxy spent on it.

use crate::common::Failure;
use crate::common::lab::{Lab, Proxy};
use crate::common::process::Cpu;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// pgbench's `-s`: ten branches, a million accounts, 150 MB.
const SCALE: &str = "10";

/// 2,000 rows of 119 bytes on the wire: 238 KB.
pub(crate) const ROWS_238_KB: &str = "select i, repeat('x', 100) from generate_series(1, 2000) i";
/// One value of a megabyte.
pub(crate) const VALUE_1_MB: &str = "select repeat('x', 1048576)";

/// Lookups in one pipeline.
pub(crate) const PIPELINED: usize = 10;
const PIPELINED_LOOKUP: &str = "\\set aid random(1, 100000 * 10)
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
";

/// What pgbench's clients send.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Script {
    /// pgbench's select-only.
    Select,
    /// pgbench's tpcb-like: seven statements in a transaction.
    Tpcb,
    /// [`PIPELINED`] of select-only's lookups, sent as one pipeline up to one Sync.
    Pipelined,
    /// One statement of our own.
    Own(&'static str),
}

/// A pgbench run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// `simple`, `extended` or `prepared`.
    pub(crate) protocol: &'static str,
    /// What is sent.
    pub(crate) script: Script,
    /// Concurrent clients.
    pub(crate) clients: u32,
    /// Log in anew for every transaction.
    pub(crate) reconnect: bool,
    /// Over TLS.
    pub(crate) tls: bool,
}

/// What a run came to. Times in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Transactions a second.
    pub(crate) tps: f64,
    /// Median latency.
    pub(crate) p50: f64,
    /// 99th percentile of latency.
    pub(crate) p99: f64,
    /// User CPU of the proxy per transaction.
    pub(crate) user: f64,
    /// System CPU of the proxy per transaction.
    pub(crate) system: f64,
}

impl Load {
    /// Runs it; bounded in time by `timeout(1)`.
    pub(crate) fn run(&self, lab: &Lab, proxy: &Proxy, length: Duration) -> Result<Outcome, Failure> {
        let log = lab.dir().join("latency");
        remove_logs(lab.dir())?;
        let before = Cpu::of(proxy.pid())?;
        let output = lab
            .command("timeout")
            .args(["--kill-after=5", &(length.as_secs() * 2 + 60).to_string()])
            .args(self.pgbench(lab, &log)?)
            .arg(format!("--time={}", length.as_secs()))
            .args(lab.address(proxy.port()))
            .env("PGSSLMODE", if self.tls { "require" } else { "disable" })
            // None there; whose home it would look in otherwise is not this account's.
            .env("PGSSLCERT", lab.dir().join("none"))
            .output()?;
        let cpu = Cpu::of(proxy.pid())?.since(before);
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let first = complaint.lines().find(|line| line.contains("error")).unwrap_or(&complaint);
            return Err(format!("pgbench failed: {first}").into());
        }
        let done: f64 = number_after(&text, "transactions actually processed: ")?;
        if done < 1.0 {
            return Err("pgbench finished no transaction".into());
        }
        let latencies = read_logs(lab.dir())?;
        Ok(Outcome {
            tps: number_after(&text, "tps = ")?,
            p50: percentile(&latencies, 50)?,
            p99: percentile(&latencies, 99)?,
            user: cpu.user.as_secs_f64() * 1e6 / done,
            system: cpu.system.as_secs_f64() * 1e6 / done,
        })
    }

    fn pgbench(&self, lab: &Lab, log: &Path) -> Result<Vec<String>, Failure> {
        let mut arguments = vec![
            "pgbench".into(),
            "--no-vacuum".into(),
            format!("--protocol={}", self.protocol),
            format!("--client={}", self.clients),
            format!("--jobs={}", self.clients.min(2)),
            "--random-seed=42".into(),
            "--log".into(),
            format!("--log-prefix={}", log.display()),
        ];
        match self.script {
            Script::Select => arguments.push("--builtin=select-only".into()),
            Script::Tpcb => arguments.push("--builtin=tpcb-like".into()),
            Script::Pipelined => {
                let lookups = PIPELINED_LOOKUP.repeat(PIPELINED);
                arguments.push(own(lab, &format!("\\startpipeline\n{lookups}\\endpipeline\n"))?);
            }
            Script::Own(sql) => arguments.push(own(lab, &format!("{sql};\n"))?),
        }
        // Tens of thousands of lines a second would cost pgbench what it should spend on the load.
        if matches!(self.script, Script::Select | Script::Pipelined) && !self.reconnect {
            arguments.push("--sampling-rate=0.1".into());
        }
        if self.reconnect {
            arguments.push("--connect".into());
        }
        Ok(arguments)
    }
}

/// Makes pgbench's tables.
pub(crate) fn fill(lab: &Lab) -> Result<(), Failure> {
    let mut pgbench = lab.command("pgbench");
    pgbench.args(["--initialize", "--quiet", "--scale", SCALE]).args(lab.address(lab.port()));
    let output = pgbench.output()?;
    if !output.status.success() {
        return Err(format!("pgbench -i failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

/// The argument that names a script of our own.
fn own(lab: &Lab, text: &str) -> Result<String, Failure> {
    let file = lab.dir().join("script.sql");
    fs::write(&file, text)?;
    Ok(format!("--file={}", file.display()))
}

fn number_after(text: &str, label: &str) -> Result<f64, Failure> {
    let (_, rest) = text.split_once(label).ok_or_else(|| format!("pgbench did not print {label:?}"))?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    Ok(rest[..end].parse()?)
}

/// pgbench writes `PREFIX.PID` and, for further threads, `PREFIX.PID.THREAD`.
fn logs(dir: &Path) -> Result<Vec<std::path::PathBuf>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("latency.") {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn remove_logs(dir: &Path) -> Result<(), Failure> {
    for log in logs(dir)? {
        fs::remove_file(log)?;
    }
    Ok(())
}

/// Latencies in microseconds, the third column, in ascending order.
fn read_logs(dir: &Path) -> Result<Vec<u64>, Failure> {
    let mut latencies = Vec::new();
    for log in logs(dir)? {
        let text = fs::read_to_string(log)?;
        latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// Nearest rank.
#[allow(clippy::cast_precision_loss, reason = "microseconds of one query fit an f64 exactly")]
fn percentile(sorted: &[u64], percent: usize) -> Result<f64, Failure> {
    let rank = (sorted.len() * percent).div_ceil(100);
    let value = sorted.get(rank.saturating_sub(1)).ok_or("pgbench logged no transaction")?;
    Ok(*value as f64)
}
