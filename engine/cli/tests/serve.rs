//! `serve` as a program: the address it prints, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use common::*;

struct Served {
    child: Child,
    link: String,
    stderr: BufReader<std::process::ChildStderr>,
    dir: tempfile::TempDir,
}

impl Served {
    fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut all = vec!["serve", "--data", data.to_str().unwrap(), "--threads", "1"];
        all.extend(args);
        let mut child = command(&all).stdin(Stdio::null()).spawn().unwrap();
        let mut link = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut link)
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            link: link.trim_end().to_string(),
            stderr,
            dir,
        }
    }

    fn get(&self, path: &str) -> String {
        let address = self.link.strip_prefix("http://").unwrap().split('/').next().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Ctrl-C; the exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(
            std::process::Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .unwrap()
                .success()
        );
        let code = self.child.wait().unwrap().code();
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (code, said)
    }
}

#[test]
fn an_address_is_printed_and_ctrl_c_ends_it() {
    let served = Served::new(&["--model", &golden("tiny-llama")]);
    assert!(
        served.link.starts_with("http://127.0.0.1:") && served.link.contains("/enter/"),
        "{}",
        served.link
    );
    assert!(served.get("/health").contains("\"ok\":true"));
    let path = &served.link[served.link.find("/enter/").unwrap()..];
    let first = served.get(path);
    assert!(
        first.starts_with("HTTP/1.1 303") && first.contains("model1_"),
        "{first}"
    );
    assert!(!served.get(path).contains("set-cookie"), "the link works once");
    let data = served.dir.path().join("data/lock");
    assert!(data.is_file());
    let token = path.trim_start_matches("/enter/").to_string();
    let (code, said) = served.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("works for one browser") && !said.contains("panicked"),
        "{said}"
    );
    assert!(!said.contains(&token), "secrets stay out of logs");
}

#[test]
fn letting_others_in_is_warned_of() {
    let served = Served::new(&["--listen", "0.0.0.0"]);
    // The address shown can be visited from this machine.
    assert!(served.link.starts_with("http://127.0.0.1:"), "{}", served.link);
    let (code, said) = served.end();
    assert_eq!(code, Some(0));
    assert!(
        said.contains("warning: other machines can reach 0.0.0.0") && said.contains("not encrypted"),
        "{said}"
    );
}

#[test]
fn wrong_arguments_are_said_at_once() {
    let e = model1(&["serve", "--ui", "/nonexistent/ui"]).error(2);
    assert!(e.contains("--ui /nonexistent/ui") && e.contains("index.html"), "{e}");
    let e = model1(&["serve", "--threads", "0"]).error(2);
    assert!(e.contains("--threads"), "{e}");
}
