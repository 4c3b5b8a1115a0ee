//! One-time links and the sessions they open. Nothing of it is ever logged.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, header};

use crate::host::{StartError, random};

/// Sessions kept; the oldest is forgotten first.
const SESSIONS: usize = 64;
/// Links that may wait to be opened, and opened ones that are remembered.
const LINKS: usize = 16;

#[derive(Default)]
struct Keys {
    links: VecDeque<String>,
    spent: VecDeque<String>,
    sessions: VecDeque<String>,
}

pub(super) struct Auth {
    /// Cookies are shared by all ports of a machine, so each host has its own name for it.
    cookie: String,
    keys: Mutex<Keys>,
}

/// What a link led to.
pub(super) enum Entry {
    /// A new session with this key.
    Granted(String),
    /// It was opened before.
    Spent,
    /// There is no such link.
    Unknown,
}

/// 32 random bytes in hex.
fn key() -> Result<String, StartError> {
    Ok(random::<32>()?.iter().map(|b| format!("{b:02x}")).collect())
}

/// Compares without telling by its time where the difference is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

fn push(queue: &mut VecDeque<String>, item: String, most: usize) {
    queue.push_back(item);
    if queue.len() > most {
        queue.pop_front();
    }
}

impl Auth {
    pub fn new(port: u16) -> Self {
        Self {
            cookie: format!("model1_{port}"),
            keys: Mutex::default(),
        }
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Token of a new link.
    pub fn new_link(&self) -> Result<String, StartError> {
        let token = key()?;
        push(&mut self.keys().links, token.clone(), LINKS);
        Ok(token)
    }

    /// What a link is worth, without opening it: `good`, `spent` or `unknown`.
    pub fn worth(&self, token: &str) -> &'static str {
        let keys = self.keys();
        if keys.links.iter().any(|t| same(t, token)) {
            "good"
        } else if keys.spent.iter().any(|t| same(t, token)) {
            "spent"
        } else {
            "unknown"
        }
    }

    /// Opens a link.
    pub fn enter(&self, token: &str) -> Result<Entry, StartError> {
        let fresh = key()?;
        let mut keys = self.keys();
        if let Some(i) = keys.links.iter().position(|t| same(t, token)) {
            keys.links.remove(i);
            push(&mut keys.spent, token.to_string(), LINKS);
            push(&mut keys.sessions, fresh.clone(), SESSIONS);
            return Ok(Entry::Granted(fresh));
        }
        let spent = keys.spent.iter().any(|t| same(t, token));
        Ok(if spent { Entry::Spent } else { Entry::Unknown })
    }

    /// `Set-Cookie` of a session.
    pub fn cookie(&self, key: &str) -> String {
        format!("{}={key}; Path=/ws; HttpOnly; SameSite=Strict", self.cookie)
    }

    fn is_session(&self, key: &str) -> bool {
        self.keys().sessions.iter().any(|k| same(k, key))
    }

    /// Whether a request carries a session: browsers by cookie, programs by `Authorization`.
    pub fn admits(&self, headers: &HeaderMap, browser: bool) -> bool {
        if !browser {
            let bearer = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
            return bearer
                .and_then(|b| b.strip_prefix("Bearer "))
                .is_some_and(|k| self.is_session(k));
        }
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|h| h.to_str().ok());
        cookies
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(name, value)| name == self.cookie && self.is_session(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(entry: Entry) -> String {
        match entry {
            Entry::Granted(key) => key,
            _ => panic!("not granted"),
        }
    }

    #[test]
    fn a_link_opens_once() {
        let auth = Auth::new(80);
        let token = auth.new_link().unwrap();
        assert!(matches!(auth.enter("x").unwrap(), Entry::Unknown));
        assert_eq!((auth.worth(&token), auth.worth("x")), ("good", "unknown"));
        let key = granted(auth.enter(&token).unwrap());
        assert_eq!(auth.worth(&token), "spent");
        assert!(matches!(auth.enter(&token).unwrap(), Entry::Spent));
        assert_ne!(key, token);
        assert_eq!(key.len(), 64);

        let mut headers = HeaderMap::new();
        assert!(!auth.admits(&headers, true) && !auth.admits(&headers, false));
        let cookie = format!("a=b; model1_80={key}; c=d");
        headers.insert(header::COOKIE, cookie.parse().unwrap());
        assert!(auth.admits(&headers, true));
        assert!(!auth.admits(&headers, false), "programs do not come by cookie");
        headers.insert(header::COOKIE, format!("model1_81={key}").parse().unwrap());
        assert!(!auth.admits(&headers, true), "a cookie of another host");
        headers.insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
        assert!(auth.admits(&headers, false) && !auth.admits(&headers, true));
        headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        assert!(!auth.admits(&headers, false), "a link is no key");
    }

    #[test]
    fn old_links_are_forgotten() {
        let auth = Auth::new(80);
        let first = auth.new_link().unwrap();
        (0..LINKS).for_each(|_| drop(auth.new_link().unwrap()));
        assert!(matches!(auth.enter(&first).unwrap(), Entry::Unknown));
    }
}
