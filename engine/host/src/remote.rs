//! Another host, reached over the network: what a window of this machine needs to work on one that runs elsewhere.
//!
//! The other side is a [`crate::web`] server. Its one-time link is exchanged for a session's key once; the key opens
//! the WebSocket, again after a lost connection. Nothing here is encrypted: an SSH tunnel does that.

mod http;
mod wire;

use std::sync::{Arc, Mutex, PoisonError};

use protocol::{ErrorInfo, ErrorKind, RemoteHost};

pub use wire::RemoteConnection;

/// A host on another machine, with the key that lets in.
#[derive(Debug)]
pub struct Remote {
    authority: String,
    token: String,
    /// Of the session that the token was exchanged for.
    key: Mutex<Option<String>>,
}

fn error(kind: ErrorKind, what: impl Into<String>, remedy: &str) -> ErrorInfo {
    ErrorInfo::new(kind, what).remedy(remedy)
}

const ACCEPTED: &str = "Accepted: HOST:PORT, e.g. 192.168.1.5:8080, with the token beside it, or the whole link that \
                        the other host printed.";
const NEW_LINK: &str = "Press Enter in that host's terminal: it prints a new link.";

/// `HOST:PORT` and token of what people write: the whole link in the address field, or its two parts.
///
/// # Errors
/// What is missing or cannot be used, with what is accepted.
pub fn parse(address: &str, token: &str) -> Result<(String, String), ErrorInfo> {
    let bad = |what: String| error(ErrorKind::Input, what, ACCEPTED);
    let address = address.trim();
    if address.starts_with("https://") {
        let remedy = "Hosts speak http. To encrypt it, let ssh -L 8080:127.0.0.1:PORT carry it and connect to \
                      127.0.0.1:8080.";
        return Err(error(ErrorKind::Input, "The address begins with https.", remedy));
    }
    let rest = address.strip_prefix("http://").unwrap_or(address);
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(a, p)| (a, p));
    if authority.is_empty() {
        return Err(bad("There is no address.".into()));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:[]%".contains(c);
    let port = authority
        .rsplit_once(':')
        .and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?)))
        .filter(|(name, port)| !name.is_empty() && *port > 0 && (!name.contains(':') || name.ends_with(']')));
    if !authority.chars().all(good) || port.is_none() {
        let shown: String = authority.chars().take(80).collect();
        return Err(bad(format!("`{shown}` is not an address with a port.")));
    }
    let linked = path
        .strip_prefix("enter/")
        .map(|t| t.split(['?', '/']).next().unwrap_or(t));
    let token = match token.trim() {
        "" => linked.unwrap_or_default(),
        given => given.rsplit('/').next().unwrap_or(given),
    };
    if token.is_empty() {
        return Err(bad("There is no token.".into()));
    }
    if token.len() > 128 || !token.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(bad("The token is not one: it has letters that no token has.".into()));
    }
    Ok((authority.to_string(), token.to_string()))
}

/// Looks whether a host is there that can be connected to. Spends nothing. With `same_build`, one whose messages
/// differ from ours is refused.
///
/// # Errors
/// Nothing there, something else there, another build, a token that lets nobody in: each with what to do.
pub fn look(address: &str, token: &str, same_build: bool) -> Result<RemoteHost, ErrorInfo> {
    let (authority, token) = parse(address, token)?;
    let answer = http::get(&authority, &format!("/health?link={token}"))?;
    let health: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |field: &str| health[field].as_str().unwrap_or_default();
    if answer.status == 403 {
        let name = authority.rsplit_once(':').map_or(authority.as_str(), |(name, _)| name);
        return Err(error(
            ErrorKind::Refused,
            format!("The host at {authority} does not answer to the name {name}."),
            &format!("Use its numeric address, or start it with --name {name}."),
        ));
    }
    if answer.status != 200 || text("program") != "model1" {
        return Err(error(
            ErrorKind::Input,
            format!("What answers at {authority} is no host of MODEL1 Explorer."),
            "Is the port right? The host prints its address when it starts (./run --serve).",
        ));
    }
    let host = (
        health["protocol"]
            .as_u64()
            .and_then(|v| u32::try_from(v).ok())
            .unwrap_or(0),
        u64::from_str_radix(text("schema"), 16).unwrap_or(0),
    );
    let own = (protocol::PROTOCOL_VERSION, protocol::SCHEMA_HASH);
    if let Some(sentence) = protocol::mismatch("window", own, host).filter(|_| same_build) {
        let remedy = "A browser opens the other host's own page instead: give it the link.";
        return Err(error(ErrorKind::Refused, sentence, remedy));
    }
    match text("link") {
        "good" => {}
        "spent" => {
            let what = format!("The link of {authority} was used already: each works once.");
            return Err(error(ErrorKind::Refused, what, NEW_LINK));
        }
        _ => {
            let what = format!("The token is not one of the host at {authority}.");
            return Err(error(ErrorKind::Refused, what, NEW_LINK));
        }
    }
    Ok(RemoteHost {
        authority,
        token,
        version: text("version").to_string(),
    })
}

impl Remote {
    /// A host that [`look`] found.
    pub fn new(authority: &str, token: &str) -> Arc<Self> {
        Arc::new(Self {
            authority: authority.to_string(),
            token: token.to_string(),
            key: Mutex::new(None),
        })
    }

    /// Whether this is the host of that address and token.
    pub fn is(&self, authority: &str, token: &str) -> bool {
        self.authority == authority && self.token == token
    }

    /// Connects; takes as long as the network does. `wake` is called when something arrived.
    ///
    /// # Errors
    /// In a sentence: nothing there, a token that lets nobody in.
    pub fn connect(&self, wake: impl Fn() + Send + 'static) -> Result<RemoteConnection, String> {
        let key = self.session()?;
        RemoteConnection::open(&self.authority, &key, wake)
    }

    /// The session's key: exchanged for the token at the first connection.
    fn session(&self) -> Result<String, String> {
        let mut key = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*key {
            return Ok(key.clone());
        }
        let answer = http::get(&self.authority, &format!("/enter/{}", self.token)).map_err(|e| e.to_string())?;
        let fresh = answer
            .header("set-cookie")
            .and_then(|c| c.split(';').next()?.split_once('='))
            .map(|(_, key)| key.trim().to_string())
            .ok_or_else(|| format!("{} let nobody in with this token. {NEW_LINK}", self.authority))?;
        *key = Some(fresh.clone());
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        let token = "0123abcd";
        for (address, given, authority) in [
            ("127.0.0.1:8080", token, "127.0.0.1:8080"),
            (" http://box.local:80/ ", token, "box.local:80"),
            ("http://127.0.0.1:8080/enter/0123abcd", "", "127.0.0.1:8080"),
            ("http://127.0.0.1:8080/enter/0123abcd?test", "", "127.0.0.1:8080"),
            ("[::1]:8080/enter/0123abcd", "", "[::1]:8080"),
            ("box:1", "http://box:1/enter/0123abcd", "box:1"),
        ] {
            assert_eq!(
                parse(address, given).unwrap(),
                (authority.into(), token.into()),
                "{address}"
            );
        }
        for (address, given, what) in [
            ("", token, "no address"),
            ("box", token, "with a port"),
            ("box:0", token, "with a port"),
            ("box:99999", token, "with a port"),
            ("::1:80", token, "with a port"),
            ("a b:80", token, "with a port"),
            ("box:80", "", "no token"),
            ("box:80", "over there", "token is not one"),
            ("https://box:80", token, "https"),
        ] {
            let e = parse(address, given).unwrap_err();
            assert!(e.what.contains(what) && !e.remedy.is_empty(), "{address}: {e}");
        }
    }
}
