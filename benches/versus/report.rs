//! Medians, ratios, the table and the JSON.

use crate::Options;
use crate::common::Failure;
use crate::common::lab::{Contender, Lab};
use crate::rows::{Measured, POOL, Row};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What has been measured so far.
pub(crate) struct Report {
    head: Map<String, Value>,
    rows: Vec<Line>,
}

/// One row, both sides.
struct Line {
    name: String,
    sides: [Measured; 2],
}

/// One metric of one row, as it is shown.
struct Compared {
    medians: [f64; 2],
    /// Bursar ÷ PgBouncer, pair by pair.
    ratios: Vec<f64>,
}

impl Report {
    /// An empty report that knows the circumstances.
    pub(crate) fn new(lab: &Lab, contenders: &[Contender; 2], options: &Options) -> Report {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let mut head = Map::new();
        head.insert("pgbouncer".into(), json!(contenders[0].version));
        head.insert("bursar".into(), json!(contenders[1].version));
        head.insert("postgresql".into(), json!(first_line(lab.command("postgres").arg("--version"))));
        head.insert("kernel".into(), json!(first_line(Command::new("uname").arg("-sr"))));
        head.insert("cores".into(), json!(cores));
        head.insert("pool_size".into(), json!(POOL));
        head.insert("pairs".into(), json!(options.pairs));
        head.insert("seconds".into(), json!(options.seconds));
        head.insert("bursar_workers".into(), json!(options.workers));
        Report { head, rows: Vec::new() }
    }

    /// Takes a finished row.
    pub(crate) fn add(&mut self, row: &Row, sides: &[Measured; 2]) {
        for (name, side) in ["pgbouncer", "bursar"].iter().zip(sides) {
            if let Err(reason) = side {
                eprintln!("versus:   {name}: {reason}");
            }
        }
        self.rows.push(Line { name: row.name.clone(), sides: sides.clone() });
    }

    /// Writes every single value.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Failure> {
        let rows: Vec<Value> = self.rows.iter().map(Line::json).collect();
        let mut whole = self.head.clone();
        whole.insert("rows".into(), rows.into());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, serde_json::to_string_pretty(&whole)? + "\n")?;
        Ok(())
    }

    /// The table: medians of both sides, and the median of the pairwise ratios.
    pub(crate) fn print(&self) {
        println!("\n{} against {}", self.text("bursar"), self.text("pgbouncer"));
        println!(
            "{}, {}, {} cores; pool of {POOL}; medians of {} pairs of {} s; B ÷ P below 1 is less of it",
            self.text("postgresql"),
            self.text("kernel"),
            self.head["cores"],
            self.head["pairs"],
            self.head["seconds"]
        );
        self.print_loads();
        self.print_singles();
        for line in &self.rows {
            for (name, side) in ["PgBouncer", "Bursar"].iter().zip(&line.sides) {
                if let Err(reason) = side {
                    println!("{}: {name}: {reason}", line.name);
                }
            }
        }
    }

    fn print_loads(&self) {
        let metrics = ["tps", "p50_us", "p99_us", "cpu_us", "user_us", "system_us"];
        let loads: Vec<&Line> = self.rows.iter().filter(|line| line.has("tps")).collect();
        if loads.is_empty() {
            return;
        }
        println!(
            "\n{:<21} {:^23} {:^21} {:^21} {:^42}",
            "", "transactions / s", "p50 µs", "p99 µs", "CPU µs / transaction (user + system)"
        );
        let pair = format!("{:>7} {:>7} {:>5}", "P", "B", "B÷P");
        println!(
            "{:<21} {:>8} {:>8} {:>5} {pair} {pair} {:>17} {:>17} {:>5}",
            "row", "P", "B", "B÷P", "P", "B", "B÷P"
        );
        for line in loads {
            let [tps, p50, p99, cpu, user, system] = metrics.map(|metric| line.compare(metric));
            let split = |side: usize| {
                let total = format!("{:.1}", cpu.medians[side]);
                format!("{total} ({:.1}+{:.1})", user.medians[side], system.medians[side])
            };
            println!(
                "{:<21} {:>8.0} {:>8.0} {:>5.2} {} {} {:>17} {:>17} {:>5.2}",
                line.name,
                tps.medians[0],
                tps.medians[1],
                median(&tps.ratios),
                p50.cells(),
                p99.cells(),
                split(0),
                split(1),
                median(&cpu.ratios)
            );
        }
    }

    fn print_singles(&self) {
        for (metric, title) in [("calls", "system calls per query"), ("bytes", "bytes per idle client")] {
            let lines: Vec<&Line> = self.rows.iter().filter(|line| line.has(metric)).collect();
            if lines.is_empty() {
                continue;
            }
            println!("\n{title:<24} {:>9} {:>9} {:>5}", "P", "B", "B÷P");
            for line in lines {
                let compared = line.compare(metric);
                let [left, right] = compared.medians;
                println!("{:<24} {left:>9.2} {right:>9.2} {:>5.2}", line.name, median(&compared.ratios));
            }
        }
    }

    fn text(&self, key: &str) -> &str {
        self.head[key].as_str().unwrap_or_default()
    }
}

impl Line {
    fn has(&self, metric: &str) -> bool {
        self.sides.iter().any(|side| values(side, metric).is_some())
    }

    /// NaN stands for "not measured".
    fn compare(&self, metric: &str) -> Compared {
        let lists = self.sides.each_ref().map(|side| values(side, metric).unwrap_or_default());
        let ratios = lists[0].iter().zip(lists[1]).map(|(left, right)| right / left).collect();
        Compared { medians: lists.map(median), ratios }
    }

    fn json(&self) -> Value {
        let mut row = Map::new();
        row.insert("name".into(), json!(self.name));
        let mut metrics = Map::new();
        let names = self.sides.iter().flatten().flatten().map(|(name, _)| *name);
        for name in names {
            if metrics.contains_key(name) {
                continue;
            }
            let compared = self.compare(name);
            let [left, right] = self.sides.each_ref().map(|side| values(side, name));
            metrics.insert(
                name.into(),
                json!({
                    "pgbouncer": left, "bursar": right, "ratio": compared.ratios,
                    "median": {
                        "pgbouncer": finite(compared.medians[0]),
                        "bursar": finite(compared.medians[1]),
                        "ratio": finite(median(&compared.ratios)),
                    }
                }),
            );
        }
        row.insert("metrics".into(), metrics.into());
        let mut missing = Map::new();
        for (name, side) in ["pgbouncer", "bursar"].iter().zip(&self.sides) {
            if let Err(reason) = side {
                missing.insert((*name).into(), json!(reason));
            }
        }
        row.insert("missing".into(), missing.into());
        row.into()
    }
}

impl Compared {
    fn cells(&self) -> String {
        let [left, right] = self.medians;
        format!("{left:>7.0} {right:>7.0} {:>5.2}", median(&self.ratios))
    }
}

fn values<'a>(side: &'a Measured, metric: &str) -> Option<&'a [f64]> {
    let (_, list) = side.as_ref().ok()?.iter().find(|(name, _)| *name == metric)?;
    Some(list)
}

/// NaN of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// JSON has no NaN.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn first_line(command: &mut Command) -> String {
    let text = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}
