//! Expressions: their syntax, and the part of the parser that reads them.

use super::super::VERSION_TEXT;
use super::super::fault::Fault;
use super::super::table::Value;
use super::lex::Token;
use super::parse::Parser;

/// An expression, names unresolved.
#[derive(Debug, Clone)]
pub(super) enum Ast {
    Column(String),
    /// A literal with a type of its own: number or truth value.
    Literal(Value),
    /// `'text'` or NULL: takes the type of what it is compared with.
    Untyped(Option<String>),
    Parameter(usize),
    Count,
    /// A function without arguments, and what it gives.
    Call(&'static str, &'static str),
    Compare(Op, Box<Ast>, Box<Ast>),
    /// `IS NULL`, or with `false` `IS NOT NULL`.
    IsNull(Box<Ast>, bool),
    All(Vec<Ast>),
    Any(Vec<Ast>),
    Not(Box<Ast>),
}

/// Comparison operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::console) enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Parentheses and NOTs within each other.
const MAX_DEPTH: usize = 32;

impl Parser<'_> {
    /// An expression: comparisons joined by AND and OR.
    pub(super) fn any(&mut self, depth: usize) -> Result<Ast, Fault> {
        let mut terms = vec![self.all(depth)?];
        while self.keyword("OR") {
            terms.push(self.all(depth)?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Ast::Any(terms) })
    }

    fn all(&mut self, depth: usize) -> Result<Ast, Fault> {
        let mut terms = vec![self.comparison(depth)?];
        while self.keyword("AND") {
            terms.push(self.comparison(depth)?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Ast::All(terms) })
    }

    fn comparison(&mut self, depth: usize) -> Result<Ast, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::TooDeep);
        }
        if self.keyword("NOT") {
            return Ok(Ast::Not(Box::new(self.comparison(depth + 1)?)));
        }
        let left = self.operand(depth)?;
        if self.keyword("IS") {
            let is = !self.keyword("NOT");
            return if self.keyword("NULL") {
                Ok(Ast::IsNull(Box::new(left), is))
            } else {
                Err(self.wrong("NULL"))
            };
        }
        let op = match self.peek() {
            Some(Token::Symbol("=")) => Op::Eq,
            Some(Token::Symbol("<>" | "!=")) => Op::Ne,
            Some(Token::Symbol("<")) => Op::Lt,
            Some(Token::Symbol("<=")) => Op::Le,
            Some(Token::Symbol(">")) => Op::Gt,
            Some(Token::Symbol(">=")) => Op::Ge,
            _ => return Ok(left),
        };
        self.at += 1;
        Ok(Ast::Compare(op, Box::new(left), Box::new(self.operand(depth)?)))
    }

    /// A column, a value, a call, or an expression in parentheses.
    pub(super) fn operand(&mut self, depth: usize) -> Result<Ast, Fault> {
        const OPERAND: &str = "a column or a value";
        if self.symbol("(") {
            let inner = self.any(depth + 1)?;
            self.expect(")", ")")?;
            return Ok(inner);
        }
        let minus = self.symbol("-");
        let ast = match self.peek() {
            Some(Token::Number(digits)) => number(digits, minus).ok_or_else(|| self.wrong("a number"))?,
            _ if minus => return Err(self.wrong("a number")),
            Some(Token::Text(text)) => Ast::Untyped(Some(text.clone())),
            Some(Token::Parameter(number)) => Ast::Parameter(*number),
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("null") => Ast::Untyped(None),
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("true") => Ast::Literal(true.into()),
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("false") => Ast::Literal(false.into()),
            _ => return self.column_or_call(OPERAND),
        };
        self.at += 1;
        Ok(ast)
    }

    fn column_or_call(&mut self, expected: &'static str) -> Result<Ast, Fault> {
        let mut name = self.name(expected)?;
        if name == "pg_catalog" && self.symbol(".") {
            name = self.name("a function")?;
        }
        if !self.symbol("(") {
            return Ok(Ast::Column(name));
        }
        let call = match &*name {
            "count" if self.symbol("*") => Ast::Count,
            "version" => Ast::Call("version", VERSION_TEXT),
            "current_database" => Ast::Call("current_database", "bursar"),
            "current_schema" => Ast::Call("current_schema", "bursar"),
            _ => return Err(Fault::NoFunction { name }),
        };
        self.expect(")", ")")?;
        Ok(call)
    }
}

fn number(digits: &str, minus: bool) -> Option<Ast> {
    let signed = if minus { format!("-{digits}") } else { digits.to_owned() };
    let value = match signed.parse::<i64>() {
        Ok(integer) => Value::Int(integer),
        Err(_) => Value::Float(signed.parse().ok()?),
    };
    Some(Ast::Literal(value))
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    #[test]
    fn nesting_is_bounded_and_chains_are_not() {
        let nested = format!("SELECT {}1{}", "(".repeat(60_000), ")".repeat(60_000));
        assert_eq!(parse(&nested).unwrap_err(), Fault::TooDeep);
        let nots = format!("SELECT {} true", "NOT ".repeat(15_000));
        assert_eq!(parse(&nots).unwrap_err(), Fault::TooDeep);
        let chain = format!("SELECT true{}", " AND true".repeat(7_000));
        assert_eq!(parse(&chain).unwrap().len(), 1);
    }
}
