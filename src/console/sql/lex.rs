//! Text to tokens. Comments are left out; every token knows where it stands.

use super::super::fault::Fault;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// An identifier or keyword, as written.
    Word(String),
    /// `"identifier"`, quotes resolved.
    Quoted(String),
    /// `'text'`, quotes resolved.
    Text(String),
    /// Digits, perhaps with a point.
    Number(String),
    /// `$n`
    Parameter(usize),
    /// An operator or punctuation.
    Symbol(&'static str),
}

/// A token and where it begins in the text, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spanned {
    pub(super) token: Token,
    pub(super) at: usize,
}

/// Longest first where one begins another.
const SYMBOLS: [&str; 14] = ["<>", "!=", "<=", ">=", "=", "<", ">", "(", ")", ",", ".", ";", "*", "-"];

/// Cuts a text into tokens.
pub(super) fn lex(text: &str) -> Result<Vec<Spanned>, Fault> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (token, len) = match first {
            c if c.is_ascii_whitespace() => (None, 1),
            '-' if rest.starts_with("--") => (None, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (None, comment(rest)?),
            '\'' => quoted(rest, '\'', "the closing '").map(|(text, len)| (Some(Token::Text(text)), len))?,
            '"' => quoted(rest, '"', "the closing \"").map(|(name, len)| (Some(Token::Quoted(name)), len))?,
            '$' => {
                let len = 1 + run(&rest[1..], |c| c.is_ascii_digit());
                let number = rest[1..len].parse().ok().filter(|number| *number > 0);
                (Some(Token::Parameter(number.ok_or_else(|| wrong(rest, "a parameter such as $1"))?)), len)
            }
            c if c.is_ascii_digit() => {
                let len = run(rest, |c| c.is_ascii_digit() || c == '.');
                (Some(Token::Number(rest[..len].to_owned())), len)
            }
            c if c == '_' || c.is_alphabetic() => {
                let len = run(rest, |c| c == '_' || c == '$' || c.is_alphanumeric());
                (Some(Token::Word(rest[..len].to_owned())), len)
            }
            _ => {
                let symbol = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol));
                let symbol = symbol.ok_or_else(|| wrong(rest, "a statement; SHOW HELP lists them"))?;
                (Some(Token::Symbol(symbol)), symbol.len())
            }
        };
        tokens.extend(token.map(|token| Spanned { token, at }));
        at += len;
    }
    Ok(tokens)
}

fn wrong(rest: &str, expected: &'static str) -> Fault {
    Fault::Syntax { near: rest.chars().take(20).collect(), expected }
}

/// Bytes of the longest prefix of such characters.
fn run(text: &str, such: impl Fn(char) -> bool) -> usize {
    text.find(|c| !such(c)).unwrap_or(text.len())
}

/// Bytes of a comment; PostgreSQL's nest.
fn comment(rest: &str) -> Result<usize, Fault> {
    let (bytes, mut depth, mut at) = (rest.as_bytes(), 0_usize, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Ok(at);
        }
    }
    Err(wrong(rest, "the end of the comment"))
}

/// What stands between quotes, a doubled quote being one, and how many bytes it took.
fn quoted(rest: &str, quote: char, expected: &'static str) -> Result<(String, usize), Fault> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            text.push(c);
        } else if chars.next_if(|(_, next)| *next == quote).is_some() {
            text.push(quote);
        } else {
            return Ok((text, at + 1));
        }
    }
    Err(wrong(rest, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_strings_and_comments() {
        let tokens = lex("select a<=$12, 'it''s' /* x /* y */ */ \"Q\"\"\" -- end\n;1.5").unwrap();
        let tokens: Vec<_> = tokens.into_iter().map(|spanned| spanned.token).collect();
        let word = |text: &str| Token::Word(text.into());
        assert_eq!(
            tokens,
            [
                word("select"),
                word("a"),
                Token::Symbol("<="),
                Token::Parameter(12),
                Token::Symbol(","),
                Token::Text("it's".into()),
                Token::Quoted("Q\"".into()),
                Token::Symbol(";"),
                Token::Number("1.5".into()),
            ]
        );
    }

    #[test]
    fn what_does_not_end_or_is_no_token_is_a_syntax_error() {
        for bad in ["'x", "\"x", "/* /* */", "/*/", "$", "$0", "#", "\u{7f}", "$99999999999999999999999"] {
            assert!(matches!(lex(bad), Err(Fault::Syntax { .. })), "{bad}");
        }
        assert_eq!(lex(""), Ok(vec![]));
        assert_eq!(lex(" -- only a comment"), Ok(vec![]));
    }
}
