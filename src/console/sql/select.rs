//! A SELECT with its names and types resolved, and its run over rows.
//!
//! Types and NULL follow PostgreSQL: a quoted literal or a parameter takes the type of what it is
//! compared with, comparisons with NULL are NULL, and NULL sorts as the largest value.

use super::super::fault::{Fault, nearest};
use super::super::source::Source;
use super::super::table::{Column, Row, Type, Value};
use super::super::views::{FUNCTION_COLUMNS, View, request_row};
use super::expr::{Ast, Op};
use super::parse::{Item, Relation, Written};
use crate::config::Rights;
use std::borrow::Cow;
use std::cmp::Ordering;

/// A SELECT that can run.
#[derive(Debug, Clone)]
pub(in crate::console) struct Select {
    /// The columns of its result.
    pub(in crate::console) columns: Vec<Column>,
    from: Rows,
    items: Vec<Expr>,
    counts: bool,
    filter: Option<Expr>,
    order: Vec<(usize, bool)>,
    limit: Option<Expr>,
}

/// A SELECT and the types of its parameters.
#[derive(Debug, Clone)]
pub(in crate::console) struct Bound {
    pub(in crate::console) select: Select,
    pub(in crate::console) parameters: Vec<Type>,
}

#[derive(Debug, Clone)]
enum Rows {
    /// No FROM: one row without columns.
    One,
    View(&'static View),
    Request(Expr),
}

#[derive(Debug, Clone)]
enum Expr {
    Column(usize),
    Constant(Value),
    Parameter(usize),
    Count,
    Compare(Op, Box<Expr>, Box<Expr>),
    IsNull(Box<Expr>, bool),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
}

/// Highest parameter number, PostgreSQL's own limit (`Int16` in Bind).
const MAX_PARAMETERS: usize = 65_535;

/// Columns of one result; with it a row has a bound.
const MAX_COLUMNS: usize = 256;

/// Both names of a request's highest number of leases at once.
const ALIASES: [[&str; 2]; 2] = [["peak_leases", "leases_peak"], ["leases_peak", "peak_leases"]];

struct Scope {
    columns: &'static [Column],
    /// Declared or found so far.
    parameters: Vec<Option<Type>>,
    counts: bool,
    reads_columns: bool,
}

impl Bound {
    /// Resolves a SELECT; `declared` are the parameter types that the client gave, if any.
    pub(in crate::console) fn resolve(written: &Written, declared: &[Option<Type>]) -> Result<Bound, Fault> {
        let columns = match &written.from {
            None => &[],
            Some(Relation::View(view)) => view.columns,
            Some(Relation::Request(_)) => FUNCTION_COLUMNS,
        };
        let mut scope = Scope { columns, parameters: declared.to_vec(), counts: false, reads_columns: false };
        let from = match &written.from {
            None => Rows::One,
            Some(Relation::View(view)) => Rows::View(view),
            Some(Relation::Request(id)) => Rows::Request(scope.constant(id, Type::Text)?),
        };
        let filter = match &written.filter {
            Some(filter) => Some(scope.truth(filter)?),
            None => None,
        };
        if scope.counts {
            return Err(Fault::Mixed);
        }
        scope.reads_columns = false;
        let (items, names) = scope.items(&written.items)?;
        let mut order = Vec::new();
        for (name, descending) in &written.order {
            order.push((scope.column(name)?.0, *descending));
        }
        if scope.counts && scope.reads_columns {
            return Err(Fault::Mixed);
        }
        let limit = match &written.limit {
            Some(limit) => Some(scope.constant(limit, Type::Int)?),
            None => None,
        };
        let parameters = scope.parameters.iter().map(|kind| kind.unwrap_or(Type::Text)).collect();
        let select = Select { columns: names, from, items, counts: scope.counts, filter, order, limit };
        Ok(Bound { select, parameters })
    }
}

impl Scope {
    fn items(&mut self, written: &[Item]) -> Result<(Vec<Expr>, Vec<Column>), Fault> {
        let (mut items, mut columns) = (Vec::new(), Vec::new());
        for item in written {
            match item {
                Item::Star if self.columns.is_empty() => {
                    return Err(Fault::Syntax { near: "*".into(), expected: "FROM with a view" });
                }
                Item::Star => {
                    self.reads_columns = true;
                    items.extend((0..self.columns.len()).map(Expr::Column));
                    columns.extend_from_slice(self.columns);
                }
                Item::Expr(ast, alias) => {
                    let (expr, kind) = self.expr(ast, None)?;
                    let name = alias.clone().unwrap_or_else(|| natural_name(ast).to_owned());
                    items.push(expr);
                    columns.push(Column { name: Cow::Owned(name), kind });
                }
            }
            if columns.len() > MAX_COLUMNS {
                return Err(Fault::TooManyColumns { limit: MAX_COLUMNS });
            }
        }
        Ok((items, columns))
    }

    fn column(&mut self, name: &str) -> Result<(usize, Type), Fault> {
        self.reads_columns = true;
        let find = |name: &str| self.columns.iter().position(|column| column.name == name);
        let other = || ALIASES.iter().find(|[from, _]| *from == name).and_then(|[_, to]| find(to));
        let at = find(name).or_else(other).ok_or_else(|| Fault::NoColumn {
            name: name.to_owned(),
            nearest: nearest(name, self.columns.iter().map(|column| &*column.name)),
        })?;
        Ok((at, self.columns[at].kind))
    }

    fn truth(&mut self, ast: &Ast) -> Result<Expr, Fault> {
        match self.expr(ast, Some(Type::Bool))? {
            (expr, Type::Bool) => Ok(expr),
            (_, given) => Err(Fault::NotBoolean { given }),
        }
    }

    /// A value that does not depend on rows.
    fn constant(&mut self, ast: &Ast, kind: Type) -> Result<Expr, Fault> {
        let (expr, given) = self.expr(ast, Some(kind))?;
        match expr {
            Expr::Constant(_) | Expr::Parameter(_) if comparable(given, kind) => Ok(expr),
            _ => Err(Fault::Mismatch { left: kind, right: given }),
        }
    }

    /// Resolves an expression; `wanted` is the type for literals and parameters that have none.
    fn expr(&mut self, ast: &Ast, wanted: Option<Type>) -> Result<(Expr, Type), Fault> {
        Ok(match ast {
            Ast::Column(name) => {
                let (at, kind) = self.column(name)?;
                (Expr::Column(at), kind)
            }
            Ast::Literal(value) => (Expr::Constant(value.clone()), literal_type(value)),
            Ast::Untyped(text) => {
                let kind = wanted.unwrap_or(Type::Text);
                let value = text.as_deref().map_or(Ok(Value::Null), |text| Value::read(text, kind))?;
                (Expr::Constant(value), kind)
            }
            Ast::Parameter(number) => self.parameter(*number, wanted)?,
            Ast::Count => {
                self.counts = true;
                (Expr::Count, Type::Int)
            }
            Ast::Call(_, value) => (Expr::Constant((*value).into()), Type::Text),
            Ast::Compare(op, left, right) => (self.compare(*op, left, right)?, Type::Bool),
            Ast::IsNull(inner, is) => (Expr::IsNull(Box::new(self.expr(inner, None)?.0), *is), Type::Bool),
            Ast::All(terms) => (Expr::All(self.truths(terms)?), Type::Bool),
            Ast::Any(terms) => (Expr::Any(self.truths(terms)?), Type::Bool),
            Ast::Not(inner) => (Expr::Not(Box::new(self.truth(inner)?)), Type::Bool),
        })
    }

    fn truths(&mut self, terms: &[Ast]) -> Result<Vec<Expr>, Fault> {
        terms.iter().map(|term| self.truth(term)).collect()
    }

    fn parameter(&mut self, number: usize, wanted: Option<Type>) -> Result<(Expr, Type), Fault> {
        if number > MAX_PARAMETERS {
            return Err(Fault::NoParameter { number });
        }
        if self.parameters.len() < number {
            self.parameters.resize(number, None);
        }
        let wanted = if wanted == Some(Type::Int4) { Some(Type::Int) } else { wanted };
        let kind = *self.parameters[number - 1].get_or_insert(wanted.unwrap_or(Type::Text));
        Ok((Expr::Parameter(number - 1), kind))
    }

    fn compare(&mut self, op: Op, left: &Ast, right: &Ast) -> Result<Expr, Fault> {
        let open = |ast: &Ast| matches!(ast, Ast::Untyped(_) | Ast::Parameter(_));
        let ((left, left_kind), (right, right_kind)) = if open(left) && !open(right) {
            let right = self.expr(right, None)?;
            (self.expr(left, Some(right.1))?, right)
        } else {
            let left = self.expr(left, None)?;
            let right = self.expr(right, Some(left.1))?;
            (left, right)
        };
        if !comparable(left_kind, right_kind) {
            return Err(Fault::Mismatch { left: left_kind, right: right_kind });
        }
        Ok(Expr::Compare(op, Box::new(left), Box::new(right)))
    }
}

fn literal_type(value: &Value) -> Type {
    match value {
        Value::Bool(_) => Type::Bool,
        Value::Int(integer) if i32::try_from(*integer).is_ok() => Type::Int4,
        Value::Int(_) => Type::Int,
        Value::Float(_) => Type::Float,
        Value::Text(_) | Value::Null => Type::Text,
    }
}

fn comparable(left: Type, right: Type) -> bool {
    left == right || (left.is_number() && right.is_number())
}

/// The name that PostgreSQL gives to a column of the result.
fn natural_name(ast: &Ast) -> &str {
    match ast {
        Ast::Column(name) => name,
        Ast::Count => "count",
        Ast::Call(name, _) => name,
        Ast::Literal(Value::Bool(_)) => "bool",
        _ => "?column?",
    }
}

impl Select {
    /// Whether it shows anything of the process.
    pub(in crate::console) fn reads(&self) -> bool {
        !matches!(self.from, Rows::One)
    }

    /// Runs it for somebody with these rights. `parameters` are as many as [`Bound::parameters`], of those types or
    /// NULL.
    pub(in crate::console) fn run(
        &self,
        source: &dyn Source,
        rights: Rights,
        parameters: &[Value],
    ) -> Vec<Row> {
        let mut rows = match &self.from {
            Rows::One => vec![Row::new()],
            Rows::View(view) => view.rows(source, rights),
            Rows::Request(id) => match id.value(&[], parameters, 0) {
                Value::Text(id) => source.request(&id).iter().map(|r| request_row(source.now(), r)).collect(),
                _ => Vec::new(),
            },
        };
        if let Some(filter) = &self.filter {
            rows.retain(|row| filter.value(row, parameters, 0) == Value::Bool(true));
        }
        let limit = match self.limit.as_ref().map(|limit| limit.value(&[], parameters, 0)) {
            Some(Value::Int(limit)) => usize::try_from(limit).unwrap_or(0),
            _ => usize::MAX,
        };
        let project = |row: &Row, count| -> Row {
            self.items.iter().map(|item| item.value(row, parameters, count)).collect()
        };
        if self.counts {
            let counted = project(&Row::new(), rows.len());
            return if limit == 0 { Vec::new() } else { vec![counted] };
        }
        rows.sort_by(|a, b| self.sorted(a, b));
        rows.truncate(limit);
        rows.iter().map(|row| project(row, 0)).collect()
    }

    fn sorted(&self, a: &Row, b: &Row) -> Ordering {
        let compared = self.order.iter().map(|(at, descending)| {
            let order = match (&a[*at], &b[*at]) {
                (Value::Null, Value::Null) => Ordering::Equal,
                (Value::Null, _) => Ordering::Greater,
                (_, Value::Null) => Ordering::Less,
                (a, b) => a.order(b),
            };
            if *descending { order.reverse() } else { order }
        });
        compared.fold(Ordering::Equal, Ordering::then)
    }
}

impl Expr {
    /// The value in a row; `count` is what `count(*)` comes to.
    fn value(&self, row: &[Value], parameters: &[Value], count: usize) -> Value {
        let eval = |expr: &Expr| expr.value(row, parameters, count);
        match self {
            Expr::Column(at) => row.get(*at).cloned().unwrap_or(Value::Null),
            Expr::Constant(value) => value.clone(),
            Expr::Parameter(at) => parameters.get(*at).cloned().unwrap_or(Value::Null),
            Expr::Count => count.into(),
            Expr::Compare(op, left, right) => match (eval(left), eval(right)) {
                (Value::Null, _) | (_, Value::Null) => Value::Null,
                (left, right) => Value::Bool(op.holds(left.order(&right))),
            },
            Expr::IsNull(inner, is) => Value::Bool((eval(inner) == Value::Null) == *is),
            Expr::All(terms) => decide(terms.iter().map(eval), false),
            Expr::Any(terms) => decide(terms.iter().map(eval), true),
            Expr::Not(inner) => match eval(inner) {
                Value::Bool(truth) => Value::Bool(!truth),
                _ => Value::Null,
            },
        }
    }
}

/// AND and OR over three values: `deciding` alone decides, else NULL does, else the opposite.
fn decide(terms: impl Iterator<Item = Value>, deciding: bool) -> Value {
    let mut result = Value::Bool(!deciding);
    for term in terms {
        match term {
            Value::Bool(truth) if truth == deciding => return Value::Bool(deciding),
            Value::Null => result = Value::Null,
            _ => {}
        }
    }
    result
}

impl Op {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Op::Eq => order.is_eq(),
            Op::Ne => order.is_ne(),
            Op::Lt => order.is_lt(),
            Op::Le => order.is_le(),
            Op::Gt => order.is_gt(),
            Op::Ge => order.is_ge(),
        }
    }
}

impl Value {
    /// Reads PostgreSQL's text format of a type.
    pub(in crate::console) fn read(text: &str, kind: Type) -> Result<Value, Fault> {
        let bad = Fault::BadValue { kind };
        match kind {
            Type::Text => Ok(text.to_owned().into()),
            Type::Int | Type::Int4 => text.trim().parse().map(Value::Int).map_err(|_| bad),
            Type::Float => text.trim().parse().map(Value::Float).map_err(|_| bad),
            Type::Bool => match &*text.trim().to_ascii_lowercase() {
                "t" | "true" | "yes" | "on" | "1" => Ok(true.into()),
                "f" | "false" | "no" | "off" | "0" => Ok(false.into()),
                _ => Err(bad),
            },
        }
    }

    /// The order of two values of comparable types, neither of them NULL.
    fn order(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (a, b) => a.number().total_cmp(&b.number()),
        }
    }

    fn number(&self) -> f64 {
        match self {
            Value::Int(value) => *value as f64,
            Value::Float(value) => *value,
            _ => f64::NAN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::{Statement, parse};
    use super::*;
    use crate::console::fake::Fake;

    fn bound(text: &str) -> Result<Bound, Fault> {
        match parse(text)?.pop() {
            Some(Statement::Select(written)) => Bound::resolve(&written, &[]),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn ask(text: &str) -> Vec<Row> {
        bound(text).unwrap().select.run(&Fake::planted(), Rights::ALL, &[])
    }

    fn cells(text: &str) -> Vec<String> {
        ask(text).concat().iter().map(|value| value.to_text().unwrap_or("NULL".into()).into_owned()).collect()
    }

    #[test]
    fn a_test_counts_its_sessions_in_one_query() {
        assert_eq!(cells("SELECT leases_total, peak_leases FROM bursar.request('req-1')"), ["26", "3"]);
        assert_eq!(cells("SELECT leases_total < 10 FROM bursar.request('req-1')"), ["f"]);
        assert_eq!(
            cells("SELECT leases_total < 10 AND leases_peak <= 3 ok FROM bursar.request('req-2')"),
            ["t"]
        );
        assert!(ask("SELECT * FROM bursar.request('never seen')").is_empty());
        assert!(ask("SELECT * FROM bursar.request(NULL)").is_empty());
    }

    #[test]
    fn where_order_limit_and_count() {
        let sql = "select id from bursar.requests where leases_total > 4 and tenant = 'acme'";
        assert_eq!(cells(sql), ["req-1"]);
        assert_eq!(cells("select id from requests order by leases_total, id desc"), ["req-2", "req-1"]);
        assert_eq!(cells("select id from requests order by id desc limit 1"), ["req-2"]);
        assert_eq!(cells("select count(*) from bursar.leases where request is null"), ["1"]);
        assert_eq!(cells("select count(*) = 0 from bursar.leaks where outcome = 'open'"), ["f"]);
        assert_eq!(cells("select id from leases where not (tagged or hold_ms > 1000000000) or false"), ["8"]);
        assert_eq!(cells("select id from leases where tagged = 'yes' and hold_ms >= 31000.0"), ["7"]);
    }

    #[test]
    fn null_is_unknown_in_conditions_and_last_in_order() {
        assert!(ask("select id from leases where request <> 'req-1'").is_empty());
        assert!(ask("select id from leases where not request = 'req-1'").is_empty());
        assert_eq!(cells("select id from leases where request <> 'x' or id = 8 order by id"), ["7", "8"]);
        assert_eq!(cells("select request from leases order by request"), ["req-1", "NULL"]);
        assert_eq!(cells("select request from leases order by request desc"), ["NULL", "req-1"]);
        assert_eq!(
            cells("select null = 1, null is null, true and null, false and null"),
            ["NULL", "t", "NULL", "f"]
        );
    }

    #[test]
    fn names_and_types_of_the_result() {
        let columns = bound("select id, id n, count(*), 1, 3000000000, 'x', true from leases where 1 = 1");
        assert_eq!(columns.unwrap_err(), Fault::Mixed);
        let columns =
            bound("select version(), 1, 3000000000, 0.5, 'x', 1 < 2 AS less").unwrap().select.columns;
        let columns: Vec<_> = columns.iter().map(|column| (&*column.name, column.kind)).collect();
        assert_eq!(
            columns,
            [
                ("version", Type::Text),
                ("?column?", Type::Int4),
                ("?column?", Type::Int),
                ("?column?", Type::Float),
                ("?column?", Type::Text),
                ("less", Type::Bool),
            ]
        );
    }

    #[test]
    fn parameters_take_the_type_of_their_place() {
        let bound = bound("select $2 from requests where leases_total >= $1 and id <> $3 limit $4").unwrap();
        assert_eq!(bound.parameters, [Type::Int, Type::Text, Type::Text, Type::Int]);
        let given = [Value::Int(4), "x".into(), "req-9".into(), Value::Int(1)];
        assert_eq!(bound.select.run(&Fake::planted(), Rights::ALL, &given), [vec![Value::from("x")]]);
    }

    #[test]
    fn faults_of_names_and_types() {
        let nearest = Some("leases_total".to_owned());
        assert_eq!(
            bound("select lease_total from requests").unwrap_err(),
            Fault::NoColumn { name: "lease_total".into(), nearest }
        );
        let mismatch = |left, right| Fault::Mismatch { left, right };
        assert_eq!(bound("select id < 1 from requests").unwrap_err(), mismatch(Type::Text, Type::Int4));
        assert_eq!(
            bound("select 1 from leases where id").unwrap_err(),
            Fault::NotBoolean { given: Type::Int }
        );
        assert_eq!(
            bound("select 1 from leases where id = 'x'").unwrap_err(),
            Fault::BadValue { kind: Type::Int }
        );
        assert_eq!(bound("select id, count(*) from leases").unwrap_err(), Fault::Mixed);
        assert_eq!(bound("select count(*) from leases order by id").unwrap_err(), Fault::Mixed);
        assert_eq!(bound("select 1 from leases where count(*) > 1").unwrap_err(), Fault::Mixed);
        assert_eq!(bound("select $65536").unwrap_err(), Fault::NoParameter { number: 65_536 });
        let many = format!("select {}* from leases", "*,".repeat(30_000));
        assert_eq!(bound(&many).unwrap_err(), Fault::TooManyColumns { limit: MAX_COLUMNS });
        assert!(matches!(bound("select *").unwrap_err(), Fault::Syntax { .. }));
        assert_eq!(bound("select 1 from leases limit id").unwrap_err(), mismatch(Type::Int, Type::Int));
    }
}
