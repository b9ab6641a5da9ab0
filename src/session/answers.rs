//! What Bursar answers itself, statement by statement: tags that are set and shown, names of shared
//! statements that are deallocated.
//!
//! Which texts those are is decided by [`crate::wire::sql::local`]; where the reply goes among others, by
//! the walk over the client's messages.

use super::Session;
use super::locals::Text;
use super::reply::{self, Fault};
use crate::statements::session::Look;
use crate::tag::{Key, Scope};
use crate::wire::backend::{bare, command_complete, message, text_columns, text_row};
use crate::wire::error::Report;
use crate::wire::sql::local::Local;
use bytes::{BufMut, BytesMut};

impl<S> Session<S> {
    /// Does one statement that is answered here, and writes its reply. `described`: a reply with
    /// rows begins with their description, as in the simple protocol.
    pub(super) fn perform(
        &mut self,
        local: &Local,
        described: bool,
        out: &mut BytesMut,
    ) -> Result<(), Report> {
        match local {
            Local::Set { key, value, local } => {
                self.set_tag(*key, value.as_deref(), *local)?;
                command_complete(out, "SET");
            }
            Local::SetConfig { key, value, local } => {
                self.set_tag(*key, value.as_deref(), *local)?;
                if described {
                    text_columns(out, ["set_config"].into_iter());
                }
                text_row(out, [value.as_deref()].into_iter());
                command_complete(out, "SELECT 1");
            }
            Local::Reset { key } => {
                self.set_tag(*key, None, false)?;
                command_complete(out, "RESET");
            }
            Local::Show { key } => {
                if described {
                    text_columns(out, [&*format!("bursar.{}", key.name())].into_iter());
                }
                text_row(out, [Some(self.tags.show(*key))].into_iter());
                command_complete(out, "SHOW");
            }
            Local::Deallocate { name } => {
                if !matches!(self.statements.look(name), Look::Shared(_)) {
                    let name = String::from_utf8_lossy(name).into();
                    return Err(reply::fault(&Fault::UndefinedStatement { name }));
                }
                self.statements.unname(name, false);
                command_complete(out, "DEALLOCATE");
            }
            Local::Unknown { name, .. } => return Err(reply::unknown_tag(name)),
        }
        Ok(())
    }

    fn set_tag(&mut self, key: Key, value: Option<&str>, local: bool) -> Result<(), Report> {
        if local && self.lease.is_none() {
            return Ok(()); // SET LOCAL outside a transaction has no effect
        }
        let scope = if local { Scope::Local } else { Scope::Session };
        let set = self.tags.set(scope, key, value, self.now);
        set.map_err(|error| reply::bad_tag(&error))?;
        if let Some(ended) = self.tags.take_ended() {
            self.pools.request_ended(&ended);
        }
        let tag = self.resolve(self.now);
        match self.lease {
            None => self.cell.tagged(&tag),
            // What it has asked for before goes on as another one's work, but in its own time.
            Some(_) => self.cell.bound(tag.own()),
        }
        Ok(())
    }
}

/// The answer to a Describe of a text answered here.
pub(super) fn describe(text: &Text, statement: bool, out: &mut BytesMut) {
    if statement {
        message(out, b't', |out| out.put_i16(0));
    }
    match text.first() {
        Some(Local::Show { key }) => text_columns(out, [&*format!("bursar.{}", key.name())].into_iter()),
        Some(Local::SetConfig { .. }) => text_columns(out, ["set_config"].into_iter()),
        _ => bare(out, b'n'),
    }
}
