//! `model1 pull` from a server on this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::{Ran, Toy, command, finish};
use serde_json::json;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
type Answers = Arc<BTreeMap<String, Vec<u8>>>;

/// A repository with the files of a model, asked for with or without a token.
struct Hub {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start(toy: &Toy, token: Option<&'static str>) -> Hub {
        let names = [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
        ];
        let siblings: Vec<_> = names.iter().map(|n| json!({ "rfilename": n })).collect();
        let listing = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let mut answers: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for name in names {
            let bytes = std::fs::read(toy.path("model").join(name)).unwrap();
            answers.insert(format!("/owner/toy/resolve/{COMMIT}/{name}"), bytes);
        }
        for revision in ["main", "v1"] {
            let path = format!("/api/models/owner/toy/revision/{revision}?blobs=true");
            answers.insert(path, listing.clone().into_bytes());
        }
        let bare = json!({ "sha": COMMIT, "siblings": [{ "rfilename": "README.md" }] }).to_string();
        answers.insert(
            "/api/models/owner/bare/revision/main?blobs=true".into(),
            bare.into_bytes(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Hub {
            address: format!("http://{}", listener.local_addr().unwrap()),
            asked: Arc::default(),
        };
        let (asked, answers) = (hub.asked.clone(), Arc::new(answers));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &answers, &asked, token);
            }
        });
        hub
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(mut stream: TcpStream, answers: &Answers, asked: &Mutex<Vec<String>>, token: Option<&str>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let path = lines
        .next()
        .unwrap_or_default()
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
    asked.lock().unwrap().push(path.clone());
    let wanted = token.map(|t| format!("bearer {t}"));
    let allowed = wanted.is_none_or(|w| {
        headers
            .iter()
            .any(|h| h.to_ascii_lowercase() == format!("authorization: {w}"))
    });
    let (status, body) = match answers.get(&path) {
        _ if !allowed => (401, &[][..]),
        Some(bytes) => (200, &bytes[..]),
        None => (404, &[][..]),
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body))
        .ok();
}

fn pull(args: &[&str], env: &[(&str, &str)]) -> Ran {
    let mut c = command(&[&["pull"], args].concat());
    c.envs(env.iter().copied());
    finish(c, "")
}

#[test]
fn a_pulled_model_runs() {
    let toy = Toy::new();
    let hub = Hub::start(&toy, None);
    let dest = toy.text("pulled");
    let ran = pull(&["owner/toy", "--dest", &dest, "--endpoint", &hub.address], &[]).ok();
    assert_eq!(ran.stdout, format!("{dest}\n"), "the folder alone, for scripts");
    assert_eq!(ran.stderr, format!("owner/toy at {COMMIT}\n"));
    let text = toy.run("generate", &["--prompt", "fox", "-n", "9", "-q"]).ok().stdout;
    let args = ["generate", "--model", &dest, "--prompt", "fox", "-n", "9", "-q"];
    assert_eq!(common::model1(&args).ok().stdout, text);
    hub.asked();
    let again = pull(&["owner/toy", "--dest", &dest, "--endpoint", &hub.address], &[]).ok();
    assert_eq!(
        (again.stdout, hub.asked().len()),
        (format!("{dest}\n"), 0),
        "asked again"
    );
}

#[test]
fn endpoint_cache_and_token_come_from_the_environment() {
    let toy = Toy::new();
    let hub = Hub::start(&toy, Some("secret"));
    let cache = toy.text("cache");
    let env = [("HF_ENDPOINT", hub.address.as_str()), ("MODEL1_CACHE", &cache)];
    let refused = pull(&["owner/toy"], &env).error(2);
    assert!(
        refused.contains("access denied (status 401, no token was sent). A private"),
        "{refused}"
    );
    let with = [&env[..], &[("HF_TOKEN", "secret")]].concat();
    let ran = pull(&["owner/toy", "--revision", "v1"], &with).ok();
    assert_eq!(ran.stdout, format!("{cache}/models/owner--toy\n"));
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
    assert!(
        hub.asked()
            .contains(&"/api/models/owner/toy/revision/v1?blobs=true".to_owned())
    );
    // The option is stronger than the environment.
    let other = Hub::start(&toy, None);
    let dest = toy.text("other");
    pull(&["owner/toy", "--dest", &dest, "--endpoint", &other.address], &env).ok();
    assert!(hub.asked().is_empty() && !other.asked().is_empty());
}

#[test]
fn refusals_say_what_to_change() {
    let toy = Toy::new();
    let hub = Hub::start(&toy, None);
    let dest = toy.text("dest");
    let try_to = |repo: &str| pull(&[repo, "--dest", &dest, "--endpoint", &hub.address], &[]).error(2);
    let missing = format!(
        "{}/api/models/owner/none/revision/main?blobs=true: there is no such thing there (status 404); \
                           check the name and the revision",
        hub.address
    );
    assert_eq!(try_to("owner/none"), missing);
    assert_eq!(try_to("a/b/c"), "\"a/b/c\" is not a valid repository (OWNER/NAME)");
    let bare = "owner/bare: no config.json among its files (README.md); weights must be in safetensors";
    assert_eq!(try_to("owner/bare"), bare);
    assert!(!toy.path("dest").exists());
    let file = toy.write("note", "x");
    let folder = toy.dir.path().to_str().unwrap();
    let occupied = pull(&["owner/toy", "--dest", folder, "--endpoint", &hub.address], &[]).error(2);
    let wanted = "exists and is not a pulled copy of owner/toy at revision main; choose another folder or remove it";
    assert_eq!(occupied, format!("{folder} {wanted}"));
    let below = format!("{file}/dest");
    let failed = pull(&["owner/toy", "--dest", &below, "--endpoint", &hub.address], &[]).error(1);
    assert_eq!(failed, format!("{below}: Not a directory (os error 20)"));
}
