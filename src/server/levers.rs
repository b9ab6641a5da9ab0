//! What the faces see and pull: the house behind [`Source`].

use super::House;
use crate::adapt::Limits;
use crate::auth::Users;
use crate::book::advice::Advice;
use crate::book::view::{CallSiteView, RequestView};
use crate::book::{PoolId, View};
use crate::clock;
use crate::config::Config;
use crate::console::{Command, Done, Running, ShutdownMode, Source};
use crate::metrics::Metrics;
use crate::pool::cell::{Cell, Order};
use crate::pool::view::{BackendRow, LeakDetail, LeaseDetail, ParkingRow, PreparedRow};
use crate::session::registry::{self, ClientRow};
use crate::session::reply::{self, Fault};
use crate::wire::error::Report;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a command that waits looks again.
const LOOK: Duration = Duration::from_millis(20);

/// See the module's page.
pub(super) struct Levers {
    house: Arc<House>,
}

impl Levers {
    pub(super) fn new(house: Arc<House>) -> Levers {
        Levers { house }
    }

    fn order(&self, order: &Order, which: impl Fn(&Cell) -> bool) -> usize {
        let cells = self.house.pools.cells();
        let chosen = cells.iter().filter(|cell| which(cell));
        chosen.map(|cell| cell.order(order.clone())).count()
    }

    async fn run(&self, command: Command) -> Result<Done, Report> {
        let pools = &self.house.pools;
        match command {
            Command::Pause(database) => {
                pools.pause(database.as_deref());
                while pools.is_leased(database.as_deref()) {
                    tokio::time::sleep(LOOK).await;
                }
                Ok("PAUSE".into())
            }
            Command::Resume(database) => {
                pools.resume(database.as_deref());
                Ok("RESUME".into())
            }
            Command::Reload => match self.house.reload().await {
                Ok(changes) => Ok(Done { tag: "RELOAD".into(), notices: reply::reloaded(&changes) }),
                Err(error) => Err(reply::fault(&Fault::ConsoleFailed { reason: error.to_string().into() })),
            },
            Command::Kill(database) => {
                self.order(&Order::Kill, |cell| *cell.database == *database);
                pools.reconnect(Some(&database));
                Ok("KILL".into())
            }
            Command::KillClient(id) => self.kill(|cell| cell.id.0 == id, "KILL_CLIENT"),
            Command::KillRequest(id) => {
                self.kill(|cell| cell.glance().1.request.as_deref() == Some(&*id), "KILL_REQUEST")
            }
            Command::KillTenant(name) => self.kill(|cell| *cell.glance().1.tenant == *name, "KILL_TENANT"),
            Command::Reconnect(database) => {
                pools.reconnect(database.as_deref());
                Ok("RECONNECT".into())
            }
            Command::Shutdown(mode) => {
                self.house.drain.shut_down(match mode {
                    ShutdownMode::Immediate => crate::drain::How::Now,
                    ShutdownMode::WaitForServers => crate::drain::How::Drain,
                    ShutdownMode::WaitForClients => crate::drain::How::WaitForClients,
                });
                Ok("SHUTDOWN".into())
            }
            Command::Disable(_) | Command::Enable(_) | Command::WaitClose(_) | Command::Set { .. } => {
                Err(reply::fault(&Fault::ConsoleUnsupported))
            }
        }
    }

    fn kill(&self, which: impl Fn(&Cell) -> bool, tag: &'static str) -> Result<Done, Report> {
        match self.order(&Order::Kill, which) {
            0 => Err(reply::fault(&Fault::ConsoleFailed { reason: "no such session".into() })),
            count => Ok(format!("{tag} {count}").into()),
        }
    }
}

impl Source for Levers {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn started(&self) -> Instant {
        self.house.started
    }

    fn config(&self) -> Arc<Config> {
        self.house.pools.config()
    }

    fn users(&self) -> Arc<Users> {
        self.house.pools.users()
    }

    fn view(&self) -> View {
        self.house.pools.view()
    }

    fn request(&self, id: &str) -> Option<RequestView> {
        self.house.pools.request(id)
    }

    fn backends(&self) -> Vec<BackendRow> {
        self.house.pools.backends()
    }

    fn leases(&self) -> Vec<LeaseDetail> {
        let with_text = self.config().leak.statement_text;
        let now = clock::now();
        self.house.pools.cells().iter().filter_map(|cell| cell.detail(with_text, now)).collect()
    }

    fn leaks(&self) -> HashMap<u64, LeakDetail> {
        self.house.pools.leak_details()
    }

    fn server_limits(&self) -> BTreeMap<Arc<str>, Arc<Limits>> {
        self.house.pools.server_limits()
    }

    fn advice(&self) -> Vec<Advice> {
        self.house.pools.advice()
    }

    fn saturated_total(&self) -> u64 {
        self.house.pools.saturated_total()
    }

    fn callsites(&self) -> Vec<CallSiteView> {
        self.house.pools.callsites()
    }

    fn prepared(&self) -> Vec<PreparedRow> {
        self.house.pools.prepared(self.config().leak.statement_text)
    }

    fn prepared_sizes(&self) -> HashMap<PoolId, (usize, usize)> {
        self.house.pools.prepared_sizes()
    }

    fn parking(&self) -> HashMap<PoolId, ParkingRow> {
        self.house.pools.parking()
    }

    fn clients(&self) -> Vec<ClientRow> {
        self.house.pools.cells().iter().map(|cell| registry::row(cell)).collect()
    }

    fn metrics(&self) -> &Metrics {
        &self.house.pools.metrics
    }

    fn draining(&self) -> bool {
        self.house.drain.is_leaving()
    }

    fn alive(&self) -> bool {
        // Whoever asks runs on the threads in question.
        true
    }

    fn command(&self, command: Command) -> Running<'_> {
        Box::pin(self.run(command))
    }
}
