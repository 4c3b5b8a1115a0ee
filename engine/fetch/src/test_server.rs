//! A small HTTP/1.1 server on the loopback address, with the misbehaviours that the tests need.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// How a path is answered.
#[derive(Clone)]
pub(crate) enum Answer {
    /// The bytes, ranges honoured.
    Bytes(Vec<u8>),
    /// The bytes, always from the start.
    WithoutRanges(Vec<u8>),
    /// A status without content.
    Status(u16),
    /// A redirect.
    Redirect(String),
    /// The bytes, but only if the request carries this bearer token; 401 otherwise.
    Guarded(&'static str, Vec<u8>),
}

/// What a request asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) range: Option<u64>,
    pub(crate) token: Option<String>,
}

#[derive(Default)]
struct State {
    answers: BTreeMap<String, Answer>,
    asked: Vec<Asked>,
    /// Each of the next answers stops after so many bytes of its body and closes the connection.
    cuts: Vec<usize>,
}

/// Runs until the test process ends.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            address: format!("http://{}", listener.local_addr().unwrap()),
            state: Arc::new(Mutex::new(State::default())),
        };
        let state = server.state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(stream, &state); // a client that hangs up early is part of the tests
            }
        });
        server
    }

    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), answer);
    }

    /// The next answers break off after so many bytes, in this order.
    pub(crate) fn cut(&self, after: &[usize]) {
        self.state.lock().unwrap().cuts = after.to_vec();
    }

    /// What has been asked since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut asked = Asked {
        path,
        range: None,
        token: None,
    };
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                asked.range = value
                    .trim()
                    .trim_start_matches("bytes=")
                    .trim_end_matches('-')
                    .parse()
                    .ok()
            }
            "authorization" => asked.token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    let (answer, cut) = {
        let mut state = state.lock().unwrap();
        let answer = state.answers.get(&asked.path).cloned().unwrap_or(Answer::Status(404));
        state.asked.push(asked.clone());
        let cut = if state.cuts.is_empty() {
            None
        } else {
            Some(state.cuts.remove(0))
        };
        (answer, cut)
    };
    respond(stream, &asked, answer, cut)
}

fn respond(mut stream: TcpStream, asked: &Asked, answer: Answer, cut: Option<usize>) -> std::io::Result<()> {
    let (status, extra, body) = match answer {
        Answer::Status(status) => (status, String::new(), Vec::new()),
        Answer::Redirect(to) => (302, format!("Location: {to}\r\n"), Vec::new()),
        Answer::Guarded(token, _) if asked.token.as_deref() != Some(token) => (401, String::new(), Vec::new()),
        Answer::WithoutRanges(bytes) => (200, String::new(), bytes),
        Answer::Bytes(bytes) | Answer::Guarded(_, bytes) => match asked.range {
            Some(start) if start as usize >= bytes.len() => {
                (416, format!("Content-Range: bytes */{}\r\n", bytes.len()), Vec::new())
            }
            Some(start) => {
                let range = format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len());
                (206, range, bytes[start as usize..].to_vec())
            }
            None => (200, String::new(), bytes),
        },
    };
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n",
        body.len()
    )?;
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])?;
    stream.flush()
}
