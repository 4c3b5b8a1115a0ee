//! Downloads that survive a broken line: each try asks for the bytes that are still missing.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::error::at;
use crate::files::{self, CHUNK, tell};
use crate::{FetchError, Stage, Watch};

/// Tries in a row without a single new byte.
const TRIES: u32 = 4;
/// The longest a body may take before the connection is dropped and the rest asked for anew. A stalled line costs this
/// long at most; a slow one only pays for a new connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// JSON answers beyond this are not listings of a model.
#[cfg(feature = "hub")]
const TEXT_LIMIT: u64 = 32 * 1024 * 1024;

/// An HTTP client with our limits. Follows redirects (the token stays with the first host), uses the proxy that the
/// environment names.
pub(crate) struct Client {
    agent: Agent,
    /// Pause before the second try; doubles with each further one.
    pause: Duration,
}

/// One file to download.
pub(crate) struct Wanted<'a> {
    pub(crate) url: &'a str,
    pub(crate) token: Option<&'a str>,
    /// What the watcher is told.
    pub(crate) name: &'a str,
    /// Where the bytes go. Bytes already there count as the file's beginning.
    pub(crate) part: &'a Path,
    /// The published length.
    pub(crate) size: Option<u64>,
}

/// How one try failed: worth another, or not.
enum Failure {
    Passing(String),
    Final(FetchError),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Failure::Final(error)
    }
}

impl Client {
    /// A client that pauses `pause` before its second try.
    pub(crate) fn new(pause: Duration) -> Client {
        // The system's certificates, so that a company's own authority works; Mozilla's list where there are none.
        let native: Vec<_> = rustls_native_certs::load_native_certs()
            .certs
            .iter()
            .map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned())
            .collect();
        let roots = if native.is_empty() {
            RootCerts::WebPki
        } else {
            RootCerts::Specific(Arc::new(native))
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("model1-explorer/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_recv_body(Some(BODY_TIMEOUT))
            .build()
            .new_agent();
        Client { agent, pause }
    }

    /// The text behind `url`.
    #[cfg(feature = "hub")]
    pub(crate) fn text(&self, url: &str, token: Option<&str>, watch: &mut Watch<'_>) -> Result<String, FetchError> {
        self.persist(
            url,
            url,
            watch,
            |_| {
                let mut response = self.request(url, token, 0)?;
                let text = response.body_mut().with_config().limit(TEXT_LIMIT).read_to_string();
                text.map_err(|error| Failure::Passing(error.to_string()))
            },
            || 0,
        )
    }

    /// Completes `wanted.part`. Only the length is checked here.
    pub(crate) fn download(&self, wanted: &Wanted<'_>, watch: &mut Watch<'_>) -> Result<(), FetchError> {
        let attempt = |watch: &mut Watch<'_>| self.attempt(wanted, watch);
        self.persist(wanted.url, wanted.name, watch, attempt, || files::length(wanted.part))
    }

    /// Calls `attempt` until it succeeds, fails for good, or has failed [`TRIES`] times in a row without getting further
    /// than ever before (`reached`).
    fn persist<T>(
        &self,
        url: &str,
        name: &str,
        watch: &mut Watch<'_>,
        mut attempt: impl FnMut(&mut Watch<'_>) -> Result<T, Failure>,
        reached: impl Fn() -> u64,
    ) -> Result<T, FetchError> {
        let (mut furthest, mut idle, mut tries) = (reached(), 0, 0);
        loop {
            let reason = match attempt(watch) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => reason,
            };
            tries += 1;
            idle = if reached() > furthest { 0 } else { idle + 1 };
            furthest = furthest.max(reached());
            if idle >= TRIES {
                return Err(FetchError::Unreachable {
                    url: url.to_owned(),
                    reason,
                    tries,
                });
            }
            tell(watch, Stage::Wait, name, furthest, None)?;
            sleep(self.pause * 2_u32.pow(idle.saturating_sub(1)));
        }
    }

    /// One request for everything from `offset` on. Statuses other than success are turned into failures, except 416.
    fn request(&self, url: &str, token: Option<&str>, offset: u64) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        let response = request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => Failure::Final(FetchError::Name {
                what: "address",
                name: url.to_owned(),
            }),
            error => Failure::Passing(error.to_string()),
        })?;
        let status = response.status().as_u16();
        let url = url.to_owned();
        match status {
            200 | 206 | 416 => Ok(response),
            401 | 403 => Err(Failure::Final(FetchError::Denied {
                url,
                status,
                with_token: token.is_some(),
            })),
            404 | 410 => Err(Failure::Final(FetchError::NotFound { url, status })),
            408 | 429 | 500.. => Err(Failure::Passing(format!("the server answered with status {status}"))),
            _ => Err(Failure::Final(FetchError::Status { url, status })),
        }
    }

    fn attempt(&self, wanted: &Wanted<'_>, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let Wanted {
            url, name, part, size, ..
        } = *wanted;
        let mut offset = files::length(part);
        if size.is_some_and(|size| offset > size) {
            files::remove(part)?;
            offset = 0;
        }
        if size.is_some_and(|size| offset == size && size > 0) {
            return Ok(());
        }
        tell(watch, Stage::Download, name, offset, size)?;
        let response = self.request(url, wanted.token, offset)?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let total = match response.status().as_u16() {
            206 => match header(header::CONTENT_RANGE).and_then(content_range) {
                Some((start, total)) if start == offset => total,
                _ => {
                    files::remove(part)?;
                    return Err(Failure::Passing(
                        "the server sent another range than was asked for".into(),
                    ));
                }
            },
            416 => {
                files::remove(part)?;
                return Err(Failure::Passing("the server has no such range".into()));
            }
            // No range was asked for, or the server knows none: everything from the start.
            _ => {
                offset = 0;
                header(header::CONTENT_LENGTH).and_then(|value| value.parse().ok())
            }
        };
        if let (Some(expected), Some(found)) = (size, total)
            && expected != found
        {
            return Err(FetchError::WrongSize {
                file: name.to_owned(),
                found,
                expected,
            }
            .into());
        }
        let file = OpenOptions::new()
            .create(true)
            .append(offset > 0)
            .write(true)
            .truncate(offset == 0)
            .open(part);
        let mut file = file.map_err(at(part))?;
        receive(
            wanted,
            &mut response.into_body().into_reader(),
            &mut file,
            offset,
            size.or(total),
            watch,
        )
    }
}

/// Writes the body to the file, which holds `offset` bytes already.
fn receive(
    wanted: &Wanted<'_>,
    body: &mut impl Read,
    file: &mut File,
    offset: u64,
    total: Option<u64>,
    watch: &mut Watch<'_>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; CHUNK];
    let mut done = offset;
    loop {
        let count = body.read(&mut buffer).map_err(|error| {
            let total = total.map_or_else(|| "an unknown number".to_owned(), |total| total.to_string());
            Failure::Passing(format!("the connection broke after {done} of {total} bytes: {error}"))
        })?;
        if count == 0 {
            break;
        }
        file.write_all(&buffer[..count]).map_err(at(wanted.part))?;
        done += count as u64;
        tell(watch, Stage::Download, wanted.name, done, total)?;
    }
    match total {
        Some(total) if done < total => Err(Failure::Passing(format!("the server sent {done} of {total} bytes"))),
        Some(expected) if done > expected => {
            files::remove(wanted.part)?;
            Err(FetchError::WrongSize {
                file: wanted.name.to_owned(),
                found: done,
                expected,
            }
            .into())
        }
        _ => Ok(()),
    }
}

/// Start and total of `bytes 5-9/10`; the total may be `*`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    Some((start, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for wrong in ["", "bytes */10", "items 5-9/10", "bytes 5-9"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
