//! What a Bind gives for the parameters of a text (`$1`, `$2`, …), where it says what a call means.
//!
//! A value is read as text only where the server must read it so: the parameter is declared as text, or its
//! type is left to the server and the text uses it in that place alone.

use crate::wire::frontend::bind_values;
use crate::wire::walk::cstr;
use smallvec::SmallVec;
use std::cell::OnceCell;

/// OIDs of text, unknown and varchar (pg_type.dat), and of a type left to the server.
const TEXTS: [u32; 4] = [25, 705, 1043, UNDECLARED];
const UNDECLARED: u32 = 0;

/// The parameters of one Bind, with the types that its Parse has declared.
pub struct Bound<'b> {
    text: &'b [u8],
    /// Type OIDs, four bytes each.
    types: &'b [u8],
    values: SmallVec<[Option<&'b [u8]>; 4]>,
    /// How often each parameter stands in the text, strings and comments included, up to 255 times. Counted
    /// in one go: a text may use many.
    places: OnceCell<SmallVec<[u8; 8]>>,
}

impl<'b> Bound<'b> {
    /// `parse` is what a Parse says behind its name, `bind` the whole body of a Bind. `None` if the values
    /// cannot be read.
    #[must_use]
    pub fn read(parse: &'b [u8], bind: &'b [u8]) -> Option<Bound<'b>> {
        let (text, types) = cstr(parse)?;
        let (types, values) = (types.get(2..)?, bind_values(bind)?);
        Some(Bound { text, types, values, places: OnceCell::new() })
    }

    /// What stands for `$number`; NULL is `Some(None)`. `None` if nothing is bound to it.
    #[must_use]
    pub fn value(&self, number: usize) -> Option<Option<&'b [u8]>> {
        self.values.get(number.checked_sub(1)?).copied()
    }

    /// As [`Bound::value`], where the server reads it as text.
    #[must_use]
    pub fn text(&self, number: usize) -> Option<Option<&'b [u8]>> {
        let declared = self.types.chunks_exact(4).nth(number.checked_sub(1)?);
        let declared =
            declared.and_then(|oid| oid.first_chunk()).map_or(UNDECLARED, |oid| u32::from_be_bytes(*oid));
        let inferred = declared != UNDECLARED || self.is_alone(number);
        self.value(number).filter(|_| TEXTS.contains(&declared) && inferred)
    }

    fn is_alone(&self, number: usize) -> bool {
        let places = self.places.get_or_init(|| {
            let mut places: SmallVec<[u8; 8]> = SmallVec::from_elem(0, self.values.len());
            for at in memchr::memchr_iter(b'$', self.text) {
                let number = leading_number(&self.text[at + 1..]);
                if let Some(place) = number.and_then(|number| places.get_mut(number.checked_sub(1)?)) {
                    *place = place.saturating_add(1);
                }
            }
            places
        });
        number.checked_sub(1).and_then(|at| places.get(at)) == Some(&1)
    }
}

/// The number that these bytes begin with; `None` if they do not, or if it is too large.
#[must_use]
pub fn leading_number(bytes: &[u8]) -> Option<usize> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&bytes[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, types: &[u32]) -> Vec<u8> {
        let mut parse = [text.as_bytes(), &[0], &(types.len() as u16).to_be_bytes()].concat();
        types.iter().for_each(|oid| parse.extend(oid.to_be_bytes()));
        parse
    }

    /// Of the unnamed statement to the unnamed portal, one format.
    const BIND: &[u8] = b"\0\0\0\x01\0\x01\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0\0\0";

    #[test]
    fn values_in_their_places() {
        let parse = parse("select f($1, $2, $3)", &[]);
        let bound = Bound::read(&parse, BIND).unwrap();
        let values = [0, 1, 2, 3, 4].map(|number| bound.value(number));
        assert_eq!(values, [None, Some(Some(&b"a"[..])), Some(None), Some(Some(&b""[..])), None]);
        for cut in 0..BIND.len() - 2 {
            assert!(Bound::read(&parse, &BIND[..cut]).is_none(), "{cut}");
        }
    }

    #[test]
    fn text_is_what_the_server_reads_as_text() {
        let is_text = |text: &str, types: &[u32]| {
            let parse = parse(text, types);
            Bound::read(&parse, BIND).unwrap().text(1) == Some(Some(&b"a"[..]))
        };
        assert!(is_text("select f($1, $2)", &[]) && is_text("select f($1, $10)", &[0]));
        assert!(is_text("select f($2, $2, $0, $99999999999999999999, $1)", &[]));
        // The server takes the type from the first use.
        assert!(!is_text("select $1::regclass, f($1::text)", &[]));
        assert!(!is_text("select $01::regclass, f($1::text)", &[]));
        assert!(is_text("select f($1), g($1)", &[25]) && is_text("select f($1)", &[1043, 23]));
        assert!(!is_text("select f($1::text)", &[2205]));
    }
}
