//! A chosen variant with its options: `"dense"` or `{"sliding_window": {"window": 64}}` in JSON,
//! `dense` or `sliding_window:window=64,sinks=4` on the command line.

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::registry::Options;

/// A variant's name and the options that differ from its defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Name of the variant.
    pub variant: String,
    /// Options given.
    pub options: Options,
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
        let mut choice = Self::plain(variant);
        for part in rest.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let value = part
                .split_once('=')
                .and_then(|(k, v)| Some((k.trim(), v.trim().parse::<u64>().ok()?)));
            let Some((key, value)) = value else {
                return Err(format!("option `{part}`: accepted: NAME=WHOLE NUMBER"));
            };
            choice.options.insert(key.to_string(), value.into());
        }
        Ok(choice)
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

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.options.is_empty() {
            return s.serialize_str(&self.variant);
        }
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry(&self.variant, &self.options)?;
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
                let options: Options = serde_json::from_value(options)
                    .map_err(|e| D::Error::custom(format!("options of `{variant}`: {e}")))?;
                Ok(Self { variant, options })
            }
            other => Err(D::Error::custom(format!(
                "found {other}, accepted: \"NAME\" or {{\"NAME\": {{\"OPTION\": NUMBER}}}}"
            ))),
        }
    }
}
