//! A chosen variant with its options: `"dense"` or `{"sliding_window": {"window": 64}}` in JSON,
//! `dense`, `sliding_window:window=64,sinks=4`, `heads:zero=0,5-7` or `score:"score - 0.1*(q-k)"` on the command line.

use protocol::{Decimal, OptionValue, split_list};
use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::registry::{OptionKind, Options, Variant};

/// The option that a text without a name is given to.
const TEXT: &str = "expr";

/// A variant's name and the options that differ from its defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Name of the variant.
    pub variant: String,
    /// Options given.
    pub options: Options,
}

/// A value as the command line writes it. What it must be is the variant's to say ([`Choice::canonical`]).
fn value(text: &str) -> OptionValue {
    if let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
        return OptionValue::Text(inner.trim().to_string());
    }
    if let Ok(v) = text.parse() {
        return OptionValue::Whole(v);
    }
    if let Ok(v) = text.parse::<f64>()
        && v.is_finite()
    {
        return OptionValue::Decimal(Decimal(v));
    }
    OptionValue::heads(text).map_or_else(|| OptionValue::Text(text.to_string()), OptionValue::Heads)
}

impl Choice {
    /// A variant with its default options.
    pub fn plain(variant: &str) -> Self {
        Self {
            variant: variant.to_string(),
            options: Options::new(),
        }
    }

    /// Reads the command-line form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (variant, rest) = match text.split_once(':') {
            Some((v, r)) => (v.trim(), r),
            None => (text, ""),
        };
        if variant.is_empty() {
            return Err("found nothing after `=`, accepted: a variant's name".into());
        }
        let mut given: Vec<(&str, String)> = Vec::new();
        for part in split_list(rest) {
            let named = (!part.starts_with('"')).then(|| part.split_once('=')).flatten();
            match (named, given.last_mut()) {
                (Some((k, v)), _) => given.push((k.trim(), v.trim().to_string())),
                (None, _) if part.starts_with('"') => given.push((TEXT, part.to_string())),
                // `zero=0,5`: the list goes on.
                (None, Some((_, last))) => {
                    last.push(',');
                    last.push_str(part);
                }
                (None, None) => return Err(format!("option `{part}`: accepted: NAME=VALUE")),
            }
        }
        let options = given.into_iter().map(|(k, v)| (k.to_string(), value(&v)));
        Ok(Self {
            variant: variant.to_string(),
            options: options.collect(),
        })
    }

    /// The choice with every value as its option is stored: `zero=5` is a list of one head, `threshold=1` a decimal.
    /// Options that do not exist and values that do not fit are an error with what is accepted.
    pub(super) fn canonical(&self, variant: &dyn Variant) -> Result<Self, String> {
        let mut options = Options::new();
        for (name, value) in &self.options {
            let Some(spec) = variant.options().iter().find(|o| o.name == name) else {
                let known: Vec<_> = variant.options().iter().map(|o| o.name).collect();
                let accepted = if known.is_empty() {
                    "no options".to_string()
                } else {
                    known.join(", ")
                };
                return Err(format!(
                    "`{}` has no option `{name}`; accepted: {accepted}",
                    self.variant
                ));
            };
            let fits = spec.kind.fit(value);
            let value = fits.map_err(|accepted| format!("option `{name}`: found {value}, accepted: {accepted}"))?;
            options.insert(name.clone(), value);
        }
        Ok(Self {
            variant: self.variant.clone(),
            options,
        })
    }
}

impl OptionKind {
    /// The value as this kind stores it, or what would be accepted.
    fn fit(&self, value: &OptionValue) -> Result<OptionValue, String> {
        let fitting = match (self, value) {
            (Self::Whole { min, max, .. }, OptionValue::Whole(v)) if (min..=max).contains(&v) => Some(value.clone()),
            (Self::Decimal { min, max, .. }, OptionValue::Whole(_) | OptionValue::Decimal(_)) => {
                let v = match value {
                    OptionValue::Decimal(v) => v.0,
                    OptionValue::Whole(v) => *v as f64,
                    _ => f64::NAN,
                };
                (*min..=*max).contains(&v).then_some(OptionValue::Decimal(Decimal(v)))
            }
            (Self::Heads, OptionValue::Whole(v)) => {
                u16::try_from(*v).ok().map(|v| OptionValue::Heads(vec![u32::from(v)]))
            }
            (Self::Heads, OptionValue::Heads(v)) => {
                let mut v = v.clone();
                v.sort_unstable();
                v.dedup();
                Some(OptionValue::Heads(v))
            }
            (Self::Heads, OptionValue::Text(text)) => OptionValue::heads(text).map(OptionValue::Heads),
            (Self::Text { .. }, OptionValue::Text(text)) if !text.contains('"') => Some(value.clone()),
            (Self::Text { .. }, OptionValue::Whole(_) | OptionValue::Decimal(_)) => {
                Some(OptionValue::Text(value.to_string()))
            }
            _ => None,
        };
        fitting.ok_or_else(|| match self {
            Self::Whole { min, max, .. } => format!("{min} to {max}"),
            Self::Decimal { min, max, .. } => format!("{min} to {max}"),
            Self::Heads => "head numbers, for example 0,5-7".to_string(),
            Self::Text { .. } => "text without quotation marks in it".to_string(),
        })
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.variant)?;
        for (i, (k, v)) in self.options.iter().enumerate() {
            write!(f, "{}{k}={v}", if i == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

fn json_of(value: &OptionValue) -> serde_json::Value {
    match value {
        OptionValue::Whole(v) => (*v).into(),
        OptionValue::Decimal(v) => v.0.into(),
        OptionValue::Heads(v) => v.clone().into(),
        OptionValue::Text(v) => v.clone().into(),
    }
}

fn of_json(value: &serde_json::Value) -> Option<OptionValue> {
    match value {
        serde_json::Value::Number(n) => {
            let whole = n.as_u64().map(OptionValue::Whole);
            whole.or_else(|| n.as_f64().map(|v| OptionValue::Decimal(Decimal(v))))
        }
        serde_json::Value::String(s) => Some(OptionValue::Text(s.trim().to_string())),
        serde_json::Value::Array(a) => {
            let head = |v: &serde_json::Value| u16::try_from(v.as_u64()?).ok().map(u32::from);
            a.iter().map(head).collect::<Option<_>>().map(OptionValue::Heads)
        }
        _ => None,
    }
}

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.options.is_empty() {
            return s.serialize_str(&self.variant);
        }
        let options: std::collections::BTreeMap<&str, serde_json::Value> =
            self.options.iter().map(|(k, v)| (k.as_str(), json_of(v))).collect();
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry(&self.variant, &options)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(d)?;
        match value {
            serde_json::Value::String(s) => Ok(Self::plain(&s)),
            serde_json::Value::Object(map) if map.len() == 1 => {
                let Some((variant, options)) = map.into_iter().next() else {
                    return Err(D::Error::custom("empty choice"));
                };
                let serde_json::Value::Object(given) = options else {
                    return Err(D::Error::custom(format!(
                        "options of `{variant}`: found {options}, accepted: {{\"OPTION\": VALUE}}"
                    )));
                };
                let mut options = Options::new();
                for (name, value) in given {
                    let Some(value) = of_json(&value) else {
                        return Err(D::Error::custom(format!(
                            "options of `{variant}`: `{name}`: found {value}, accepted: a number, a text, or a list of \
                             head numbers"
                        )));
                    };
                    options.insert(name, value);
                }
                Ok(Self { variant, options })
            }
            other => Err(D::Error::custom(format!(
                "found {other}, accepted: \"NAME\" or {{\"NAME\": {{\"OPTION\": VALUE}}}}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_reads_back() {
        let forms = [
            "dense",
            "sliding_window:sinks=4,window=64",
            "heads:mean=7,zero=0,5-6",
            "block_skip:threshold=0.001",
            "score:expr=\"if(q-k<=2, score, -inf)\",zero=1",
        ];
        for form in forms {
            let choice = Choice::parse(form).unwrap();
            assert_eq!(choice.to_string(), form);
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(serde_json::from_str::<Choice>(&json).unwrap(), choice, "{json}");
        }
        // The short ways to write the same.
        let text = |t: &str| Choice::parse(t).unwrap().options["expr"].clone();
        let want = OptionValue::Text("if(a, b, c)".into());
        for form in [
            "score:\"if(a, b, c)\"",
            "score:expr=if(a, b, c)",
            "score: expr = \"if(a, b, c)\"",
        ] {
            assert_eq!(text(form), want, "{form}");
        }
        for wrong in ["", ":k=1", "heads:zero"] {
            Choice::parse(wrong).unwrap_err();
        }
        assert_eq!(split_list("a(b,c),\"d,e\", f"), ["a(b,c)", "\"d,e\"", "f"]);
    }
}
