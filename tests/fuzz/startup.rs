//! The first packet of a connection.

use bursar::wire::startup::{First, MAX, length, parse};

/// A packet whose length field is right, so that the fuzzer gets past it.
fn framed(code: u32, body: &[u8]) -> Vec<u8> {
    let body = &body[..body.len().min(MAX - 8)];
    let len = body.len() as u32 + 8;
    [&len.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}

/// Everything kept was in the packet: nothing is allocated by the peer's number.
fn held(first: &First) -> usize {
    match first {
        First::Ssl | First::GssEnc => 0,
        First::Cancel { key, .. } => key.len(),
        First::Startup(s) => {
            let parameters: usize = s.parameters.iter().map(|p| p.name.len() + p.value.len()).sum();
            let tags: usize = s.tags.iter().map(|(key, value)| key.len() + value.len()).sum();
            s.user.len() + parameters + tags + s.extensions.iter().map(String::len).sum::<usize>()
        }
    }
}

#[test]
fn any_bytes() {
    bolero::check!().for_each(|input: &[u8]| {
        if let Some(first) = input.first_chunk::<4>() {
            assert!(length(*first).is_err() || length(*first).is_ok_and(|len| (8..=MAX).contains(&len)));
        }
        if let Ok(first) = parse(input) {
            assert!(held(&first) <= input.len());
        }
    });
}

#[test]
fn any_body_behind_a_good_header() {
    bolero::check!().for_each(|input: &[u8]| {
        for code in [0x0003_0000, 0x0003_0002, 80_877_102, 80_877_103, 80_877_104] {
            if let Ok(first) = parse(&framed(code, input)) {
                assert!(held(&first) <= input.len());
            }
        }
    });
}

#[test]
fn any_options() {
    bolero::check!().for_each(|input: &[u8]| {
        let value: Vec<u8> = input.iter().copied().filter(|&b| b != 0).take(9_000).collect();
        let packet = framed(0x0003_0000, &[b"user\0u\0options\0", &value[..], b"\0\0"].concat());
        if let Ok(First::Startup(startup)) = parse(&packet) {
            for parameter in &startup.parameters {
                assert!(!parameter.name.is_empty() && !parameter.name.contains('-'));
            }
        }
    });
}
