//! The two plain requests that come before a WebSocket. Ten lines of HTTP instead of a client with everything: no
//! redirect may be followed here, and no proxy asked.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use protocol::{ErrorInfo, ErrorKind};

use super::error;

/// Longest an address may take to answer the call.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest it may then be silent.
const ANSWER: Duration = Duration::from_secs(10);
/// More than this is no answer of a host.
const MOST: u64 = 64 << 10;

/// An answer.
pub(super) struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|l| l.split_once(':'));
        lines
            .into_iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
    }
}

/// A connection to `HOST:PORT`.
///
/// # Errors
/// Why there is none, with what to look at.
pub(super) fn dial(authority: &str) -> Result<TcpStream, ErrorInfo> {
    let unreachable = |why: String| {
        error(
            ErrorKind::Resource,
            format!("{authority} cannot be reached: {why}."),
            "Does the host run there (./run --serve --listen ADDRESS)? Are address and port right? Does a firewall stand \
             between?",
        )
    };
    let addresses = authority
        .to_socket_addrs()
        .map_err(|_| unreachable("no machine of that name is known".into()))?;
    let mut last = "no machine of that name is known".to_string();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => {
                let limits = stream
                    .set_read_timeout(Some(ANSWER))
                    .and_then(|()| stream.set_write_timeout(Some(ANSWER)))
                    .and_then(|()| stream.set_nodelay(true));
                limits.map_err(|e| unreachable(e.to_string()))?;
                return Ok(stream);
            }
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => last = "nothing answers".into(),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => last = "nothing listens on that port".into(),
            Err(e) => last = e.to_string(),
        }
    }
    Err(unreachable(last))
}

/// `GET` of a path.
///
/// # Errors
/// Nothing there, or no HTTP.
pub(super) fn get(authority: &str, path: &str) -> Result<Answer, ErrorInfo> {
    let mut stream = dial(authority)?;
    let strange = |_| {
        error(
            ErrorKind::Resource,
            format!("What listens at {authority} does not answer as a host does."),
            "Is the port right? The host prints its address when it starts.",
        )
    };
    let asked = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    let mut bytes = Vec::new();
    stream
        .write_all(asked.as_bytes())
        .and_then(|()| stream.take(MOST).read_to_end(&mut bytes))
        .map_err(strange)?;
    answer(&bytes)
        .ok_or(std::io::ErrorKind::InvalidData.into())
        .map_err(strange)
}

fn answer(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        head: head.to_string(),
        body: bytes[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_other_things_are_none() {
        let a = answer(b"HTTP/1.1 303 See Other\r\nSet-Cookie: model1_80=ab; Path=/ws\r\n\r\nbody").unwrap();
        assert_eq!((a.status, a.body.as_slice()), (303, &b"body"[..]));
        assert_eq!(a.header("set-cookie"), Some("model1_80=ab; Path=/ws"));
        assert_eq!(a.header("location"), None);
        for bytes in [
            &b""[..],
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
        ] {
            assert!(answer(bytes).is_none());
        }
    }
}
