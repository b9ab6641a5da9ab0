//! The extended protocol: prepared statements, parameters, portals.
//!
//! Messages are read field by field with checks of our own rather than by pgwire's decoders, which
//! panic on bodies that are too short.

use super::fault::Fault;
use super::frame::Fields;
use super::plan::{Formats, Plan, data_row, describe};
use super::session::{Session, Step};
use super::source::Source;
use super::sql::parse;
use super::table::{Row, Type, Value};
use crate::wire::backend::{TxStatus, bare, command_complete, message};
use crate::wire::frontend::{Kind, Parse};
use bytes::{BufMut, BytesMut};
use std::collections::HashMap;
use std::sync::Arc;

/// Prepared statements, and portals, of one session.
const MAX_NAMES: usize = 256;

/// What a session has prepared.
#[derive(Debug, Default)]
pub(super) struct Extended {
    statements: HashMap<String, Arc<Prepared>>,
    portals: HashMap<String, Portal>,
}

#[derive(Debug)]
struct Prepared {
    /// `None` for an empty text.
    plan: Option<Plan>,
    /// OIDs of the parameters: as declared, else as their place wants.
    oids: Vec<u32>,
}

#[derive(Debug)]
struct Portal {
    prepared: Arc<Prepared>,
    parameters: Vec<Value>,
    formats: Formats,
    /// What is left of the result, once asked for.
    rows: Option<std::vec::IntoIter<Row>>,
}

impl Extended {
    /// Sync: outside a transaction, portals end with it.
    pub(super) fn synced(&mut self, status: TxStatus) {
        if status == TxStatus::Idle {
            self.portals.clear();
        }
    }

    /// DEALLOCATE of one statement, or of all.
    pub(super) fn deallocate(&mut self, name: Option<&str>) -> Result<(), Fault> {
        match name {
            None => self.statements.clear(),
            Some(name) => drop(self.statements.remove(name).ok_or(Fault::NoStatement)?),
        }
        Ok(())
    }

    fn statement(&self, name: &str) -> Result<&Arc<Prepared>, Fault> {
        self.statements.get(name).ok_or(Fault::NoStatement)
    }

    fn parse(&mut self, body: &[u8]) -> Result<(), Fault> {
        let message = Parse::read(body).ok_or(Fault::Malformed)?;
        let mut fields = Fields(message.types);
        let mut oids = fields.list(|f| Some(f.i32()? as u32)).ok_or(Fault::Malformed)?;
        fields.end().ok_or(Fault::Malformed)?;
        let (name, text) = (utf8(message.name)?, utf8(message.text)?);
        let declared = oids.iter().map(|oid| type_of(*oid)).collect::<Result<Vec<_>, _>>()?;
        let mut statements = parse(text)?;
        if statements.len() > 1 {
            return Err(Fault::Several);
        }
        let plan = statements.pop().map(|statement| Plan::of(statement, &declared)).transpose()?;
        let wanted = plan.as_ref().map_or(&[][..], Plan::parameters);
        oids.resize(wanted.len().max(oids.len()), 0);
        for (oid, kind) in oids.iter_mut().zip(wanted) {
            if matches!(*oid, 0 | UNKNOWN) {
                *oid = kind.oid();
            }
        }
        room(&self.statements, name, Fault::StatementExists)?;
        self.statements.insert(name.to_owned(), Arc::new(Prepared { plan, oids }));
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), Fault> {
        let message = Bind::read(body).ok_or(Fault::Malformed)?;
        let prepared = Arc::clone(self.statement(utf8(message.statement)?)?);
        let (given, wanted) = (message.parameters.len(), prepared.oids.len());
        if given != wanted || !fits(&message.formats, given) {
            return Err(Fault::ParameterCount { given, wanted });
        }
        let columns = prepared.plan.as_ref().and_then(Plan::columns).map_or(0, |columns| columns.len());
        if !fits(&message.results.0, columns) {
            return Err(Fault::Malformed);
        }
        let formats = Formats(message.formats);
        let decode = |(at, (bytes, oid)): (usize, (&Option<&[u8]>, &u32))| match bytes {
            None => Ok(Value::Null),
            Some(bytes) => value(bytes, *oid, formats.binary(at)),
        };
        let values = message.parameters.iter().zip(&prepared.oids).enumerate().map(decode);
        let parameters = values.collect::<Result<_, _>>()?;
        let name = utf8(message.portal)?;
        room(&self.portals, name, Fault::PortalExists)?;
        let portal = Portal { prepared, parameters, formats: message.results, rows: None };
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    fn describe(&self, body: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
        let (kind, name) = target(body)?;
        let (prepared, formats) = match kind {
            b'S' => (self.statement(name)?, &Formats::default()),
            b'P' => {
                let portal = self.portals.get(name).ok_or(Fault::NoPortal)?;
                (&portal.prepared, &portal.formats)
            }
            _ => return Err(Fault::Malformed),
        };
        if kind == b'S' {
            message(out, b't', |out| {
                out.put_u16(prepared.oids.len() as u16);
                prepared.oids.iter().for_each(|oid| out.put_u32(*oid));
            });
        }
        match prepared.plan.as_ref().and_then(Plan::columns) {
            Some(columns) => describe(&columns, formats, out),
            None => bare(out, b'n'),
        }
        Ok(())
    }

    fn close(&mut self, body: &[u8]) -> Result<(), Fault> {
        match target(body)? {
            (b'S', name) => drop(self.statements.remove(name)),
            (b'P', name) => drop(self.portals.remove(name)),
            _ => return Err(Fault::Malformed),
        }
        Ok(())
    }
}

impl Session {
    /// Handles one message of the extended protocol.
    ///
    /// # Errors
    /// What to tell before skipping to Sync; [`Fault::Malformed`] closes.
    pub(super) fn message(
        &mut self,
        source: &dyn Source,
        kind: Kind,
        body: &[u8],
        out: &mut BytesMut,
    ) -> Result<Step, Fault> {
        match kind {
            Kind::Parse => {
                self.extended.parse(body)?;
                bare(out, b'1');
            }
            Kind::Bind => {
                self.extended.bind(body)?;
                bare(out, b'2');
            }
            Kind::Describe => self.extended.describe(body, out)?,
            Kind::Close => {
                self.extended.close(body)?;
                bare(out, b'3');
            }
            _ => return self.execute(source, body, out),
        }
        Ok(Step::Next)
    }

    fn execute(&mut self, source: &dyn Source, body: &[u8], out: &mut BytesMut) -> Result<Step, Fault> {
        let mut fields = Fields(body);
        let (name, limit) = fields.cstr().zip(fields.i32()).ok_or(Fault::Malformed)?;
        fields.end().ok_or(Fault::Malformed)?;
        let name = utf8(name)?;
        let portal = self.extended.portals.get(name).ok_or(Fault::NoPortal)?;
        let prepared = Arc::clone(&portal.prepared);
        let Some(plan) = &prepared.plan else {
            bare(out, b'I');
            return Ok(Step::Next);
        };
        let failed = self.status == TxStatus::Failed;
        match plan {
            Plan::Session(statement) => self.permit(statement)?,
            Plan::Rows(_) | Plan::Command(_) if failed => return Err(Fault::Aborted),
            Plan::Rows(_) | Plan::Command(_) => {}
        }
        let rights = self.allow(source, plan)?;
        match plan {
            Plan::Session(statement) => {
                let tag = self.control(statement)?;
                command_complete(out, tag);
            }
            Plan::Command(command) => return Ok(Step::Run(command.clone())),
            Plan::Rows(query) => {
                let portal = self.extended.portals.get_mut(name).ok_or(Fault::NoPortal)?;
                let Portal { rows, parameters, formats, .. } = portal;
                let rows = rows.get_or_insert_with(|| query.rows(source, rights, parameters).into_iter());
                // 0, and with it anything below, is no limit.
                let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
                let columns = query.columns();
                let mut sent = 0;
                for row in rows.by_ref().take(limit) {
                    data_row(&columns, &row, formats, out);
                    sent += 1;
                }
                if rows.len() > 0 { bare(out, b's') } else { command_complete(out, &query.tag(sent)) }
            }
        }
        Ok(Step::Next)
    }
}

/// A Bind body.
struct Bind<'a> {
    portal: &'a [u8],
    statement: &'a [u8],
    formats: Vec<i16>,
    parameters: Vec<Option<&'a [u8]>>,
    results: Formats,
}

impl<'a> Bind<'a> {
    fn read(body: &'a [u8]) -> Option<Bind<'a>> {
        let mut fields = Fields(body);
        let bind = Bind {
            portal: fields.cstr()?,
            statement: fields.cstr()?,
            formats: fields.list(Fields::i16)?,
            parameters: fields.list(|fields| match fields.i32()? {
                -1 => Some(None),
                len => fields.take(usize::try_from(len).ok()?).map(Some),
            })?,
            results: Formats(fields.list(Fields::i16)?),
        };
        fields.end()?;
        Some(bind)
    }
}

/// What Describe or Close names.
fn target(body: &[u8]) -> Result<(u8, &str), Fault> {
    let mut fields = Fields(body);
    let target = fields.byte().zip(fields.cstr()).ok_or(Fault::Malformed)?;
    fields.end().ok_or(Fault::Malformed)?;
    Ok((target.0, utf8(target.1)?))
}

/// Whether a name may be given: the unnamed one always, others once and so many.
fn room<T>(names: &HashMap<String, T>, name: &str, taken: Fault) -> Result<(), Fault> {
    match name {
        "" => Ok(()),
        _ if names.contains_key(name) => Err(taken),
        _ if names.len() >= MAX_NAMES => Err(Fault::TooMany { limit: MAX_NAMES }),
        _ => Ok(()),
    }
}

/// Whether so many format codes are for so many values: none, one for all, or one each; 0 or 1.
fn fits(codes: &[i16], values: usize) -> bool {
    (codes.len() <= 1 || codes.len() == values) && codes.iter().all(|code| matches!(code, 0 | 1))
}

fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault::NotUtf8)
}

/// `unknown` in `pg_type`: as good as no type.
const UNKNOWN: u32 = 705;

/// The type of a declared parameter; `None` if it is left to us.
fn type_of(oid: u32) -> Result<Option<Type>, Fault> {
    Ok(Some(match oid {
        0 | UNKNOWN => return Ok(None),
        16 => Type::Bool,
        20 | 21 | 23 => Type::Int,
        700 | 701 => Type::Float,
        // name, text, bpchar, varchar
        19 | 25 | 1042 | 1043 => Type::Text,
        _ => return Err(Fault::ParameterType { oid }),
    }))
}

/// Reads a parameter in text or binary format.
fn value(bytes: &[u8], oid: u32, binary: bool) -> Result<Value, Fault> {
    let kind = type_of(oid)?.unwrap_or(Type::Text);
    if !binary || kind == Type::Text {
        return Value::read(utf8(bytes)?, kind);
    }
    let value = match (oid, bytes) {
        (16, [byte]) => Some(Value::Bool(*byte != 0)),
        (20, _) => bytes.try_into().ok().map(|bytes| i64::from_be_bytes(bytes).into()),
        (21, _) => bytes.try_into().ok().map(|bytes| Value::Int(i16::from_be_bytes(bytes).into())),
        (23, _) => bytes.try_into().ok().map(|bytes| i32::from_be_bytes(bytes).into()),
        (700, _) => bytes.try_into().ok().map(|bytes| Value::Float(f32::from_be_bytes(bytes).into())),
        (701, _) => bytes.try_into().ok().map(|bytes| Value::Float(f64::from_be_bytes(bytes))),
        _ => None,
    };
    value.ok_or(Fault::BadValue { kind })
}
