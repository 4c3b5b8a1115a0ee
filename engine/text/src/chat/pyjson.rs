//! JSON and values written the way Python writes them: prompts are made of such text, to the byte.

use serde_json::Value;

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write_json(value, indent, 0, &mut out);
    out
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) => quote(s, out),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(i, indent, depth + 1, out);
                write_json(item, indent, depth + 1, out);
            }
            close(items.is_empty(), indent, depth, out);
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (i, (key, item)) in fields.iter().enumerate() {
                separate(i, indent, depth + 1, out);
                quote(key, out);
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            close(fields.is_empty(), indent, depth, out);
            out.push('}');
        }
    }
}

fn separate(i: usize, indent: Option<usize>, depth: usize, out: &mut String) {
    match indent {
        None if i > 0 => out.push_str(", "),
        None => {}
        Some(width) => {
            out.push_str(if i > 0 { ",\n" } else { "\n" });
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }
}

fn close(empty: bool, indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(width) = indent.filter(|_| !empty) {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * depth));
    }
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn number(n: &serde_json::Number) -> String {
    if n.is_f64() {
        n.as_f64().map_or_else(|| n.to_string(), float)
    } else {
        n.to_string()
    }
}

/// `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16.
pub fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') {
        plain
    } else {
        format!("{plain}.0")
    }
}

/// `str(value)`, or `repr(value)` inside lists and dictionaries.
pub fn python(value: &Value, nested: bool, out: &mut String) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) if nested => python_quote(s, out),
        Value::String(s) => out.push_str(s),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(i, None, 0, out);
                python(item, true, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (i, (key, item)) in fields.iter().enumerate() {
                separate(i, None, 0, out);
                python_quote(key, out);
                out.push_str(": ");
                python(item, true, out);
            }
            out.push('}');
        }
    }
}

fn python_quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(mark);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // Expected values were written by Python 3.
    #[test]
    fn json_like_python() {
        let v = json!({"a": [1, 2.0, -0.0, 1e16, 1.5e-7, 123456789.125, true, null], "é\"\n\u{1}\u{7f}": {}, "e": []});
        assert_eq!(
            dumps(&v, None),
            "{\"a\": [1, 2.0, -0.0, 1e+16, 1.5e-07, 123456789.125, true, null], \"é\\\"\\n\\u0001\u{7f}\": {}, \"e\": []}"
        );
        assert_eq!(
            dumps(&json!({"a": [1], "b": {}}), Some(2)),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
    }

    #[test]
    fn floats_like_python() {
        let cases = [
            (0.0, "0.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e22, "1e+22"),
            (1e15, "1000000000000000.0"),
        ];
        for (x, text) in cases {
            assert_eq!(float(x), text);
        }
    }

    #[test]
    fn values_like_python() {
        let mut out = String::new();
        python(&json!(["it's", "\"", {"k": null, "t": true}, 1.0]), false, &mut out);
        assert_eq!(out, "[\"it's\", '\"', {'k': None, 't': True}, 1.0]");
    }
}
