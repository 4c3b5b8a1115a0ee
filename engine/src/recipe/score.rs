//! Score expressions: what a user writes about (q, k, head, layer, score), parsed and compiled for the backends.
//!
//! Numbers (`1`, `0.5`, `1e-3`, `inf`), names (`q` and `k`: positions of query and key; `head`, `heads`, `layer`, `score`),
//! `+ - * / % ^`, comparisons, `&& || !`, and functions. Precedence as in C, `^` binds tightest and to the right.

use kernels::ir::{ScoreOp, ScoreProgram};

/// Longest text.
const MOST_CHARACTERS: usize = 500;
/// Deepest nesting of the text.
const MOST_NESTING: usize = 100;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {detail}\n    {text}\n    {pointer:>column$}", pointer = '^')]
pub struct ScoreError {
    /// Character it begins at, from 1.
    pub column: usize,
    /// What was found and what is accepted.
    pub detail: String,
    /// The expression.
    pub text: String,
}

/// A parsed expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A finite number.
    Number(f32),
    /// A name, or infinity.
    Name(Name),
    /// A function or operator of what it is given.
    Call(ScoreOp, Vec<Expr>),
}

/// Something with a value of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Position of the query.
    Query,
    /// Position of the key.
    Key,
    /// Number of the query head.
    Head,
    /// Query heads of the layer.
    Heads,
    /// Number of the layer.
    Layer,
    /// scale * (q . k)
    Score,
    /// Infinity.
    Infinity,
}

const NAMES: [(&str, Name); 7] = [
    ("q", Name::Query),
    ("k", Name::Key),
    ("head", Name::Head),
    ("heads", Name::Heads),
    ("layer", Name::Layer),
    ("score", Name::Score),
    ("inf", Name::Infinity),
];

const FUNCTIONS: [(&str, ScoreOp); 11] = [
    ("if", ScoreOp::If),
    ("min", ScoreOp::Min),
    ("max", ScoreOp::Max),
    ("abs", ScoreOp::Abs),
    ("exp", ScoreOp::Exp),
    ("log", ScoreOp::Log),
    ("sqrt", ScoreOp::Sqrt),
    ("floor", ScoreOp::Floor),
    ("tanh", ScoreOp::Tanh),
    ("pow", ScoreOp::Pow),
    ("mod", ScoreOp::Mod),
];

/// (spelling, binding strength, instruction); `swap` ones are written with their sides exchanged, `not` ones negated.
struct Operator {
    text: &'static str,
    strength: u8,
    op: ScoreOp,
    swap: bool,
    not: bool,
}

const fn operator(text: &'static str, strength: u8, op: ScoreOp) -> Operator {
    Operator {
        text,
        strength,
        op,
        swap: false,
        not: false,
    }
}

/// Longer spellings first.
const OPERATORS: [Operator; 14] = [
    operator("||", 1, ScoreOp::Or),
    operator("&&", 2, ScoreOp::And),
    operator("<=", 3, ScoreOp::LessEqual),
    Operator {
        swap: true,
        ..operator(">=", 3, ScoreOp::LessEqual)
    },
    operator("==", 3, ScoreOp::Equal),
    Operator {
        not: true,
        ..operator("!=", 3, ScoreOp::Equal)
    },
    operator("<", 3, ScoreOp::Less),
    Operator {
        swap: true,
        ..operator(">", 3, ScoreOp::Less)
    },
    operator("+", 4, ScoreOp::Add),
    operator("-", 4, ScoreOp::Sub),
    operator("*", 5, ScoreOp::Mul),
    operator("/", 5, ScoreOp::Div),
    operator("%", 5, ScoreOp::Mod),
    operator("^", 7, ScoreOp::Pow),
];

/// Binding strength of `-` and `!` before a value.
const PREFIX: u8 = 6;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    nesting: usize,
}

/// Parses an expression.
///
/// # Errors
/// What is wrong at which column.
pub fn parse(text: &str) -> Result<Expr, ScoreError> {
    let mut p = Parser {
        text,
        at: 0,
        nesting: 0,
    };
    if let Some((i, _)) = text.char_indices().nth(MOST_CHARACTERS) {
        return p.fail(i, format!("accepted are at most {MOST_CHARACTERS} characters"));
    }
    let e = p.expression(0)?;
    match p.rest() {
        "" => Ok(e),
        _ => {
            let here = p.here();
            p.fail(p.at, format!("found {here}, accepted: an operator or the end"))
        }
    }
}

impl Expr {
    /// The program for a layer.
    ///
    /// # Errors
    /// Too long, or nested too deeply.
    pub fn compile(&self, layer: usize, heads: usize) -> Result<ScoreProgram, String> {
        let mut ops = Vec::new();
        self.emit(layer as f32, heads as f32, &mut ops);
        ScoreProgram::try_from(ops)
    }

    fn emit(&self, layer: f32, heads: f32, out: &mut Vec<ScoreOp>) {
        match self {
            Expr::Number(v) => out.push(ScoreOp::Const(*v)),
            Expr::Name(name) => out.push(match name {
                Name::Query => ScoreOp::Query,
                Name::Key => ScoreOp::Key,
                Name::Head => ScoreOp::Head,
                Name::Heads => ScoreOp::Const(heads),
                Name::Layer => ScoreOp::Const(layer),
                Name::Score => ScoreOp::Score,
                Name::Infinity => ScoreOp::Infinity,
            }),
            Expr::Call(op, args) => {
                args.iter().for_each(|a| a.emit(layer, heads, out));
                out.push(*op);
            }
        }
    }
}

impl<'a> Parser<'a> {
    /// What is left, from its first visible character on.
    fn rest(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        &self.text[self.at..]
    }

    /// What stands here, for a message.
    fn here(&mut self) -> String {
        match self.rest().chars().next() {
            Some(c) => format!("`{c}`"),
            None => "the end".to_string(),
        }
    }

    fn fail<T>(&self, at: usize, detail: String) -> Result<T, ScoreError> {
        Err(ScoreError {
            column: self.text[..at].chars().count() + 1,
            detail,
            text: self.text.to_string(),
        })
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str, also: &str) -> Result<(), ScoreError> {
        if self.eat(token) {
            return Ok(());
        }
        let here = self.here();
        self.fail(self.at, format!("found {here}, accepted: {also}`{token}`"))
    }

    /// Operators that bind at least as strongly as `least`.
    fn expression(&mut self, least: u8) -> Result<Expr, ScoreError> {
        self.nesting += 1;
        if self.nesting > MOST_NESTING {
            return self.fail(
                self.at,
                format!("nested too deeply: accepted are {MOST_NESTING} levels"),
            );
        }
        let mut left = self.value()?;
        loop {
            let rest = self.rest();
            let Some(o) = OPERATORS.iter().find(|o| rest.starts_with(o.text)) else {
                break;
            };
            if o.strength < least {
                break;
            }
            self.at += o.text.len();
            let right = self.expression(if o.op == ScoreOp::Pow {
                o.strength
            } else {
                o.strength + 1
            })?;
            let sides = if o.swap { vec![right, left] } else { vec![left, right] };
            left = Expr::Call(o.op, sides);
            if o.not {
                left = Expr::Call(ScoreOp::Not, vec![left]);
            }
        }
        self.nesting -= 1;
        Ok(left)
    }

    fn value(&mut self) -> Result<Expr, ScoreError> {
        for (token, op) in [("-", ScoreOp::Neg), ("!", ScoreOp::Not)] {
            if self.eat(token) {
                return Ok(Expr::Call(op, vec![self.expression(PREFIX)?]));
            }
        }
        if self.eat("(") {
            let inner = self.expression(0)?;
            self.expect(")", "an operator or ")?;
            return Ok(inner);
        }
        let rest = self.rest();
        let start = self.at;
        if rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return self.number(start);
        }
        let length = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let word = rest[..length].to_string();
        self.at += length;
        if let Some((_, name)) = NAMES.iter().find(|n| n.0 == word) {
            return Ok(Expr::Name(*name));
        }
        if let Some((_, op)) = FUNCTIONS.iter().find(|f| f.0 == word) {
            return self.call(&word, *op);
        }
        let names = NAMES.map(|n| n.0).join(", ");
        if word.is_empty() {
            let here = self.here();
            return self.fail(
                start,
                format!("found {here}, accepted: a number, `(`, a function or one of {names}"),
            );
        }
        let functions = FUNCTIONS.map(|f| f.0).join(", ");
        self.fail(
            start,
            format!("no name `{word}`; accepted: {names}, and the functions {functions}"),
        )
    }

    fn number(&mut self, start: usize) -> Result<Expr, ScoreError> {
        let rest = &self.text[start..];
        let mut length = 0;
        for (i, c) in rest.char_indices() {
            let sign = (c == '-' || c == '+') && rest[..i].ends_with(['e', 'E']);
            if !(c.is_ascii_digit() || c == '.' || c == 'e' || c == 'E' || sign) {
                break;
            }
            length = i + 1;
        }
        self.at = start + length;
        match rest[..length].parse::<f32>() {
            Ok(v) if v.is_finite() => Ok(Expr::Number(v)),
            _ => self.fail(
                start,
                format!("found `{}`, accepted: a number that fits 32 bits", &rest[..length]),
            ),
        }
    }

    fn call(&mut self, word: &str, op: ScoreOp) -> Result<Expr, ScoreError> {
        self.expect("(", "")?;
        let mut args = vec![self.expression(0)?];
        while args.len() < op.takes() {
            self.expect(",", &format!("{} values for `{word}`, after ", op.takes()))?;
            args.push(self.expression(0)?);
        }
        self.expect(")", "an operator or ")?;
        Ok(Expr::Call(op, args))
    }
}

#[cfg(test)]
mod tests {
    use kernels::cpu::exec::rescore;
    use proptest::prelude::*;

    use super::*;

    /// A value in double precision, and how far arithmetic in f32 may be from it.
    type Near = (f64, f64);

    /// Rounding to f32 adds this. Numbers that f32 does not have are not looked at.
    fn rounded(v: f64, err: f64) -> Option<Near> {
        if v.is_finite() && v != 0.0 && !(1e-37..1e37).contains(&v.abs()) {
            return None;
        }
        let exact = f64::from(v as f32) == v;
        Some((v, err + if exact { 0.0 } else { v.abs() * f64::from(f32::EPSILON) }))
    }

    /// Whether a is true, if f32 cannot but agree.
    fn truth((v, err): Near) -> Option<bool> {
        (err == 0.0 || v.abs() > err).then_some(v != 0.0)
    }

    /// The tree's value by the meaning of each word; `None` where rounding can turn a decision.
    fn value(e: &Expr, at: &[f64; 6]) -> Option<Near> {
        let [q, k, head, heads, layer, score] = *at;
        let (op, args) = match e {
            Expr::Number(v) => return Some((f64::from(*v), 0.0)),
            Expr::Name(n) => {
                let v = match n {
                    Name::Query => q,
                    Name::Key => k,
                    Name::Head => head,
                    Name::Heads => heads,
                    Name::Layer => layer,
                    Name::Score => score,
                    Name::Infinity => f64::INFINITY,
                };
                return Some((v, 0.0));
            }
            Expr::Call(op, args) => (op, args),
        };
        let v: Vec<Near> = args.iter().map(|a| value(a, at)).collect::<Option<_>>()?;
        let (a, ea) = v[0];
        let (b, eb) = v.get(1).copied().unwrap_or_default();
        let apart = || ea + eb == 0.0 || (a - b).abs() > ea + eb;
        let said = |t: bool| Some((f64::from(u8::from(t)), 0.0));
        match op {
            ScoreOp::Neg => Some((-a, ea)),
            ScoreOp::Abs => Some((a.abs(), ea)),
            ScoreOp::Not => said(!truth(v[0])?),
            ScoreOp::Floor => ((a - ea).floor() == (a + ea).floor()).then_some((a.floor(), 0.0)),
            ScoreOp::Tanh => rounded(a.tanh(), ea + 1e-6),
            ScoreOp::Add => rounded(a + b, ea + eb),
            ScoreOp::Sub => rounded(a - b, ea + eb),
            ScoreOp::Mul => rounded(a * b, a.abs() * eb + b.abs() * ea + ea * eb),
            ScoreOp::Div if b.abs() <= eb && eb > 0.0 => None,
            ScoreOp::Div => rounded(
                a / b,
                (a.abs() * eb + b.abs() * ea) / (b.abs() * (b.abs() - eb)).max(1e-300),
            ),
            ScoreOp::Min => Some((a.min(b), ea.max(eb))),
            ScoreOp::Max => Some((a.max(b), ea.max(eb))),
            ScoreOp::Less if apart() => said(a < b),
            ScoreOp::LessEqual if apart() => said(a <= b),
            ScoreOp::And => said(truth(v[0])? & truth(v[1])?),
            ScoreOp::Or => said(truth(v[0])? | truth(v[1])?),
            ScoreOp::If => Some(if truth(v[0])? { v[1] } else { v[2] }),
            _ => None,
        }
    }

    /// What the program makes of the scores of keys 0, 1, 2, ...
    fn run(text: &str, q: usize, head: usize, scores: &[f32]) -> Vec<f32> {
        let program = parse(text).unwrap().compile(3, 8).unwrap();
        let mut scores = scores.to_vec();
        rescore(&program, &mut scores, (q as f32, head as f32), |i| i as f32);
        scores
    }

    #[test]
    fn known_expressions() {
        let inf = f32::NEG_INFINITY;
        let scores = [0.5, -1.0, 2.0, 4.0];
        let cases: [(&str, [f32; 4]); 12] = [
            ("score", scores),
            ("score - 0.5*(q-k)", [-1.0, -2.0, 1.5, 4.0]),
            ("if(q-k<2, score, -inf)", [inf, inf, 2.0, 4.0]),
            ("k%2==0 && score>0", [1.0, 0.0, 1.0, 0.0]),
            ("-2^2 + 2^3^0", [-2.0; 4]),
            ("1 - 2 - 3 * -2", [5.0; 4]),
            ("max(score, 1) + min(k, 1)", [1.0, 2.0, 3.0, 5.0]),
            ("score / (k - 1)", [-0.5, inf, 2.0, 2.0]),
            ("sqrt(score)*0 + layer + heads + head", [13.0, inf, 13.0, 13.0]),
            ("!(k >= 1 || k != 0)", [1.0, 0.0, 0.0, 0.0]),
            (
                "floor(score) + abs(-0.25) + log(exp(0)) + tanh(0)",
                [0.25, -0.75, 2.25, 4.25],
            ),
            ("mod(k, 3) + pow(2, k)", [1.0, 3.0, 6.0, 8.0]),
        ];
        for (text, want) in cases {
            assert_eq!(run(text, 3, 2, &scores), want, "{text}");
        }
    }

    #[test]
    fn programs_are_stored_as_lists_and_checked() {
        let program = parse("if(q-k<9, score, -inf)").unwrap().compile(0, 4).unwrap();
        let json = serde_json::to_string(&program).unwrap();
        assert_eq!(serde_json::from_str::<ScoreProgram>(&json).unwrap(), program, "{json}");
        serde_json::from_str::<ScoreProgram>(r#"["score","score"]"#).unwrap_err();
    }

    #[test]
    fn errors_point_at_the_column() {
        let cases = [
            ("", 1, "found the end"),
            ("score +", 8, "found the end"),
            ("score - 0.1*(q-kk)", 16, "no name `kk`; accepted: q, k, head"),
            ("score 2", 7, "found `2`, accepted: an operator or the end"),
            ("(score", 7, "found the end, accepted: an operator or `)`"),
            ("if(q<1, 2)", 10, "3 values for `if`"),
            ("abs(1, 2)", 6, "accepted: an operator or `)`"),
            ("min 2", 5, "found `2`, accepted: `(`"),
            ("1e99", 1, "a number that fits 32 bits"),
            ("1.2.3", 1, "found `1.2.3`"),
            ("scöre", 1, "no name `sc`"),
            ("score = 1", 7, "found `=`"),
            ("é", 1, "found `é`"),
        ];
        for (text, column, want) in cases {
            let e = parse(text).unwrap_err();
            assert_eq!(e.column, column, "{text}: {e}");
            assert!(e.to_string().contains(want), "{text}: {e}");
            let pointer = e.to_string().lines().last().unwrap().chars().count();
            assert_eq!(pointer, 4 + column, "{text}");
        }
        assert!(
            parse(&"(".repeat(400))
                .unwrap_err()
                .detail
                .contains("nested too deeply")
        );
        assert!(parse(&"1+".repeat(400)).unwrap_err().detail.contains("500 characters"));
        let long = vec!["score"; 40].join("+");
        assert!(parse(&long).unwrap().compile(0, 1).unwrap_err().contains("at most 64"));
        let deep = format!("{}score{}", "1-(".repeat(20), ")".repeat(20));
        assert!(
            parse(&deep)
                .unwrap()
                .compile(0, 1)
                .unwrap_err()
                .contains("nested too deeply")
        );
    }

    fn expressions() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("q".to_string()),
            Just("k".to_string()),
            Just("head".to_string()),
            Just("heads".to_string()),
            Just("layer".to_string()),
            Just("score".to_string()),
            (0u32..40).prop_map(|v| format!("{}", f64::from(v) / 8.0)),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            let pair = (inner.clone(), inner.clone());
            prop_oneof![
                (
                    pair.clone(),
                    prop::sample::select(vec!["+", "-", "*", "/", "<", "<=", ">", ">=", "&&", "||"])
                )
                    .prop_map(|((a, b), o)| format!("({a} {o} {b})")),
                (pair, prop::sample::select(vec!["min", "max"])).prop_map(|((a, b), f)| format!("{f}({a}, {b})")),
                (
                    inner.clone(),
                    prop::sample::select(vec!["abs", "tanh", "floor", "-", "!"])
                )
                    .prop_map(|(a, f)| format!("{f}({a})")),
                (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("if({a}, {b}, {c})")),
            ]
        })
    }

    proptest! {
        /// The program gives what the parsed tree means, in double precision.
        #[test]
        fn programs_mean_what_their_trees_mean(text in expressions(), q in 0usize..200, scores in prop::collection::vec(-8i32..8, 1..150)) {
            let tree = parse(&text).unwrap();
            let Ok(program) = tree.compile(3, 8) else { return Ok(()) };
            let given: Vec<f32> = scores.iter().map(|s| *s as f32 / 4.0).collect();
            let mut got = given.clone();
            rescore(&program, &mut got, (q as f32, 5.0), |i| i as f32);
            for (i, (got, s)) in got.iter().zip(&given).enumerate() {
                let at = [q as f64, i as f64, 5.0, 8.0, 3.0, f64::from(*s)];
                let Some((want, err)) = value(&tree, &at) else { continue };
                if !err.is_finite() {
                    continue;
                }
                if !want.is_finite() {
                    prop_assert_eq!(*got, f32::NEG_INFINITY, "{}", text);
                } else {
                    prop_assert!((f64::from(*got) - want).abs() <= err, "{} at key {}: {} for {}", text, i, got, want);
                }
            }
        }

        /// No text makes the parser panic.
        #[test]
        fn any_text_is_parsed_or_refused(text in "[ -~é]{0,60}") {
            if let Err(e) = parse(&text) {
                prop_assert!(e.column >= 1 && e.column <= text.chars().count() + 1);
            }
        }
    }
}
