//! Asking the server about users (`auth.query`): one connection of its own, opened when there is a question, one
//! question at a time, each user's once however many of his logins wait.
//!
//! What is remembered, and for how long, is decided in [`crate::auth::account`].

use crate::adapt::Place;
use crate::auth::account::AnswerError;
use crate::auth::{Account, Accounts};
use crate::backend::ask::AskError;
use crate::backend::inquire::inquire;
use crate::backend::{Backend, DialError, Target, dial};
use crate::clock;
use crate::config::{Auth, Config, Database};
use crate::metrics::{Lookup, Metrics};
use crate::net::stream::Quiet;
use crate::net::tls::Tls;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Users asked about at once: as many connections as may be logging in.
const MAX_QUESTIONS: usize = 1_000;
/// How long the connection is kept without a question.
const KEPT: Duration = Duration::from_secs(30);
/// Longest name of a role in bytes (PostgreSQL's NAMEDATALEN - 1); a longer one is nobody's.
const MAX_NAME: usize = 63;

/// The server cannot be asked. Why is in the log, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("users cannot be looked up")]
pub struct Unavailable;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error("no answer in time")]
    Timeout,
}

/// `None` until there is an answer.
type Said = Option<Result<Arc<Account>, Unavailable>>;

struct Question {
    user: Arc<str>,
    said: watch::Sender<Said>,
}

/// What was found of a user.
pub struct Found {
    /// Who he is.
    pub account: Arc<Account>,
    /// It was known before: there may be news.
    pub remembered: bool,
}

/// Asks the server about users.
pub struct Directory {
    rules: (Auth, Arc<Database>),
    shared: Arc<Shared>,
    questions: mpsc::Sender<Question>,
    /// For the task that asks, until there is a first question.
    unasked: Mutex<Option<mpsc::Receiver<Question>>>,
}

struct Shared {
    query: String,
    target: Target,
    /// For one question, connecting included.
    patience: Duration,
    accounts: Mutex<Accounts>,
    metrics: Arc<Metrics>,
    /// Users asked about right now.
    asked: Mutex<HashMap<Arc<str>, watch::Receiver<Said>>>,
}

impl Directory {
    /// `None` if the configuration asks nobody. `old` stays, with all it knows, if nothing changed.
    #[must_use]
    pub fn of(
        config: &Config,
        tls: &Arc<ArcSwap<Tls>>,
        metrics: &Arc<Metrics>,
        old: Option<&Arc<Directory>>,
    ) -> Option<Arc<Directory>> {
        let query = config.auth.query.clone()?;
        let name = &config.auth.query_database;
        let table = config.database(name)?;
        let rules = (config.auth.clone(), table.clone());
        if let Some(old) = old.filter(|old| old.rules == rules) {
            return Some(old.clone());
        }
        let mut table = Database::clone(&table);
        if let Some(user) = &config.auth.query_user {
            table.user = Some(user.clone());
            table.password = None;
        }
        table.password = config.auth.query_password.clone().or(table.password);
        let user = table.user.clone()?;
        let password = config.users.get(&user).and_then(|user| user.password.as_ref());
        let mut target = Target::new(&table, name, &user, password).over(tls.clone(), name).aside();
        // Names arrive as they were sent, timestamps in the one form that is read.
        for (name, value) in [("client_encoding", "UTF8"), ("DateStyle", "ISO"), ("TimeZone", "UTC")] {
            target.parameters.push((name.to_owned(), value.to_owned()));
        }
        let (questions, unasked) = mpsc::channel(MAX_QUESTIONS);
        let shared = Arc::new(Shared {
            query,
            target,
            patience: table.pool.connect_timeout,
            accounts: Mutex::new(Accounts::new(config.auth.query_ttl)),
            metrics: metrics.clone(),
            asked: Mutex::default(),
        });
        Some(Arc::new(Directory { rules, shared, questions, unasked: Mutex::new(Some(unasked)) }))
    }

    /// Where its connection goes.
    #[must_use]
    pub fn place(&self) -> Place {
        self.shared.target.place()
    }

    /// Who this is; with `news`, not from memory. Cancel safe: the question is asked all the same.
    ///
    /// # Errors
    /// The server cannot be asked, and what is remembered is too old.
    pub async fn find(&self, user: &str, news: bool) -> Result<Found, Unavailable> {
        if user.len() > MAX_NAME {
            return Ok(Found { account: Arc::default(), remembered: false });
        }
        if !news && let Some(account) = self.shared.accounts.lock().fresh(user, clock::now()) {
            return Ok(Found { account, remembered: true });
        }
        let mut said = self.question(user)?;
        let answer = match said.wait_for(Option::is_some).await {
            Ok(said) => said.clone().unwrap_or(Err(Unavailable)),
            Err(_) => Err(Unavailable),
        };
        match answer {
            Ok(account) => Ok(Found { account, remembered: false }),
            Err(unavailable) => {
                let stale = self.shared.accounts.lock().stale(user, clock::now());
                stale.map(|account| Found { account, remembered: false }).ok_or(unavailable)
            }
        }
    }

    /// Joins the question about this user, or puts it.
    fn question(&self, user: &str) -> Result<watch::Receiver<Said>, Unavailable> {
        let mut asked = self.shared.asked.lock();
        if let Some(said) = asked.get(user) {
            return Ok(said.clone());
        }
        let (said, answer) = watch::channel(None);
        let user: Arc<str> = user.into();
        self.questions.try_send(Question { user: user.clone(), said }).map_err(|_| Unavailable)?;
        asked.insert(user, answer.clone());
        drop(asked);
        if let Some(questions) = self.unasked.lock().take() {
            tokio::spawn(self.shared.clone().answer(questions));
        }
        Ok(answer)
    }
}

impl Shared {
    /// Answers until nobody can ask any more.
    async fn answer(self: Arc<Self>, mut questions: mpsc::Receiver<Question>) {
        let mut connection: Option<Box<Backend>> = None;
        let mut failing = false;
        loop {
            let next = match timeout(KEPT, questions.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    connection.take().into_iter().for_each(|backend| backend.close());
                    questions.recv().await
                }
            };
            let Some(question) = next else { break };
            let asked = clock::now();
            let asking = Box::pin(self.ask(&mut connection, &question.user));
            let answer = timeout(self.patience, asking).await.unwrap_or(Err(LookupError::Timeout));
            match answer {
                Ok(account) => {
                    self.metrics.lookup_times.observe(clock::now().saturating_duration_since(asked));
                    if std::mem::take(&mut failing) {
                        tracing::info!(server = %self.target.address, "users can be looked up again");
                    }
                    let account = Arc::new(account);
                    self.accounts.lock().learn(&question.user, account.clone(), clock::now());
                    self.say(question, Ok(account));
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(server = %self.target.address, %error, "users cannot be looked up");
                    }
                    self.say(question, Err(Unavailable));
                    // What is wrong with one answer need not be with the next.
                    if matches!(error, LookupError::Answer(_)) {
                        continue;
                    }
                    // Who has waited as long would only wait for the same.
                    while let Ok(question) = questions.try_recv() {
                        self.say(question, Err(Unavailable));
                    }
                }
            }
        }
        connection.into_iter().for_each(|backend| backend.close());
    }

    fn say(&self, question: Question, answer: Result<Arc<Account>, Unavailable>) {
        self.metrics.lookups.inc(match &answer {
            Ok(account) if account.exists() => Lookup::Found,
            Ok(_) => Lookup::Unknown,
            Err(Unavailable) => Lookup::Failed,
        });
        self.asked.lock().remove(&question.user);
        question.said.send_replace(Some(answer));
    }

    /// On the connection that there is; on a new one, if that turns out to be dead. Not cancel safe, and so
    /// takes the connection until there is an answer.
    async fn ask(&self, connection: &mut Option<Box<Backend>>, user: &str) -> Result<Account, LookupError> {
        if let Some(mut backend) = connection.take()
            && backend.poke() == Quiet::Yes
            && let Ok(Some((columns, rows))) = inquire(&mut backend, &self.query, user).await
        {
            *connection = Some(backend);
            return Ok(Account::read(user, &columns, &rows)?);
        }
        let mut backend = Box::new(dial(&self.target, self.patience).await?);
        let Some((columns, rows)) = inquire(&mut backend, &self.query, user).await? else {
            return Ok(Account::default());
        };
        *connection = Some(backend);
        Ok(Account::read(user, &columns, &rows)?)
    }
}
