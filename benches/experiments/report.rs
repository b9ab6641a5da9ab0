//! A table an experiment: what was measured, what it should be, whether it is. And the same as JSON.

use crate::Bench;
use crate::common::Failure;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What one side came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Measured {
    /// A value in the line's unit.
    Is(f64),
    /// Not measured, or there is no such thing on this side.
    No,
}

/// What a line's value of Bursar should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// Shown for comparison.
    None,
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// This, and nothing else.
    Exactly(f64),
}

/// One line of a table.
#[derive(Debug)]
struct Line {
    /// What several lines have in common, a heading over them; empty for none.
    group: String,
    metric: String,
    unit: &'static str,
    bursar: Measured,
    pgbouncer: Measured,
    /// With no proxy at all, where that was measured.
    direct: Measured,
    target: Target,
}

/// The lines of one experiment.
#[derive(Debug, Default)]
pub(crate) struct Table {
    group: String,
    lines: Vec<Line>,
}

impl Table {
    /// A heading over the lines that follow.
    pub(crate) fn group(&mut self, heading: String) {
        self.group = heading;
    }

    /// One line more: the metric and its unit, both sides, what Bursar should come to.
    pub(crate) fn line(
        &mut self,
        metric: &str,
        unit: &'static str,
        bursar: Measured,
        pgbouncer: Measured,
        target: Target,
    ) {
        let (group, metric) = (self.group.clone(), metric.to_owned());
        self.lines.push(Line { group, metric, unit, bursar, pgbouncer, direct: Measured::No, target });
    }

    /// What the last line is with no proxy at all: what the machine does by itself.
    pub(crate) fn direct(&mut self, direct: Measured) {
        if let Some(line) = self.lines.last_mut() {
            line.direct = direct;
        }
    }

    fn print(&self) {
        let any_direct = self.lines.iter().any(|line| line.direct != Measured::No);
        let third = |cell: &str| if any_direct { format!(" {cell:>10}") } else { String::new() };
        println!(
            "{:<52} {:>10} {:>10}{} {:>12}  holds",
            "",
            "Bursar",
            "PgBouncer",
            third("direct"),
            "target"
        );
        let mut group = "";
        for line in &self.lines {
            if line.group != group {
                group = &line.group;
                println!("{group}");
            }
            let indent = if group.is_empty() { "" } else { "  " };
            let metric = match line.unit {
                "" => format!("{indent}{}", line.metric),
                unit => format!("{indent}{}, {unit}", line.metric),
            };
            let [bursar, pgbouncer, direct] = [line.bursar, line.pgbouncer, line.direct].map(Measured::cell);
            let (direct, target) = (third(&direct), line.target.cell());
            let holds = line.holds().map_or("", |holds| if holds { "yes" } else { "no" });
            println!("{metric:<52} {bursar:>10} {pgbouncer:>10}{direct} {target:>12}  {holds}");
        }
    }
}

impl Line {
    fn full_name(&self, experiment: &str) -> String {
        let parts = [experiment, &self.group, &self.metric];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
    }

    /// `None` where there is nothing to hold.
    fn holds(&self) -> Option<bool> {
        let value = match (self.target, self.bursar) {
            (Target::None, _) => return None,
            (_, Measured::No) => return Some(false),
            (_, Measured::Is(value)) => value,
        };
        Some(match self.target {
            Target::None => return None,
            Target::AtMost(limit) => value <= limit,
            Target::AtLeast(limit) => value >= limit,
            Target::Exactly(limit) => (value - limit).abs() < 1e-9,
        })
    }

    fn json(&self) -> Value {
        let value = |measured| match measured {
            Measured::Is(value) => json!(value),
            Measured::No => Value::Null,
        };
        json!({
            "group": self.group, "metric": self.metric, "unit": self.unit, "bursar": value(self.bursar),
            "pgbouncer": value(self.pgbouncer), "direct": value(self.direct), "target": self.target.cell(), "holds": self.holds(),
        })
    }
}

impl Measured {
    fn cell(self) -> String {
        match self {
            Measured::Is(value) => number(value),
            Measured::No => "-".into(),
        }
    }
}

impl Target {
    fn cell(self) -> String {
        match self {
            Target::None => String::new(),
            Target::AtMost(limit) => format!("<= {}", number(limit)),
            Target::AtLeast(limit) => format!(">= {}", number(limit)),
            Target::Exactly(limit) => format!("= {}", number(limit)),
        }
    }
}

/// Three significant digits, and no fraction of what is whole.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        whole if whole.fract() == 0.0 => 0,
        small if small < 10.0 => 3,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// Every table of the run, and its circumstances.
pub(crate) struct Report {
    head: Value,
    tables: Vec<(&'static str, Result<Table, String>)>,
}

impl Report {
    /// An empty one that knows the circumstances.
    pub(crate) fn new(bench: &Bench) -> Report {
        let head = json!({
            "bursar": bench.bursar.version,
            "pgbouncer": bench.pgbouncer.version,
            "postgresql": first_line(bench.lab.command("postgres").arg("--version")),
            "kernel": first_line(Command::new("uname").arg("-sr")),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
        });
        Report { head, tables: Vec::new() }
    }

    /// Prints a table, or why there is none, and keeps it.
    pub(crate) fn add(&mut self, name: &'static str, about: &str, measured: Result<Table, Failure>) {
        println!("\n{}: {about}", name.to_uppercase());
        let measured = measured.map_err(|failure| failure.to_string());
        match &measured {
            Ok(table) => table.print(),
            Err(failure) => println!("not measured: {failure}"),
        }
        self.tables.push((name, measured));
    }

    /// Writes the JSON.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Failure> {
        let mut whole = self.head.clone();
        for (name, measured) in &self.tables {
            whole["experiments"][*name] = match measured {
                Ok(table) => table.lines.iter().map(Line::json).collect(),
                Err(failure) => json!({ "failure": failure }),
            };
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, serde_json::to_string_pretty(&whole)? + "\n")?;
        Ok(())
    }

    /// How many targets hold, and which do not.
    pub(crate) fn summary(&self) -> String {
        let lines = self.tables.iter().filter_map(|(name, measured)| Some((name, measured.as_ref().ok()?)));
        let held: Vec<(String, bool)> = lines
            .flat_map(|(name, table)| table.lines.iter().map(move |line| (name, line)))
            .filter_map(|(name, line)| Some((line.full_name(name), line.holds()?)))
            .collect();
        let missed = held.iter().filter(|(_, holds)| !holds).map(|(name, _)| format!("\n  missed: {name}"));
        let holding = held.iter().filter(|(_, holds)| *holds).count();
        format!("{holding} of {} targets hold{}", held.len(), missed.collect::<String>())
    }

    /// Whether every experiment could be made.
    pub(crate) fn complete(&self) -> bool {
        self.tables.iter().all(|(_, measured)| measured.is_ok())
    }
}

fn first_line(command: &mut Command) -> String {
    let text = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}
