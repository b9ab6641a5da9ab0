//! The rows of the comparison: what each one does, and how it is repeated in alternating pairs.

use crate::common::Failure;
use crate::common::lab::{Contender, Lab, Proxy, Setup};
use crate::common::wire;
use crate::idle;
use crate::load::{Load, PIPELINED, ROWS_238_KB, Script, VALUE_1_MB};
use std::time::Duration;

/// Backends of each proxy.
pub(crate) const POOL: usize = 20;
/// The same statement as pgbench's select-only, with a constant.
const SELECT_ONE: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 1";

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Its name in `ROWS=` and in the JSON.
    pub(crate) name: String,
    /// One line for people.
    pub(crate) about: String,
    /// How it is measured.
    pub(crate) task: Task,
}

/// How a row is measured.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    /// Memory of idle clients, on a fresh proxy each time.
    IdleMemory,
    /// System calls of so many of these round trips.
    Syscalls(Vec<u8>, u32),
    /// pgbench.
    Load(Load),
}

/// What was measured of one side: one list of values a metric, one value a pair; or why there is none.
pub(crate) type Measured = Result<Vec<(&'static str, Vec<f64>)>, String>;

impl Row {
    /// Every row, in the order they are run.
    pub(crate) fn all() -> Vec<Row> {
        let mut rows = vec![Row {
            name: "idle-memory".into(),
            about: "user memory per idle client".into(),
            task: Task::IdleMemory,
        }];
        for (name, about, query, count) in [
            ("syscalls-simple", "system calls per small simple query", wire::simple(SELECT_ONE), 1000),
            ("syscalls-extended", "system calls per small extended query", wire::extended(SELECT_ONE), 1000),
            ("syscalls-238kb", "system calls per result of 238 KB", wire::simple(ROWS_238_KB), 100),
            ("syscalls-1mb", "system calls per value of 1 MB", wire::simple(VALUE_1_MB), 50),
        ] {
            let task = Task::Syscalls(query, count);
            rows.push(Row { name: name.into(), about: about.into(), task });
        }
        for protocol in ["simple", "extended"] {
            for (short, script) in [("select", Script::Select), ("tpcb", Script::Tpcb)] {
                for clients in [1, 16, 64, 500] {
                    rows.push(Row::load(protocol, short, script, clients));
                }
            }
        }
        // Of transactions no more clients than backends: pgbench prepares while its other clients wait, and
        // those that are in a transaction would hold what it waits for.
        for (short, script, clients) in
            [("select", Script::Select, 16), ("select", Script::Select, 64), ("tpcb", Script::Tpcb, 16)]
        {
            rows.push(Row::load("prepared", short, script, clients));
        }
        for protocol in ["extended", "prepared"] {
            rows.push(Row {
                about: format!(
                    "{protocol} protocol, {PIPELINED} lookups in a pipeline, concurrent clients: 16"
                ),
                ..Row::load(protocol, "pipelined", Script::Pipelined, 16)
            });
        }
        rows.push(Row::load("simple", "238kb", Script::Own(ROWS_238_KB), 4));
        rows.push(Row::load("simple", "1mb", Script::Own(VALUE_1_MB), 4));
        let connect =
            Load { protocol: "simple", script: Script::Select, clients: 16, reconnect: true, tls: false };
        rows.push(Row {
            name: "connect-select-16".into(),
            about: "a new connection for every transaction, 16 clients".into(),
            task: Task::Load(connect),
        });
        for (name, about, load) in [
            ("tls-select-16", "select-only over TLS, 16 clients", Load { reconnect: false, ..connect }),
            (
                "tls-1mb-4",
                "a value of 1 MB over TLS, 4 clients",
                Load { script: Script::Own(VALUE_1_MB), clients: 4, reconnect: false, ..connect },
            ),
            ("tls-connect-16", "a new connection over TLS for every transaction, 16 clients", connect),
        ] {
            let task = Task::Load(Load { tls: true, ..load });
            rows.push(Row { name: name.into(), about: about.into(), task });
        }
        rows
    }

    /// The rows whose names begin with one of these; all if there are none.
    pub(crate) fn select(wanted: &[String]) -> Result<Vec<Row>, Failure> {
        let wanted: Vec<&str> =
            wanted.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
        if let Some(unknown) =
            wanted.iter().find(|name| !Row::all().iter().any(|row| row.name.starts_with(**name)))
        {
            return Err(format!("no row is called {unknown:?}; --list shows them").into());
        }
        let keep = |row: &Row| wanted.is_empty() || wanted.iter().any(|name| row.name.starts_with(name));
        Ok(Row::all().into_iter().filter(keep).collect())
    }

    fn load(protocol: &'static str, short: &str, script: Script, clients: u32) -> Row {
        Row {
            name: format!("{protocol}-{short}-{clients}"),
            about: format!("{protocol} protocol, {short}, concurrent clients: {clients}"),
            task: Task::Load(Load { protocol, script, clients, reconnect: false, tls: false }),
        }
    }

    /// Measures both sides; the side that begins changes with every pair.
    pub(crate) fn measure(
        &self,
        lab: &Lab,
        contenders: &[Contender; 2],
        pairs: u32,
        length: Duration,
    ) -> [Measured; 2] {
        let mut sides = contenders.each_ref().map(|contender| Side::open(self, lab, contender));
        for pair in 0..pairs {
            let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                sides[side].measure(self, lab, length);
            }
        }
        sides.map(|side| side.measured)
    }
}

/// One side while its row is measured.
struct Side<'a> {
    contender: &'a Contender,
    /// Kept over the pairs; `None` for rows that want a fresh one each time.
    proxy: Option<Proxy>,
    measured: Measured,
}

impl<'a> Side<'a> {
    fn open(row: &Row, lab: &Lab, contender: &'a Contender) -> Side<'a> {
        let prepared = matches!(&row.task, Task::Load(load) if load.protocol == "prepared");
        let tls = matches!(&row.task, Task::Load(load) if load.tls);
        let lacks = contender.lacks_prepared().filter(|_| prepared);
        if let Some(reason) = lacks.or_else(|| contender.lacks_tls().filter(|_| tls)) {
            return Side { contender, proxy: None, measured: Err(reason) };
        }
        if matches!(row.task, Task::IdleMemory) {
            return Side { contender, proxy: None, measured: Ok(Vec::new()) };
        }
        match lab.start(contender, &Setup::of(POOL).encrypting(tls)) {
            Ok(proxy) => Side { contender, proxy: Some(proxy), measured: Ok(Vec::new()) },
            Err(failure) => Side { contender, proxy: None, measured: Err(failure.to_string()) },
        }
    }

    /// Adds one value to each metric; the first failure ends the row for this side.
    fn measure(&mut self, row: &Row, lab: &Lab, length: Duration) {
        let Ok(metrics) = &mut self.measured else { return };
        match measure_once(row, lab, self.contender, self.proxy.as_ref(), length) {
            Ok(values) => {
                for (name, value) in values {
                    match metrics.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, list)) => list.push(value),
                        None => metrics.push((name, vec![value])),
                    }
                }
            }
            Err(failure) => self.measured = Err(failure.to_string()),
        }
    }
}

fn measure_once(
    row: &Row,
    lab: &Lab,
    contender: &Contender,
    proxy: Option<&Proxy>,
    length: Duration,
) -> Result<Vec<(&'static str, f64)>, Failure> {
    match (&row.task, proxy) {
        (Task::IdleMemory, _) => {
            let fresh = lab.start(contender, &Setup::of(POOL))?;
            Ok(vec![("bytes", idle::bytes_per_client(&fresh)?)])
        }
        (Task::Syscalls(query, count), Some(proxy)) => {
            Ok(vec![("calls", idle::syscalls_per_query(proxy, query, *count)?)])
        }
        (Task::Load(load), Some(proxy)) => {
            let outcome = load.run(lab, proxy, length)?;
            Ok(vec![
                ("tps", outcome.tps),
                ("p50_us", outcome.p50),
                ("p99_us", outcome.p99),
                ("cpu_us", outcome.user + outcome.system),
                ("user_us", outcome.user),
                ("system_us", outcome.system),
            ])
        }
        (_, None) => Err("its proxy is not running".into()),
    }
}
