//! Tokens to statements. Views and commands are known here; columns and types are not (`select.rs`
//! resolves them). Expressions are read in `expr.rs`.

use super::super::PARAMETERS;
use super::super::fault::{Fault, nearest};
use super::super::source::{Command, ShutdownMode};
use super::super::views::{self, VIEWS, View};
use super::expr::Ast;
use super::lex::{Spanned, Token, lex};

/// One statement.
#[derive(Debug, Clone)]
pub(in crate::console) enum Statement {
    /// `SHOW view`
    Show(&'static View),
    /// `SHOW setting`: name and value.
    Setting(&'static str, &'static str),
    /// `SELECT …`
    Select(Written),
    /// A command for the house.
    Command(Command),
    /// What drivers say at start and between uses; accepted, with this tag, and without effect.
    Quiet(&'static str),
    /// `BEGIN`
    Begin,
    /// `COMMIT`
    Commit,
    /// `ROLLBACK`
    Rollback,
    /// `ROLLBACK TO savepoint`: savepoints hold nothing, but an error is over with it.
    RollbackTo,
    /// `DEALLOCATE name`, or ALL.
    Deallocate(Option<String>),
}

/// A SELECT as written.
#[derive(Debug, Clone)]
pub(in crate::console) struct Written {
    pub(super) items: Vec<Item>,
    pub(super) from: Option<Relation>,
    pub(super) filter: Option<Ast>,
    /// Column and whether descending.
    pub(super) order: Vec<(String, bool)>,
    pub(super) limit: Option<Ast>,
}

/// One entry of the select list.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Star,
    Expr(Ast, Option<String>),
}

/// Where rows come from.
#[derive(Debug, Clone)]
pub(super) enum Relation {
    View(&'static View),
    /// `bursar.request(id)`
    Request(Ast),
}

/// Words that end an expression or a list, and so name no column and no alias.
const RESERVED: [&str; 12] =
    ["FROM", "WHERE", "AND", "OR", "NOT", "ORDER", "BY", "LIMIT", "AS", "IS", "ASC", "DESC"];

/// Settings that drivers set at start; a console has no use for them.
const IGNORED_SETTINGS: [&str; 16] = [
    "application_name",
    "bytea_output",
    "characteristics",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "names",
    "search_path",
    "standard_conforming_strings",
    "statement_timeout",
    "time",
    "timezone",
];

/// Reads every statement of a text; an empty text has none.
pub(in crate::console) fn parse(text: &str) -> Result<Vec<Statement>, Fault> {
    let mut parser = Parser { text, tokens: lex(text)?, at: 0 };
    let mut statements = Vec::new();
    loop {
        while parser.symbol(";") {}
        if parser.peek().is_none() {
            return Ok(statements);
        }
        statements.push(parser.statement()?);
        if !parser.ends() {
            return Err(parser.wrong("the end of the statement"));
        }
    }
}

/// A place in the tokens of a text.
pub(super) struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Spanned>,
    pub(super) at: usize,
}

impl Parser<'_> {
    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|spanned| &spanned.token)
    }

    /// Whether the statement is over.
    fn ends(&self) -> bool {
        matches!(self.peek(), None | Some(Token::Symbol(";")))
    }

    pub(super) fn symbol(&mut self, symbol: &str) -> bool {
        let there = matches!(self.peek(), Some(Token::Symbol(found)) if *found == symbol);
        self.at += usize::from(there);
        there
    }

    pub(super) fn keyword(&mut self, word: &str) -> bool {
        let there = matches!(self.peek(), Some(Token::Word(found)) if found.eq_ignore_ascii_case(word));
        self.at += usize::from(there);
        there
    }

    pub(super) fn expect(&mut self, symbol: &str, expected: &'static str) -> Result<(), Fault> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.wrong(expected)) }
    }

    /// An identifier, folded to lower case unless quoted.
    pub(super) fn name(&mut self, expected: &'static str) -> Result<String, Fault> {
        let name = match self.peek() {
            Some(Token::Word(word)) if !RESERVED.iter().any(|r| r.eq_ignore_ascii_case(word)) => {
                word.to_ascii_lowercase()
            }
            Some(Token::Quoted(name)) => name.clone(),
            _ => return Err(self.wrong(expected)),
        };
        self.at += 1;
        Ok(name)
    }

    pub(super) fn wrong(&self, expected: &'static str) -> Fault {
        let rest = self.tokens.get(self.at).map_or("", |spanned| &self.text[spanned.at..]);
        Fault::Syntax { near: rest.chars().take(20).collect(), expected }
    }

    fn skip_rest(&mut self) {
        while !self.ends() {
            self.at += 1;
        }
    }

    fn statement(&mut self) -> Result<Statement, Fault> {
        const KNOWN: &str = "SHOW, SELECT, SET, PAUSE, RESUME, RELOAD, RECONNECT, DISABLE, ENABLE, KILL, \
             KILL_CLIENT, KILL_REQUEST, KILL_TENANT, WAIT_CLOSE or SHUTDOWN; SHOW HELP explains them";
        let Some(Token::Word(verb)) = self.peek().cloned() else { return Err(self.wrong(KNOWN)) };
        self.at += 1;
        let command = match &*verb.to_ascii_uppercase() {
            "SHOW" => return self.show(),
            "SELECT" => return self.select().map(Statement::Select),
            "SET" => return self.set(),
            "BEGIN" | "START" => return Ok(self.quiet(Statement::Begin)),
            "COMMIT" | "END" => return Ok(self.work(Statement::Commit)),
            "ROLLBACK" | "ABORT" => return Ok(self.work(Statement::Rollback)),
            "SAVEPOINT" => return Ok(self.quiet(Statement::Quiet("SAVEPOINT"))),
            "RELEASE" => return Ok(self.quiet(Statement::Quiet("RELEASE"))),
            "RESET" => return Ok(self.quiet(Statement::Quiet("RESET"))),
            "DISCARD" => return Ok(self.quiet(Statement::Quiet("DISCARD ALL"))),
            "UNLISTEN" => return Ok(self.quiet(Statement::Quiet("UNLISTEN"))),
            "CLOSE" => return Ok(self.quiet(Statement::Quiet("CLOSE CURSOR"))),
            "DEALLOCATE" => {
                self.keyword("PREPARE");
                let all = self.keyword("ALL");
                let name = if all { None } else { Some(self.name("a statement name, or ALL")?) };
                return Ok(Statement::Deallocate(name));
            }
            "PAUSE" => Command::Pause(self.argument()),
            "RESUME" => Command::Resume(self.argument()),
            "RECONNECT" => Command::Reconnect(self.argument()),
            "WAIT_CLOSE" => Command::WaitClose(self.argument()),
            "RELOAD" => Command::Reload,
            "KILL" => Command::Kill(self.needed("a database name")?),
            "DISABLE" => Command::Disable(self.needed("a database name")?),
            "ENABLE" => Command::Enable(self.needed("a database name")?),
            "KILL_REQUEST" => Command::KillRequest(self.needed("a request id")?),
            "KILL_TENANT" => Command::KillTenant(self.needed("a tenant name")?),
            "KILL_CLIENT" => {
                let start = self.at;
                let id = self.argument().and_then(|id| id.parse().ok());
                self.at = if id.is_some() { self.at } else { start };
                Command::KillClient(id.ok_or_else(|| self.wrong("a client id as in SHOW CLIENTS"))?)
            }
            "SHUTDOWN" if self.keyword("WAIT_FOR_SERVERS") => Command::Shutdown(ShutdownMode::WaitForServers),
            "SHUTDOWN" if self.keyword("WAIT_FOR_CLIENTS") => Command::Shutdown(ShutdownMode::WaitForClients),
            "SHUTDOWN" => Command::Shutdown(ShutdownMode::Immediate),
            _ => {
                self.at -= 1;
                return Err(self.wrong(KNOWN));
            }
        };
        Ok(Statement::Command(command))
    }

    fn quiet(&mut self, statement: Statement) -> Statement {
        self.skip_rest();
        statement
    }

    /// The end of a transaction, or of what follows a savepoint.
    fn work(&mut self, statement: Statement) -> Statement {
        let _ = self.keyword("WORK") || self.keyword("TRANSACTION");
        if matches!(statement, Statement::Rollback) && self.keyword("TO") {
            return self.quiet(Statement::RollbackTo);
        }
        statement
    }

    /// An argument of a command: quoted, or everything up to a space or semicolon as it stands, so
    /// that ids such as `5f0c-9b` need no quotes.
    fn argument(&mut self) -> Option<String> {
        if self.ends() {
            return None;
        }
        let start = self.tokens.get(self.at)?.at;
        self.at += 1;
        if let Token::Text(text) | Token::Quoted(text) = &self.tokens[self.at - 1].token {
            return Some(text.clone());
        }
        let rest = &self.text[start..];
        let len = rest.find(|c: char| c == ';' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        while self.tokens.get(self.at).is_some_and(|spanned| spanned.at < start + len) {
            self.at += 1;
        }
        Some(rest[..len].to_owned())
    }

    fn needed(&mut self, what: &'static str) -> Result<String, Fault> {
        self.argument().ok_or_else(|| self.wrong(what))
    }

    fn show(&mut self) -> Result<Statement, Fault> {
        if self.keyword("TRANSACTION") {
            self.skip_rest();
            return Ok(Statement::Setting("transaction_isolation", "read committed"));
        }
        let name = self.name("a view; SHOW HELP lists them")?;
        if let Some(view) = views::find(&name) {
            return Ok(Statement::Show(view));
        }
        if let Some((name, value)) = PARAMETERS.iter().find(|(key, _)| key.eq_ignore_ascii_case(&name)) {
            return Ok(Statement::Setting(name, value));
        }
        let nearest = nearest(&name, VIEWS.iter().map(|view| view.name));
        Err(if nearest.is_some() { Fault::NoView { name, nearest } } else { Fault::NoSetting { name } })
    }

    fn set(&mut self) -> Result<Statement, Fault> {
        let _ = self.keyword("SESSION") || self.keyword("LOCAL");
        let mut key = self.name("a setting")?;
        if IGNORED_SETTINGS.contains(&&*key) || key == "transaction" {
            return Ok(self.quiet(Statement::Quiet("SET")));
        }
        while self.symbol(".") {
            key = format!("{key}.{}", self.name("a setting")?);
        }
        if !self.symbol("=") && !self.keyword("TO") {
            return Err(self.wrong("= or TO"));
        }
        let value = self.needed("a value")?;
        Ok(Statement::Command(Command::Set { key, value }))
    }

    fn select(&mut self) -> Result<Written, Fault> {
        let mut items = Vec::new();
        loop {
            items.push(if self.symbol("*") { Item::Star } else { self.item()? });
            if !self.symbol(",") {
                break;
            }
        }
        let from = if self.keyword("FROM") { Some(self.relation()?) } else { None };
        let filter = if self.keyword("WHERE") { Some(self.any(0)?) } else { None };
        let mut order = Vec::new();
        if self.keyword("ORDER") {
            if !self.keyword("BY") {
                return Err(self.wrong("BY"));
            }
            loop {
                let column = self.name("a column")?;
                let descending = !self.keyword("ASC") && self.keyword("DESC");
                order.push((column, descending));
                if !self.symbol(",") {
                    break;
                }
            }
        }
        let limit = if self.keyword("LIMIT") { Some(self.operand(0)?) } else { None };
        Ok(Written { items, from, filter, order, limit })
    }

    fn item(&mut self) -> Result<Item, Fault> {
        let expr = self.any(0)?;
        let named = self.keyword("AS") || matches!(self.peek(), Some(Token::Word(_) | Token::Quoted(_)));
        // A reserved word goes on with the statement.
        let alias = if named { self.name("a name").ok() } else { None };
        Ok(Item::Expr(expr, alias))
    }

    fn relation(&mut self) -> Result<Relation, Fault> {
        const VIEW: &str = "a view such as bursar.pools, or bursar.request('id')";
        let mut name = self.name(VIEW)?;
        if self.symbol(".") {
            let schema = std::mem::replace(&mut name, self.name(VIEW)?);
            if schema != "bursar" {
                return Err(Fault::NoView { name: format!("{schema}.{name}"), nearest: None });
            }
        }
        if self.symbol("(") {
            let argument = self.operand(0)?;
            self.expect(")", "one argument and )")?;
            return match &*name {
                "request" => Ok(Relation::Request(argument)),
                _ => Err(Fault::NoFunction { name }),
            };
        }
        views::find(&name).map(Relation::View).ok_or_else(|| {
            let nearest = nearest(&name, VIEWS.iter().map(|view| view.name));
            Fault::NoView { name, nearest }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Command {
        match parse(text).unwrap().pop() {
            Some(Statement::Command(command)) => command,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn near(text: &str) -> String {
        match parse(text) {
            Err(Fault::Syntax { near, .. }) => near,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn commands_and_their_arguments() {
        assert_eq!(command("PAUSE"), Command::Pause(None));
        assert_eq!(command("pause App;"), Command::Pause(Some("App".into())));
        assert_eq!(command("KILL \"my db\""), Command::Kill("my db".into()));
        assert_eq!(command("KILL_CLIENT 17"), Command::KillClient(17));
        assert_eq!(command("KILL_REQUEST 5f0c-9b;"), Command::KillRequest("5f0c-9b".into()));
        assert_eq!(command("KILL_REQUEST 'a;b'"), Command::KillRequest("a;b".into()));
        assert_eq!(command("SHUTDOWN WAIT_FOR_CLIENTS"), Command::Shutdown(ShutdownMode::WaitForClients));
        let set = Command::Set { key: "pool.size".into(), value: "30".into() };
        assert_eq!(command("SET pool.size = 30"), set);
        assert_eq!(command("set session pool.size to '30'"), set);
    }

    #[test]
    fn what_drivers_say_at_start_is_accepted() {
        for text in [
            "SET client_encoding TO 'UTF8'",
            "SET extra_float_digits = 3",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET TIME ZONE 'UTC'",
            "DISCARD ALL",
            "RESET ALL",
        ] {
            assert!(matches!(parse(text).unwrap()[..], [Statement::Quiet(_)]), "{text}");
        }
        assert!(matches!(parse("begin isolation level serializable; commit").unwrap()[..], [_, _]));
        assert!(matches!(
            parse("show Standard_Conforming_Strings").unwrap()[..],
            [Statement::Setting(_, "on")]
        ));
        assert!(parse(" ; ;").unwrap().is_empty());
    }

    #[test]
    fn syntax_errors_name_the_place() {
        assert_eq!(near("FROBNICATE x"), "FROBNICATE x");
        assert_eq!(near("KILL"), "");
        assert_eq!(near("KILL_CLIENT abc"), "abc");
        assert_eq!(near("SHOW POOLS x"), "x");
        assert_eq!(near("SELECT FROM bursar.pools"), "FROM bursar.pools");
        assert_eq!(near("SELECT 1 FROM bursar.pools WHERE"), "");
        assert_eq!(near("SELECT * FROM bursar.pools ORDER size"), "size");
        assert_eq!(near("RELOAD now"), "now");
        assert_eq!(near("SELECT - size"), "size");
    }

    #[test]
    fn unknown_names_are_told_with_the_nearest() {
        let nearest = Some("requests".to_owned());
        assert_eq!(
            parse("SHOW REQESTS").unwrap_err(),
            Fault::NoView { name: "reqests".into(), nearest: nearest.clone() }
        );
        assert_eq!(
            parse("SELECT * FROM bursar.reqests").unwrap_err(),
            Fault::NoView { name: "reqests".into(), nearest }
        );
        assert!(matches!(parse("SHOW search_path").unwrap_err(), Fault::NoSetting { .. }));
        assert!(matches!(parse("SELECT pg_sleep()").unwrap_err(), Fault::NoFunction { .. }));
        assert!(matches!(parse("SELECT * FROM pg_catalog.pg_type").unwrap_err(), Fault::NoView { .. }));
    }
}
