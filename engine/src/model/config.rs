//! Reading config.json, old and new style, with errors that name the field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::EngineError;

/// A view of config.json (or of the part of it under a key).
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    path: PathBuf,
    prefix: String,
}

impl<'a> Config<'a> {
    /// The whole config.
    pub fn new(map: &'a Map<String, Value>, path: &Path) -> Self {
        Self {
            map,
            path: path.to_path_buf(),
            prefix: String::new(),
        }
    }

    /// Whether a field is there and not null.
    pub fn has(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(|v| !v.is_null())
    }

    /// The raw value, null counted as absent.
    pub fn value(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// The object under a field.
    pub fn section(&self, field: &str) -> Option<Config<'a>> {
        let map = self.value(field)?.as_object()?;
        Some(Config {
            map,
            path: self.path.clone(),
            prefix: format!("{}{field}.", self.prefix),
        })
    }

    /// An error about a field.
    pub fn error(&self, field: &str, accepted: &str) -> EngineError {
        let found = self.map.get(field).map_or("nothing".to_string(), |v| {
            let s = v.to_string();
            if s.chars().count() > 80 {
                format!("{}...", s.chars().take(80).collect::<String>())
            } else {
                s
            }
        });
        EngineError::Config {
            path: self.path.clone(),
            field: format!("{}{field}", self.prefix),
            found,
            accepted: accepted.to_string(),
        }
    }

    /// The first of several names that is present (old and new spellings).
    fn first(&self, names: &[&'a str]) -> &'a str {
        names
            .iter()
            .find(|n| self.has(n))
            .copied()
            .unwrap_or(names.first().copied().unwrap_or(""))
    }

    /// A positive whole number, at most 2^32.
    pub fn size(&self, names: &[&'a str]) -> Result<usize, EngineError> {
        let name = self.first(names);
        match self.value(name).and_then(Value::as_u64) {
            Some(n @ 1..=0x1_0000_0000) => Ok(n as usize),
            _ => Err(self.error(name, "a whole number from 1 to 2^32")),
        }
    }

    /// As [`Config::size`], with a default when absent.
    pub fn size_or(&self, names: &[&'a str], default: usize) -> Result<usize, EngineError> {
        if names.iter().any(|n| self.has(n)) {
            self.size(names)
        } else {
            Ok(default)
        }
    }

    /// A number that may be 0.
    pub fn count_or(&self, names: &[&'a str], default: usize) -> Result<usize, EngineError> {
        let name = self.first(names);
        match self.value(name) {
            None => Ok(default),
            Some(v) => match v.as_u64() {
                Some(n @ 0..=0x1_0000_0000) => Ok(n as usize),
                _ => Err(self.error(name, "a whole number from 0 to 2^32")),
            },
        }
    }

    /// A finite number.
    pub fn float_or(&self, names: &[&'a str], default: f64) -> Result<f64, EngineError> {
        let name = self.first(names);
        match self.value(name) {
            None => Ok(default),
            Some(v) => match v.as_f64() {
                Some(x) if x.is_finite() => Ok(x),
                _ => Err(self.error(name, "a finite number")),
            },
        }
    }

    /// A boolean.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool, EngineError> {
        match self.value(name) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.error(name, "true or false")),
        }
    }

    /// A string.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.value(name).and_then(Value::as_str)
    }
}
