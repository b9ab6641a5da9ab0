//! Which names of a database may do more than read when a statement uses them (budgets.md §4.4).
//!
//! Read from the catalog in one question ([`QUESTION`]) and kept for a while: functions that PostgreSQL
//! calls volatile (a user's are unless they are declared otherwise), aggregates made of such, foreign
//! tables and what they are parts of, and views, policies and domains whose definitions use any of those.
//! A database with an operator, a cast or a type of its own that is volatile has none of its statements
//! judged: a text does not show where those are at work.
//!
//! What a function is declared to be is believed, as PostgreSQL's planner believes it.

use crate::wire::sql::reads::{is_harmless, reads};
use std::collections::HashSet;

/// More names are not kept: nothing is judged then.
pub const MOST: usize = 20_000;

/// Rows of kind, name, and definition or NULL.
///
/// * `n`: the name is not safe.
/// * `v`, `e`: safe if the definition (a query, an expression) is; without one it is not.
/// * `x`: there is something that no text shows.
///
/// Of PostgreSQL's own volatile functions some only read the clock or the disk. Some that are not volatile
/// tell of the backend or make a transaction id.
///
/// Views are read under a lock that a change of a table may be holding off.
pub const QUESTION: &str = "\
SET LOCAL lock_timeout = '100ms';\
WITH RECURSIVE volatile AS (\
 SELECT p.oid, p.proname, p.pronamespace FROM pg_catalog.pg_proc p WHERE p.provolatile = 'v'),\
foreign_part AS (\
 SELECT c.oid, c.relname FROM pg_catalog.pg_class c WHERE c.relkind = 'f' \
 UNION SELECT c.oid, c.relname FROM foreign_part f \
 JOIN pg_catalog.pg_inherits i ON i.inhrelid = f.oid JOIN pg_catalog.pg_class c ON c.oid = i.inhparent),\
definition AS (\
 SELECT 'v' AS kind, c.relname AS name, CASE WHEN (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class \
 WHERE relkind = 'v' AND oid >= 16384) <= 500 THEN pg_catalog.pg_get_viewdef(c.oid) END AS text \
 FROM pg_catalog.pg_class c WHERE c.relkind = 'v' AND c.oid >= 16384 \
 UNION ALL SELECT 'e', c.relname, pg_catalog.pg_get_expr(p.polqual, p.polrelid) \
 FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid WHERE p.polqual IS NOT NULL \
 UNION ALL SELECT 'e', t.typname, pg_catalog.pg_get_constraintdef(k.oid) \
 FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_type t ON t.oid = k.contypid WHERE k.oid >= 16384)\
SELECT 'n', v.proname::pg_catalog.text, NULL FROM volatile v JOIN pg_catalog.pg_proc p ON p.oid = v.oid \
 WHERE p.prokind <> 'p' AND p.prorettype NOT IN ('pg_catalog.trigger'::pg_catalog.regtype,\
 'pg_catalog.event_trigger'::pg_catalog.regtype,'pg_catalog.tsm_handler'::pg_catalog.regtype) \
 AND NOT (v.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND v.proname IN ('random','clock_timestamp',\
 'timeofday','gen_random_uuid','set_config','pg_sleep','pg_sleep_for','pg_sleep_until','pg_is_in_recovery',\
 'pg_relation_size','pg_table_size','pg_indexes_size','pg_total_relation_size','pg_database_size')) \
UNION SELECT 'n', n, NULL FROM pg_catalog.unnest(ARRAY['pg_backend_pid','txid_current','pg_current_xact_id',\
 'pg_my_temp_schema','pg_cursor','pg_prepared_statement','pg_cursors','pg_prepared_statements',\
 'pg_listening_channels','pg_locks']) n \
UNION SELECT 'n', p.proname::pg_catalog.text, NULL FROM pg_catalog.pg_aggregate a \
 JOIN pg_catalog.pg_proc p ON p.oid = a.aggfnoid JOIN volatile v ON v.oid IN (a.aggtransfn, a.aggfinalfn,\
 a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) \
UNION SELECT 'n', f.relname::pg_catalog.text, NULL FROM foreign_part f \
UNION SELECT d.kind, d.name::pg_catalog.text, CASE WHEN pg_catalog.octet_length(d.text) <= 6000 THEN d.text END \
 FROM definition d \
UNION SELECT 'x', o.oprname::pg_catalog.text, NULL FROM pg_catalog.pg_operator o \
 JOIN volatile v ON v.oid = o.oprcode \
UNION SELECT 'x', 'cast', NULL FROM pg_catalog.pg_cast c JOIN volatile v ON v.oid = c.castfunc \
UNION SELECT 'x', t.typname::pg_catalog.text, NULL FROM pg_catalog.pg_type t \
 JOIN volatile v ON v.oid IN (t.typinput, t.typoutput, t.typreceive, t.typsend) \
LIMIT 20001";

/// A row of the answer: kind, name, definition.
pub type Row<'a> = (&'a [u8], &'a [u8], Option<&'a [u8]>);

/// The names of one database that are not safe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    names: HashSet<Box<[u8]>>,
}

impl Names {
    /// From the rows of the answer. `None`: statements of this database cannot be judged by their texts.
    #[must_use]
    pub fn of<'a>(rows: &[Row<'a>]) -> Option<Names> {
        if rows.len() > MOST {
            return None;
        }
        let mut found = Names::default();
        let mut open: Vec<Row<'a>> = Vec::new();
        for &(kind, name, text) in rows {
            match kind {
                b"n" => {
                    found.names.insert(name.into());
                }
                b"v" | b"e" => open.push((kind, name, text)),
                _ => return None,
            }
        }
        // What uses what is not safe is not safe either, and so on.
        loop {
            let before = open.len();
            open.retain(|&(kind, name, text)| {
                let safe = text.is_some_and(|text| found.is_safe(kind == b"v", text));
                if !safe {
                    found.names.insert(name.into());
                }
                safe
            });
            if open.len() == before {
                return Some(found);
            }
        }
    }

    fn is_safe(&self, query: bool, text: &[u8]) -> bool {
        let is_unsafe = |name: &[u8]| self.has(name);
        if !query {
            return is_harmless(text, is_unsafe);
        }
        let mut keys = Vec::new();
        reads(text, is_unsafe, &mut keys).is_ok() && keys.is_empty()
    }

    /// Whether using this name, folded as PostgreSQL does, may do more than read.
    #[must_use]
    pub fn has(&self, name: &[u8]) -> bool {
        self.names.contains(name)
    }

    /// How many names that are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_uses_what_is_unsafe_is_so_too_in_any_order() {
        let rows: Vec<Row<'_>> = vec![
            (b"v", b"outer", Some(b" SELECT a FROM middle;")),
            (b"v", b"middle", Some(b" SELECT inner.a FROM inner;")),
            (b"v", b"inner", Some(b" SELECT nextval('s'::regclass) AS a;")),
            (b"v", b"fine", Some(b" SELECT a FROM t WHERE (a > 0);")),
            (b"v", b"long", None),
            (b"e", b"rows", Some(b"(tenant = mine())")),
            (b"e", b"plain", Some(b"(tenant = current_setting('app.tenant'::text))")),
            (b"e", b"positive", Some(b"CHECK ((VALUE > 0))")),
            (b"v", b"sets", Some(b"SELECT set_config('app.a', 'x', true);")),
            (b"n", b"nextval", None),
            (b"n", b"mine", None),
        ];
        let names = Names::of(&rows).unwrap();
        let mut found: Vec<_> = names.names.iter().map(|name| String::from_utf8_lossy(name)).collect();
        found.sort();
        assert_eq!(found, ["inner", "long", "middle", "mine", "nextval", "outer", "rows", "sets"]);
        assert_eq!((names.len(), names.is_empty()), (8, false));
        assert!(names.has(b"outer") && !names.has(b"fine"));
    }

    #[test]
    fn what_no_text_shows_and_too_much_is_not_judged() {
        assert_eq!(Names::of(&[(b"x", b"+++", None)]), None);
        assert_eq!(Names::of(&[(b"?", b"", None)]), None);
        assert_eq!(Names::of(&vec![(&b"n"[..], &b"a"[..], None); MOST + 1]), None);
        assert_eq!(Names::of(&[]), Some(Names::default()));
    }
}
