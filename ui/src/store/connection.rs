//! The connection: dialling, handshake, waiting longer after each failure.

use protocol::{ClientBody, ClientFrame, Cursor, Hello, encode};

use crate::link::{Dialer, Link, LinkEvent};

/// Where the connection stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Connection {
    /// Not yet accepted.
    Connecting,
    /// Frames flow.
    Ready,
    /// Lost; dials again at this time.
    Waiting {
        /// Why it was lost.
        reason: String,
        /// When it dials again, in seconds of the pump's clock.
        until: f64,
        /// Attempts so far.
        attempt: u32,
    },
    /// The host will not have us: its sentence. Dialling again would not help.
    Refused(String),
}

/// First wait after a failure, in seconds; doubles up to [`MAX_WAIT`].
const FIRST_WAIT: f64 = 0.25;
const MAX_WAIT: f64 = 8.0;

pub(super) struct Wire {
    dialer: Dialer,
    client: String,
    link: Option<Box<dyn Link>>,
    connection: Connection,
    attempt: u32,
    next: u64,
    pub(super) cursor: Cursor,
}

impl Wire {
    pub(super) fn new(dialer: Dialer, client: &str) -> Self {
        Self {
            dialer,
            client: client.to_string(),
            link: None,
            connection: Connection::Connecting,
            attempt: 0,
            next: 1,
            cursor: Cursor::default(),
        }
    }

    /// The way to the host, for another time; the connection ends.
    pub(super) fn into_dialer(self) -> Dialer {
        self.dialer
    }

    /// What this interface calls itself.
    pub(super) fn client(&self) -> &str {
        &self.client
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn is_ready(&self) -> bool {
        self.connection == Connection::Ready
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn poll(&mut self, ctx: &egui::Context, now: f64) -> Vec<LinkEvent> {
        if let Connection::Waiting { until, .. } = self.connection
            && now >= until
        {
            self.connection = Connection::Connecting;
        }
        if self.link.is_none() && self.connection == Connection::Connecting {
            self.link = Some((self.dialer)(ctx));
        }
        self.link.as_mut().map(|l| l.poll()).unwrap_or_default()
    }

    pub(super) fn wake_in(&self, now: f64) -> Option<f64> {
        match self.connection {
            Connection::Waiting { until, .. } => Some((until - now).max(0.0)),
            _ => None,
        }
    }

    pub(super) fn hello(&mut self, cursor: Cursor) {
        let hello = Hello {
            cursor,
            ..Hello::new(&self.client)
        };
        let frame = ClientFrame {
            id: 1,
            body: ClientBody::Hello(hello),
        };
        // A handshake is a few dozen bytes: it cannot be too large.
        if let Ok(bytes) = encode(&frame) {
            self.send(bytes);
        }
    }

    pub(super) fn send(&mut self, frame: Vec<u8>) {
        if let Some(link) = &mut self.link {
            link.send(frame);
        }
    }

    pub(super) fn accepted(&mut self) {
        self.attempt = 0;
        self.connection = Connection::Ready;
    }

    pub(super) fn refused(&mut self, sentence: String) {
        self.link = None;
        self.connection = Connection::Refused(sentence);
    }

    pub(super) fn lost(&mut self, reason: &str, now: f64) {
        if matches!(self.connection, Connection::Refused(_)) {
            return;
        }
        self.link = None;
        self.attempt += 1;
        let wait = (FIRST_WAIT * f64::from(2u32.pow(self.attempt.min(8) - 1))).min(MAX_WAIT);
        self.connection = Connection::Waiting {
            reason: reason.to_string(),
            until: now + wait,
            attempt: self.attempt,
        };
    }

    pub(super) fn break_off(&mut self, reason: &str, now: f64) {
        self.lost(reason, now);
    }

    pub(super) fn reconnect_now(&mut self) {
        if !self.is_ready() {
            self.link = None;
            self.connection = Connection::Connecting;
        }
    }
}
