//! Messages after login, from clients and from servers: what is read of them, and what is put in their place.
//!
//! Bodies are arbitrary, or what a message of some type has to be with one thing wrong about it. What a reader
//! says of the first part of a message, where it says anything, it must say of the whole.

use super::choices::Choices;
use bursar::session::message::{is_enough, query_text, without};
use bursar::statements::{Facts, Planner, Sharing, Table};
use bursar::wire::backend::{
    error_field, error_with_name, is_fatal, message, parameter, row_shape, row_values,
};
use bursar::wire::compose;
use bursar::wire::error::{Report, Severity};
use bursar::wire::frontend::{Kind, Parse, bind_names, bind_values, execute_portal, rename, target};
use bursar::wire::sql::bound::Bound;
use bursar::wire::sql::comment;
use bursar::wire::sql::scan::{clears_everything, deallocate_all, says_nothing, tag_traces};
use bursar::wire::walk::{HEADER, Header, cstr};
use bytes::{BufMut, BytesMut};

/// Longest input: every place to cut a message in two is tried.
const LONGEST: usize = 200;

#[test]
fn any_message() {
    bolero::check!().with_max_len(LONGEST).for_each(|input: &[u8]| {
        let mut choices = Choices(input);
        let kind = choices.one_of(b"QPBDECSHFdcfXTtDSEZRKvAN");
        let mut body = BytesMut::new();
        match choices.below(3) {
            0 => body.extend_from_slice(choices.0),
            mutated => {
                write_body(kind, &mut choices, &mut body);
                if mutated == 1 {
                    mutate(&mut choices, &mut body);
                }
            }
        }
        reads(&body);
        tells(&body);
        whole(kind, &body);
        composed(&mut Choices(input));
    });
}

/// A body as PostgreSQL's manual has it.
fn write_body(kind: u8, choices: &mut Choices<'_>, out: &mut BytesMut) {
    let text = |choices: &mut Choices<'_>, out: &mut BytesMut| {
        out.extend_from_slice(&choices.name(20));
        out.put_u8(0);
    };
    match kind {
        b'Q' => {
            text(choices, out);
            let end = out.len() - 1;
            out.truncate(end);
            out.extend_from_slice(choices.one_of(&[&b"/*tenant='a'*/\0"[..], b" /*route:b*/;\0", b"\0"]));
        }
        b'P' => {
            text(choices, out);
            text(choices, out);
            let types = choices.below(4);
            out.put_u16(types as u16);
            (0..types).for_each(|_| out.put_u32(choices.one_of(&[0, 25, 23, 1043])));
        }
        b'B' => {
            text(choices, out);
            text(choices, out);
            out.put_u16(1);
            out.put_u16(u16::from(choices.coin()));
            values(choices, out);
            out.put_u16(0);
        }
        b'T' => {
            let columns = choices.below(4);
            out.put_u16(columns as u16);
            for _ in 0..columns {
                text(choices, out);
                out.extend_from_slice(&[0; 18]);
            }
        }
        b'D' => match choices.below(3) {
            0 => values(choices, out),
            what => {
                out.put_u8(b"SP"[what - 1]);
                text(choices, out);
            }
        },
        b'E' => {
            for field in b"SVCMR" {
                out.put_u8(*field);
                out.extend_from_slice(choices.one_of(&[&b"FATAL"[..], b"bursar_1", b"26000", b""]));
                text(choices, out);
            }
            out.put_u8(0);
        }
        _ => {
            text(choices, out);
            text(choices, out);
        }
    }
}

/// A count of values, and each with its length.
fn values(choices: &mut Choices<'_>, out: &mut BytesMut) {
    let count = choices.below(4);
    out.put_u16(count as u16);
    for _ in 0..count {
        if choices.coin() {
            out.put_i32(-1);
        } else {
            let value = choices.bytes(20);
            out.put_u32(value.len() as u32);
            out.extend_from_slice(value);
        }
    }
}

/// One thing goes wrong.
fn mutate(choices: &mut Choices<'_>, body: &mut BytesMut) {
    let at = choices.below(body.len().max(1));
    match choices.below(3) {
        0 => body.truncate(at),
        1 => body.extend_from_slice(choices.0),
        _ => {
            if let Some(byte) = body.get_mut(at) {
                *byte = choices.one_of(&[0, 1, 0x7f, 0x80, 0xff]);
            }
        }
    }
}

/// What `read` makes of the beginning of a body, if anything, is what it makes of all of it.
fn holds<'b, T: PartialEq + std::fmt::Debug>(body: &'b [u8], read: impl Fn(&'b [u8]) -> Option<T>) {
    let all = read(body);
    for cut in 0..body.len() {
        let part = read(&body[..cut]);
        assert!(part.is_none() || part == all, "cut at {cut}: {part:?} of {all:?}");
    }
}

/// The readers of what clients send.
fn reads(body: &[u8]) {
    holds(body, bind_names);
    holds(body, bind_values);
    holds(body, target);
    holds(body, execute_portal);
    holds(body, |body| Parse::read(body).map(|parse| (parse.name, parse.text)));
    if let Some(parse) = Parse::read(body) {
        assert_eq!(parse.name.len() + parse.text.len() + parse.types.len() + 2, body.len());
        assert!(!parse.is_whole() || parse.types.len() % 4 == 2);
    }
    if let Some(values) = bind_values(body) {
        let sizes = values.iter().flatten().map(|value| value.len());
        assert!(sizes.sum::<usize>() + 4 * values.len() + 6 <= body.len());
    }
    if let Some(bound) = cstr(body).and_then(|(_, parse)| Bound::read(parse, body)) {
        for number in 0..8 {
            assert!(bound.text(number).is_none() || bound.text(number) == bound.value(number));
        }
    }
}

/// The readers of what servers send.
fn tells(body: &[u8]) {
    holds(body, parameter);
    if let Some(values) = row_values(body) {
        let sizes = values.iter().flatten().map(|value| value.len());
        assert_eq!(sizes.sum::<usize>() + 4 * values.len() + 2, body.len());
    }
    for field in *b"SVCMRH" {
        holds(body, |body| error_field(body, field));
    }
    if is_fatal(body) {
        assert!([b'V', b'S'].iter().any(|field| error_field(body, *field).is_some()));
    }
    shaped(body);
    if says_nothing(body) {
        let tag = cstr(body).map_or(body, |(tag, _)| tag);
        assert!(tag_traces(tag).is_none() && !clears_everything(tag) && !deallocate_all(tag));
    }
    let mut told = BytesMut::new();
    error_with_name(&mut told, body, b"bursar_1", b"mine");
    assert_eq!(Header::read(&told).and_then(Header::total), Some(told.len()));
    assert!(told.len() <= HEADER + body.len());
    for field in *b"SVCRH" {
        assert_eq!(error_field(&told[HEADER..], field), error_field(body, field));
    }
}

/// The shape of rows is their types', not their tables'.
fn shaped(body: &[u8]) {
    let shape = row_shape(body);
    let Some((name, fields)) = body.get(2..).and_then(cstr).filter(|(_, fields)| fields.len() >= 18) else {
        return;
    };
    let (mut other, table) = (body.to_vec(), 2 + name.len() + 1);
    assert!(fields.len() + table == body.len());
    other[table] ^= 1;
    assert_eq!(row_shape(&other), shape);
    other[table + 6] ^= 1;
    assert_ne!(row_shape(&other), shape);
}

/// A message with its header: whether enough of it is there, and what Bursar puts in its place.
fn whole(kind: u8, body: &[u8]) {
    let mut out = BytesMut::new();
    message(&mut out, kind, |out| out.extend_from_slice(body));
    let head = Header::read(&out).unwrap();
    assert_eq!((head.kind, head.total()), (kind, Some(out.len())));
    if let Some(kind) = Kind::of(kind) {
        let enough = |there| is_enough(kind, out.len(), &out[..there]);
        assert!((HEADER..=out.len()).map(enough).is_sorted() && enough(out.len()));
    }
    let (text, all) = query_text(&out, out.len());
    assert!(all);
    if let Some(found) = comment::find(text) {
        let cut = HEADER + found.cut.start..HEADER + found.cut.end;
        let shorter = without(&out, Some(cut.clone()));
        assert_eq!(Header::read(&shorter).and_then(Header::total), Some(shorter.len()));
        assert_eq!(shorter[HEADER..], [&out[HEADER..cut.start], &out[cut.end..]].concat());
    }
    if let Some((portal, name)) = bind_names(body) {
        let start = HEADER + portal.len() + 1;
        renamed(&out, start..start + name.len() + 1);
    }
}

/// A statement's name is replaced while all of the message is there, or only some of it.
fn renamed(message: &[u8], name: std::ops::Range<usize>) {
    let mut table = Table::default();
    let statement = table.intern(Sharing::Among(Planner(0)), b"select\0\0\0", |_| Facts::default());
    let id = statement.unwrap().id;
    for there in name.end..=message.len() {
        let mut out = BytesMut::from(&b"before"[..]);
        rename(&message[..there], message.len(), name.clone(), |out| id.write_name(out), &mut out);
        out.extend_from_slice(&message[there..]);
        let out = &out[6..];
        assert_eq!((out[0], Header::read(out).and_then(Header::total)), (message[0], Some(out.len())));
        let names = bind_names(&message[HEADER..]).zip(bind_names(&out[HEADER..])).unwrap();
        assert_eq!(names.1, (names.0.0, &b"bursar_1"[..]));
        assert_eq!(out[name.start + b"bursar_1\0".len()..], message[name.end..]);
    }
}

/// What Bursar says itself reads back.
fn composed(choices: &mut Choices<'_>) {
    let (name, text) = (choices.name(30), choices.name(60));
    let values = [choices.bytes(20), choices.bytes(20)];
    let mut out = BytesMut::new();
    compose::parse(&mut out, &name, &text, &[25, 23]);
    let parse = Parse::read(&out[HEADER..]).unwrap();
    assert_eq!((parse.name, parse.text, parse.is_whole()), (&name[..], &text[..], true));
    out.clear();
    compose::bind(&mut out, &name, &values);
    assert_eq!(bind_names(&out[HEADER..]), Some((&b""[..], &name[..])));
    assert_eq!(bind_values(&out[HEADER..]).unwrap()[..], values.map(Some));
    let detail = String::from_utf8_lossy(choices.bytes(60)).into_owned();
    let report = Report { detail: Some(detail.clone()), ..Report::new(Severity::Error, "XX000", "constant") };
    out.clear();
    report.encode(&mut out);
    assert_eq!(Header::read(&out).and_then(Header::total), Some(out.len()));
    assert_eq!(error_field(&out[HEADER..], b'D'), Some(detail.replace('\0', "").as_bytes()));
}
