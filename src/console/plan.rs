//! From a statement to what answers it: rows, a command, or a change of the session itself.

use super::fault::Fault;
use super::source::{Command, Source};
use super::sql::{Bound, Statement};
use super::table::{Column, Row, Type, Value};
use super::views::View;
use crate::config::{Right, Rights};
use crate::wire::backend::message;
use bytes::{BufMut, BytesMut};
use std::borrow::Cow;

/// What a statement comes to.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// Rows.
    Rows(Query),
    /// A command for the house.
    Command(Command),
    /// Changes nothing but the session: transaction control, quiet settings, DEALLOCATE.
    Session(Statement),
}

/// What yields rows.
#[derive(Debug, Clone)]
pub(super) enum Query {
    View(&'static View),
    Setting(&'static str, &'static str),
    Select(Bound),
}

impl Plan {
    /// Resolves a statement; `declared` are the parameter types that the client gave, if any.
    pub(super) fn of(statement: Statement, declared: &[Option<Type>]) -> Result<Plan, Fault> {
        Ok(match statement {
            Statement::Show(view) => Plan::Rows(Query::View(view)),
            Statement::Setting(name, value) => Plan::Rows(Query::Setting(name, value)),
            Statement::Select(written) => Plan::Rows(Query::Select(Bound::resolve(&written, declared)?)),
            Statement::Command(command) => Plan::Command(command),
            other => Plan::Session(other),
        })
    }

    /// The right that it takes; `None` = whoever is here may.
    pub(super) fn right(&self) -> Option<Right> {
        match self {
            Plan::Rows(Query::View(_)) => Some(Right::View),
            // What drivers ask of any server, and says nothing of this one.
            Plan::Rows(Query::Setting(..)) => None,
            Plan::Rows(Query::Select(bound)) => bound.select.reads().then_some(Right::View),
            Plan::Command(command) => Some(command.right()),
            Plan::Session(_) => None,
        }
    }

    /// Types of the parameters.
    pub(super) fn parameters(&self) -> &[Type] {
        match self {
            Plan::Rows(Query::Select(bound)) => &bound.parameters,
            _ => &[],
        }
    }

    /// Columns of the result; `None` if it has none.
    pub(super) fn columns(&self) -> Option<Cow<'_, [Column]>> {
        match self {
            Plan::Rows(query) => Some(query.columns()),
            _ => None,
        }
    }
}

impl Query {
    /// Columns of the result.
    pub(super) fn columns(&self) -> Cow<'_, [Column]> {
        match self {
            Query::View(view) => Cow::Borrowed(view.columns),
            Query::Setting(name, _) => Cow::Owned(vec![super::table::text(name)]),
            Query::Select(bound) => Cow::Borrowed(&bound.select.columns),
        }
    }

    /// The rows now, for somebody with these rights.
    pub(super) fn rows(&self, source: &dyn Source, rights: Rights, parameters: &[Value]) -> Vec<Row> {
        match self {
            Query::View(view) => view.rows(source, rights),
            Query::Setting(_, value) => vec![vec![(*value).into()]],
            Query::Select(bound) => bound.select.run(source, rights, parameters),
        }
    }

    /// CommandComplete's tag for so many rows.
    pub(super) fn tag(&self, rows: usize) -> Cow<'static, str> {
        match self {
            Query::View(_) | Query::Setting(..) => Cow::Borrowed("SHOW"),
            Query::Select(_) => Cow::Owned(format!("SELECT {rows}")),
        }
    }
}

/// Which columns of a result go out in binary, as Bind says.
#[derive(Debug, Clone, Default)]
pub(super) struct Formats(pub(super) Vec<i16>);

impl Formats {
    /// The format of a column: none given = text, one given = for all.
    pub(super) fn binary(&self, column: usize) -> bool {
        let code = if self.0.len() == 1 { self.0.first() } else { self.0.get(column) };
        code == Some(&1)
    }
}

/// Appends RowDescription.
pub(super) fn describe(columns: &[Column], formats: &Formats, out: &mut BytesMut) {
    message(out, b'T', |out| {
        // Bounded by MAX_COLUMNS.
        out.put_i16(columns.len() as i16);
        for (at, column) in columns.iter().enumerate() {
            out.extend_from_slice(column.name.as_bytes());
            out.put_u8(0);
            out.put_i32(0); // no table
            out.put_i16(0); // no column number
            out.put_u32(column.kind.oid());
            out.put_i16(column.kind.size());
            out.put_i32(-1); // no modifier
            out.put_i16(i16::from(formats.binary(at)));
        }
    });
}

/// Appends DataRow.
pub(super) fn data_row(columns: &[Column], row: &Row, formats: &Formats, out: &mut BytesMut) {
    message(out, b'D', |out| {
        out.put_i16(row.len() as i16);
        for (at, (column, value)) in columns.iter().zip(row).enumerate() {
            value.encode(column.kind, formats.binary(at), out);
        }
    });
}
