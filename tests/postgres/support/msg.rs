//! Frontend messages as bytes, byte for byte what a driver would send (PostgreSQL, "Message
//! Formats"). Builds legal messages; tests of malformed ones write their own bytes.

/// A message of this type.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(length(body.len() + 4));
    out.extend(body);
    out
}

fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).expect("a message below 4 GiB").to_be_bytes()
}

fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// A packet without a type: start-up, cancel, TLS and GSS requests.
pub(crate) fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    [&length(body.len() + 8)[..], &code.to_be_bytes(), body].concat()
}

/// StartupMessage of protocol `0x0003_0000 | minor` with these parameters.
pub(crate) fn startup<'a>(minor: u32, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        body.extend(cstr(name));
        body.extend(cstr(value));
    }
    body.push(0);
    packet(0x0003_0000 | minor, &body)
}

/// SSLRequest
pub(crate) fn ssl_request() -> Vec<u8> {
    packet(80_877_103, b"")
}

/// GSSENCRequest
pub(crate) fn gss_request() -> Vec<u8> {
    packet(80_877_104, b"")
}

/// CancelRequest
pub(crate) fn cancel_request(pid: i32, key: &[u8]) -> Vec<u8> {
    packet(80_877_102, &[&pid.to_be_bytes()[..], key].concat())
}

/// Query
pub(crate) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &cstr(sql))
}

/// Parse, no parameter types given.
pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    parse_typed(name, sql, &[])
}

/// Parse with the object ids of its parameters' types; 0 leaves one to the server.
pub(crate) fn parse_typed(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let count = u16::try_from(types.len()).expect("few parameters").to_be_bytes();
    let types: Vec<u8> = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
    message(b'P', &[cstr(name), cstr(sql), count.to_vec(), types].concat())
}

/// Bind with parameters as text; results as text.
pub(crate) fn bind_with(portal: &str, statement: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    let mut body = [cstr(portal), cstr(statement), vec![0, 0]].concat();
    body.extend(u16::try_from(parameters.len()).expect("few parameters").to_be_bytes());
    for parameter in parameters {
        match parameter {
            None => body.extend((-1i32).to_be_bytes()),
            Some(text) => {
                body.extend(length(text.len()));
                body.extend(text.as_bytes());
            }
        }
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// Bind with parameters that are text or, if `true`, binary; results all in the one form or the other.
pub(crate) fn bind_formats(
    portal: &str,
    statement: &str,
    parameters: &[(bool, Option<Vec<u8>>)],
    binary_results: bool,
) -> Vec<u8> {
    let count = u16::try_from(parameters.len()).expect("few parameters").to_be_bytes();
    let mut body = [cstr(portal), cstr(statement), count.to_vec()].concat();
    body.extend(parameters.iter().flat_map(|(binary, _)| u16::from(*binary).to_be_bytes()));
    body.extend(count);
    for (_, value) in parameters {
        match value {
            None => body.extend((-1i32).to_be_bytes()),
            Some(value) => {
                body.extend(length(value.len()));
                body.extend(value);
            }
        }
    }
    body.extend([0, 1, 0, u8::from(binary_results)]);
    message(b'B', &body)
}

/// Bind without parameters.
pub(crate) fn bind(portal: &str, statement: &str) -> Vec<u8> {
    bind_with(portal, statement, &[])
}

/// Describe a statement.
pub(crate) fn describe_statement(name: &str) -> Vec<u8> {
    message(b'D', &[b"S", &cstr(name)[..]].concat())
}

/// Describe a portal.
pub(crate) fn describe_portal(name: &str) -> Vec<u8> {
    message(b'D', &[b"P", &cstr(name)[..]].concat())
}

/// Execute; 0 rows means all.
pub(crate) fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[cstr(portal), rows.to_be_bytes().to_vec()].concat())
}

/// Parse, Bind, Describe and Execute of one text by the unnamed statement and portal, without Sync: what
/// a driver sends for a query.
pub(crate) fn unnamed(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", ""), describe_portal(""), execute("", 0)].concat()
}

/// Close a statement.
pub(crate) fn close_statement(name: &str) -> Vec<u8> {
    message(b'C', &[b"S", &cstr(name)[..]].concat())
}

/// Close a portal.
pub(crate) fn close_portal(name: &str) -> Vec<u8> {
    message(b'C', &[b"P", &cstr(name)[..]].concat())
}

/// Sync
pub(crate) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// Flush
pub(crate) fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// Terminate
pub(crate) fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

/// CopyData
pub(crate) fn copy_data(data: &str) -> Vec<u8> {
    message(b'd', data.as_bytes())
}

/// CopyDone
pub(crate) fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

/// CopyFail
pub(crate) fn copy_fail(why: &str) -> Vec<u8> {
    message(b'f', &cstr(why))
}

/// FunctionCall with arguments and result as text.
pub(crate) fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend([0, 0]);
    body.extend(u16::try_from(arguments.len()).expect("few arguments").to_be_bytes());
    for argument in arguments {
        body.extend(length(argument.len()));
        body.extend(argument.as_bytes());
    }
    body.extend([0, 0]);
    message(b'F', &body)
}
