//! Tables of typed values: what every view yields, for the console and for JSON alike.
//!
//! Knows PostgreSQL's text and binary format of the four types it has, and nothing of protocols.

use bytes::{BufMut, BytesMut};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// Types of columns, with PostgreSQL's OIDs so that drivers give numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `bool`, OID 16
    Bool,
    /// `int8`, OID 20
    Int,
    /// `int4`, OID 23: only literals such as `SELECT 1`, as in PostgreSQL.
    Int4,
    /// `text`, OID 25
    Text,
    /// `float8`, OID 701
    Float,
}

impl Type {
    /// The OID in `pg_type`.
    #[must_use]
    pub fn oid(self) -> u32 {
        match self {
            Type::Bool => 16,
            Type::Int => 20,
            Type::Int4 => 23,
            Type::Text => 25,
            Type::Float => 701,
        }
    }

    /// `typlen` in `pg_type`, in bytes; -1 = varies.
    #[must_use]
    pub fn size(self) -> i16 {
        match self {
            Type::Bool => 1,
            Type::Int4 => 4,
            Type::Int | Type::Float => 8,
            Type::Text => -1,
        }
    }

    /// The name as in `CREATE TABLE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Type::Bool => "boolean",
            Type::Int => "bigint",
            Type::Int4 => "integer",
            Type::Text => "text",
            Type::Float => "double precision",
        }
    }

    /// Whether it is a number.
    #[must_use]
    pub fn is_number(self) -> bool {
        matches!(self, Type::Int | Type::Int4 | Type::Float)
    }
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: Cow<'static, str>,
    /// Type of every value in it that is not NULL.
    pub kind: Type,
}

/// A column of integers.
pub(super) const fn int(name: &'static str) -> Column {
    Column { name: Cow::Borrowed(name), kind: Type::Int }
}

/// A column of texts.
pub(super) const fn text(name: &'static str) -> Column {
    Column { name: Cow::Borrowed(name), kind: Type::Text }
}

/// A column of fractions.
pub(super) const fn fraction(name: &'static str) -> Column {
    Column { name: Cow::Borrowed(name), kind: Type::Float }
}

/// A column of truth values.
pub(super) const fn truth(name: &'static str) -> Column {
    Column { name: Cow::Borrowed(name), kind: Type::Bool }
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// NULL
    Null,
    /// `bool`
    Bool(bool),
    /// `int8`, or `int4` in a column of that type
    Int(i64),
    /// `float8`
    Float(f64),
    /// `text`
    Text(Cow<'static, str>),
}

impl Value {
    /// PostgreSQL's text format; `None` for NULL.
    #[must_use]
    pub fn to_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Value::Null => None,
            Value::Bool(value) => Some(Cow::Borrowed(if *value { "t" } else { "f" })),
            Value::Int(value) => Some(Cow::Owned(value.to_string())),
            Value::Float(value) => Some(Cow::Owned(value.to_string())),
            Value::Text(value) => Some(Cow::Borrowed(value)),
        }
    }

    /// Appends one field of a DataRow: length and value, in binary or text format.
    pub(super) fn encode(&self, kind: Type, binary: bool, out: &mut BytesMut) {
        match self {
            Value::Bool(value) if binary => {
                out.put_i32(1);
                out.put_u8(u8::from(*value));
            }
            // Literals that made a column `int4` fit by the way they were read.
            Value::Int(value) if binary && kind == Type::Int4 => {
                out.put_i32(4);
                out.put_i32(*value as i32);
            }
            Value::Int(value) if binary => {
                out.put_i32(8);
                out.put_i64(*value);
            }
            Value::Float(value) if binary => {
                out.put_i32(8);
                out.put_f64(*value);
            }
            _ => match self.to_text() {
                None => out.put_i32(-1),
                Some(text) => {
                    out.put_i32(text.len() as i32);
                    out.extend_from_slice(text.as_bytes());
                }
            },
        }
    }

    /// Milliseconds, whole.
    #[must_use]
    pub fn millis(duration: Duration) -> Value {
        Value::Int(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
    }

    /// Microseconds, whole.
    #[must_use]
    pub fn micros(duration: Duration) -> Value {
        Value::Int(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int(value) => serializer.serialize_i64(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::Text(value) => serializer.serialize_str(value),
        }
    }
}

macro_rules! from_integer {
    ($($integer:ty),*) => {$(
        impl From<$integer> for Value {
            fn from(value: $integer) -> Self {
                Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
            }
        }
    )*};
}
from_integer!(u16, i32, i64, u32, u64, usize);

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<&'static str> for Value {
    fn from(value: &'static str) -> Self {
        Value::Text(Cow::Borrowed(value))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(Cow::Owned(value))
    }
}

impl From<&Arc<str>> for Value {
    fn from(value: &Arc<str>) -> Self {
        Value::Text(Cow::Owned(value.to_string()))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// One row; as long as its table has columns.
pub type Row = Vec<Value>;

/// Columns and rows. As JSON: an array of objects, keys in the order of the columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Columns.
    pub columns: Cow<'static, [Column]>,
    /// Rows.
    pub rows: Vec<Row>,
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Object<'a>(&'a [Column], &'a Row);
        impl Serialize for Object<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(Some(self.0.len()))?;
                for (column, value) in self.0.iter().zip(self.1) {
                    map.serialize_entry(&column.name, value)?;
                }
                map.end()
            }
        }
        let mut array = serializer.serialize_seq(Some(self.rows.len()))?;
        for row in &self.rows {
            array.serialize_element(&Object(&self.columns, row))?;
        }
        array.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(value: impl Into<Value>, kind: Type, binary: bool) -> Vec<u8> {
        let mut out = BytesMut::new();
        value.into().encode(kind, binary, &mut out);
        out.to_vec()
    }

    #[test]
    fn both_formats_are_postgres_own() {
        assert_eq!(encoded(true, Type::Bool, false), b"\0\0\0\x01t");
        assert_eq!(encoded(true, Type::Bool, true), b"\0\0\0\x01\x01");
        assert_eq!(encoded(-2_i64, Type::Int, false), b"\0\0\0\x02-2");
        assert_eq!(encoded(258_i64, Type::Int, true), b"\0\0\0\x08\0\0\0\0\0\0\x01\x02");
        assert_eq!(encoded(258_i64, Type::Int4, true), b"\0\0\0\x04\0\0\x01\x02");
        assert_eq!(encoded("\u{e4}", Type::Text, true), b"\0\0\0\x02\xc3\xa4");
        assert_eq!(encoded(None::<String>, Type::Text, true), b"\xff\xff\xff\xff");
        assert_eq!(Value::Float(0.5).to_text().as_deref(), Some("0.5"));
    }

    #[test]
    fn json_keeps_the_order_of_the_columns() {
        let table = Table {
            columns: Cow::Owned(vec![text("z"), int("a"), truth("m")]),
            rows: vec![vec!["\"<".into(), 1_u64.into(), Value::Null]],
        };
        assert_eq!(serde_json::to_string(&table).unwrap(), r#"[{"z":"\"<","a":1,"m":null}]"#);
    }
}
