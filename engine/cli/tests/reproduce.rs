//! The command line that the host shows for a text writes the same text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::*;
use host::{Connection, Host, HostOptions, LinkEvent};
use protocol::*;

struct Client {
    link: Connection,
    bell: Arc<(Mutex<bool>, Condvar)>,
    ready: bool,
    ended: Vec<u32>,
    next: u64,
}

impl Client {
    fn new(host: &Host) -> Self {
        let bell = Arc::new((Mutex::new(false), Condvar::new()));
        let own = bell.clone();
        let wake = move || {
            *own.0.lock().unwrap() = true;
            own.1.notify_all();
        };
        let link = host.connect("test", wake).unwrap();
        let hello = ClientFrame {
            id: 0,
            body: ClientBody::Hello(Hello::new("test")),
        };
        link.send(&encode(&hello).unwrap());
        Self {
            link,
            bell,
            ready: false,
            ended: Vec::new(),
            next: 0,
        }
    }

    /// Takes frames until `found` picks something.
    fn until<T>(
        &mut self,
        mut found: impl FnMut(&mut Self, Option<(u64, Result<Reply, ErrorInfo>)>) -> Option<T>,
    ) -> T {
        loop {
            if let Some(t) = found(self, None) {
                return t;
            }
            for event in self.link.poll() {
                let LinkEvent::Frame(bytes) = event else {
                    panic!("{event:?}")
                };
                match decode(&bytes).unwrap() {
                    HostFrame::Reply { id, result } => {
                        if let Some(t) = found(self, Some((id, result.map(|r| *r)))) {
                            return t;
                        }
                    }
                    HostFrame::Update(u) => {
                        self.ready |= u.state.is_some_and(|s| s.loaded().is_some());
                        self.ended.extend(u.events.iter().filter_map(|e| match e {
                            Event::Finished { node, .. } => Some(*node),
                            Event::Swapped { .. } => None,
                        }));
                    }
                    HostFrame::Welcome(_) => {}
                }
            }
            let rung = self.bell.0.lock().unwrap();
            *self
                .bell
                .1
                .wait_timeout_while(rung, Duration::from_millis(100), |r| !*r)
                .unwrap()
                .0 = false;
        }
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.try_ask(request).unwrap()
    }

    fn try_ask(&mut self, request: Request) -> Result<Reply, ErrorInfo> {
        self.next += 1;
        let id = self.next;
        let body = ClientBody::Request(Box::new(request));
        self.link.send(&encode(&ClientFrame { id, body }).unwrap());
        self.until(|_, reply| reply.filter(|(i, _)| *i == id)).1
    }

    /// Writes a message; the text with the command that repeats it.
    fn written(&mut self, request: Request) -> (NodeView, String) {
        let Reply::Started { node } = self.ask(request) else {
            panic!()
        };
        self.until(|c, _| c.ended.contains(&node).then_some(()));
        self.ended.clear();
        let Reply::Doc(doc) = self.ask(Request::GetDoc) else {
            panic!()
        };
        (doc.nodes[node as usize].clone(), doc.command)
    }
}

fn spec(seed: u64, max_tokens: u64) -> GenerateSpec {
    GenerateSpec {
        sampling: Sampling {
            temperature: 0.9,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.1,
            frequency_penalty: 0.0,
            presence_penalty: 0.3,
            seed,
            logprobs: 4,
        },
        max_tokens,
        stop: vec!["zz".into()],
        ignore_eos: true,
        thinking: false,
    }
}

/// Runs a command as a shell would, with the program under test.
fn repeat(line: &str) -> String {
    let program = env!("CARGO_BIN_EXE_model1");
    let quiet = |command: &str| {
        line.replacen(
            &format!("model1 {command}"),
            &format!("'{program}' {command} --quiet --threads 1"),
            1,
        )
    };
    let line = if line.starts_with("model1 compare") {
        quiet("compare") + " --json"
    } else {
        quiet("generate")
    };
    let out = Command::new("sh").arg("-c").arg(&line).output().unwrap();
    assert!(out.status.success(), "{line}\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout)
        .unwrap()
        .trim_end_matches('\n')
        .to_string()
}

fn host(toy: &Toy, threads: usize) -> Host {
    Host::start(HostOptions {
        data_dir: None,
        bundled: None,
        cache_dir: None,
        threads: Some(threads),
        open: Some(ModelSource::Path(toy.model())),
        ..HostOptions::default()
    })
    .unwrap()
}

fn bf16(selector: &str) -> Edit {
    Edit {
        selector: selector.into(),
        choice: ChoiceView {
            variant: "bf16".into(),
            options: Vec::new(),
        },
    }
}

#[test]
fn the_command_of_a_text_writes_the_same_text() {
    let toy = Toy::new();
    let host = host(&toy, 1);
    let mut c = Client::new(&host);
    c.until(|c, _| c.ready.then_some(()));
    c.ask(Request::EditRecipe(vec![bf16("layers.1-2.kv_cache")]));
    // A chat with one question, the same question answered anew, a branch, and a text.
    let send = |text: &str, seed| Request::Send {
        text: text.into(),
        spec: spec(seed, 60),
    };
    let (first, command) = c.written(send("What's \"up\", $HOME?\n", 3));
    assert!(
        command.contains("--chat") && command.contains("--set layers.1-2.kv_cache=bf16"),
        "{command}"
    );
    assert_eq!(repeat(&command), first.text);
    let again = Request::Generate {
        node: Some(first.id),
        spec: spec(4, 150),
    };
    let (second, command) = c.written(again);
    assert_ne!(second.text[..20], first.text[..20]);
    assert_eq!(repeat(&command), second.text);
    let branch = Request::BranchAt {
        node: second.id,
        index: 10,
        token: u32::from(b'q'),
        spec: spec(5, 30),
    };
    let (third, command) = c.written(branch);
    assert!(command.contains("--ids"), "{command}");
    let kept: String = third.tokens[..11].iter().map(|t| t.text.as_str()).collect();
    assert_eq!(kept + &repeat(&command), third.text);
    c.ask(Request::NewDoc(DocKind::Text));
    let (text, command) = c.written(send("-n once upon a time", 6));
    assert!(command.contains("--prompt='-n once"), "{command}");
    assert_eq!(repeat(&command), text.text);
    host.stop();
}

/// Everything of a comparison but what depends on the clock and how it was asked for (the tokens of a command are cut
/// already, so it has no note of that).
fn figures(json: &str) -> serde_json::Value {
    let mut all: serde_json::Value = serde_json::from_str(json).unwrap();
    for name in ["spec", "notes", "seconds"] {
        assert!(all.as_object_mut().unwrap().remove(name).is_some(), "{name}");
    }
    // The number of threads is part of the device line.
    all["device"] = all["device"].as_str().unwrap().split(',').next().unwrap().into();
    for side in 0..2 {
        for name in ["decode_tokens_per_s", "prefill_tokens_per_s"] {
            let speed = all["sides"][side][name].take();
            assert!(speed.as_f64().unwrap() > 0.0, "{name}");
        }
    }
    all
}

#[test]
fn the_command_of_a_comparison_gives_the_same_figures() {
    let toy = Toy::new();
    let host = host(&toy, 2);
    let mut c = Client::new(&host);
    c.until(|c, _| c.ready.then_some(()));
    c.ask(Request::NewDoc(DocKind::Text));
    c.written(Request::Send {
        text: "once upon a time".into(),
        spec: spec(8, 90),
    });
    let edits = r#"{"schema":1,"set":{"layers.1-2.kv_cache":"fp8_b64","weights.lm_head":"fp8"}}"#;
    for text in [
        CompareText::Current,
        CompareText::Given("it's a text of its own".into()),
    ] {
        let Reply::Job(job) = c.ask(Request::Compare(CompareSpec {
            a: RecipeRef::Own,
            b: RecipeRef::Json(edits.into()),
            text,
            positions: 80,
            isolate: true,
        })) else {
            panic!()
        };
        let result = loop {
            match c.try_ask(Request::GetComparison(job)) {
                Ok(Reply::Compared(r)) => break r,
                Ok(other) => panic!("{other:?}"),
                Err(e) => assert!(e.what.contains("not done"), "{e}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(result.kl.mean > 0.0 && result.isolate.len() == 2);
        let here = figures(&serde_json::to_string(&*result).unwrap());
        assert_eq!(figures(&repeat(&result.command)), here, "{}", result.command);
    }
    host.stop();
}
