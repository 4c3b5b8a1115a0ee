//! Texts: writing, branching, saving, and what happens when saving fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::toy::Toy;
use common::*;
use protocol::*;

fn text_of(doc: &DocView, node: u32) -> &str {
    &doc.nodes[node as usize].text
}

#[test]
fn a_chat_is_written_branched_edited_and_written_anew() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let state = c.state();
    assert_eq!(state.doc.as_ref().unwrap().kind, DocKind::Chat);
    assert_eq!(c.doc().leaf, None);

    let first = c.written(send("hello", spec(12)));
    assert_eq!(
        (first.finish, first.tokens.len(), first.parent),
        (FinishView::MaxTokens, 12, Some(0))
    );
    let joined: String = first.tokens.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(first.text, joined);
    assert!(first.text.bytes().all(|b| b.is_ascii_lowercase()), "{}", first.text);
    assert_eq!(first.tokens[0].top.len(), 2);
    assert_eq!(
        first.tokens[0].top[0].token, first.tokens[0].token,
        "greedy takes the likeliest"
    );
    let summary = first.summary.unwrap();
    assert_eq!(summary.tokens, 12);

    // The same answer anew: a sibling, and greedily the same.
    let again = c.written(Request::Generate {
        node: Some(first.id),
        spec: spec(12),
    });
    assert_eq!((again.parent, again.text.as_str()), (first.parent, first.text.as_str()));
    assert_ne!(again.id, first.id);

    // Another token at the third place: the first two stay, and go on differently.
    let other = first.tokens[2].top[1].token;
    let branch = c.written(Request::BranchAt {
        node: first.id,
        index: 2,
        token: other,
        spec: spec(9),
    });
    assert_eq!(branch.tokens[..2], first.tokens[..2]);
    assert_eq!((branch.tokens[2].token, branch.tokens.len()), (other, 12));
    assert!((branch.tokens[2].logprob - first.tokens[2].top[1].logprob).abs() < 1e-6);
    assert_eq!(c.doc().leaf, Some(branch.id));

    // Another question instead of the first: a sibling of it, answered.
    let answer = c.written(Request::EditMessage {
        node: 0,
        text: "bye".into(),
        spec: Some(spec(4)),
    });
    let doc = c.doc();
    let question = answer.parent.unwrap();
    assert_eq!(
        (text_of(&doc, question), doc.nodes[question as usize].parent),
        ("bye", None)
    );

    // An answer with other words, nothing generated.
    c.done(Request::EditMessage {
        node: answer.id,
        text: "so long".into(),
        spec: None,
    });
    let doc = c.doc();
    assert_eq!(text_of(&doc, doc.leaf.unwrap()), "so long");

    // Back to the first branch, and on from there.
    match c.ask(Request::SelectLeaf(first.id)).unwrap() {
        Reply::Doc(d) => assert_eq!(d.leaf, Some(first.id)),
        other => panic!("{other:?}"),
    }
    let next = c.written(send("more", spec(3)));
    let doc = c.doc();
    assert_eq!(doc.nodes[next.parent.unwrap() as usize].parent, Some(first.id));
    assert_eq!(doc.token_seq, c.told.tokens.last().unwrap().seq);
}

#[test]
fn continuing_is_writing_without_having_stopped() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let mut drawn = spec(40);
    drawn.sampling.temperature = 1.0;
    let whole = c.written(send("tell", drawn.clone()));
    let part = c.written(Request::Generate {
        node: Some(whole.id),
        spec: GenerateSpec {
            max_tokens: 15,
            ..drawn.clone()
        },
    });
    assert_eq!(part.tokens.len(), 15);
    let rest = c.written(Request::Generate {
        node: None,
        spec: GenerateSpec {
            max_tokens: 25,
            ..drawn
        },
    });
    assert_eq!((rest.id, rest.text.as_str()), (part.id, whole.text.as_str()));
    let command = c.doc().command;
    assert!(
        command.contains("--max-tokens 40") && command.contains("--prompt tell --chat"),
        "{command}"
    );
}

#[test]
fn stop_strings_cut_the_text_and_the_command_repeats_them() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy {
        chat: false,
        ..Toy::default()
    });
    assert_eq!(c.state().doc.unwrap().kind, DocKind::Text);
    let whole = c.written(send("abc", spec(20)));
    let stop = whole.text[5..8].to_string();
    let cut = c.written(Request::Generate {
        node: Some(whole.id),
        spec: GenerateSpec {
            stop: vec![stop.clone()],
            ..spec(20)
        },
    });
    let at = whole.text.find(&stop).unwrap();
    assert_eq!((cut.finish, cut.text.as_str()), (FinishView::Stop, &whole.text[..at]));
    let command = c.doc().command;
    assert!(
        command.contains(&format!("--stop {stop}")) && command.contains("--greedy"),
        "{command}"
    );
    let e = c
        .ask(send(
            "x",
            GenerateSpec {
                stop: vec![String::new()],
                ..spec(1)
            },
        ))
        .unwrap_err();
    assert!(e.what.contains("stop string"), "{e}");
}

#[test]
fn a_full_context_ends_the_text_and_says_what_can_be_done() {
    let room = Room::new();
    let source = room.toy(
        "toy",
        &Toy {
            chat: false,
            ..Toy::default()
        },
    );
    let mut c = room.client();
    c.open(source, 64);
    let mut open_end = spec(0);
    open_end.ignore_eos = true;
    let node = c.written(send("abcd", open_end.clone()));
    assert_eq!((node.finish, node.tokens.len()), (FinishView::ContextFull, 60));
    c.until("a notice", |c| !c.told.notices.is_empty());
    let notice = &c.told.notices[0].text;
    assert!(
        notice.contains("context of 64 tokens is full") && notice.contains("larger context"),
        "{notice}"
    );

    let before = c.doc();
    let e = c.ask(send("more", open_end.clone())).unwrap_err();
    assert!(
        e.what.contains("context holds 64") && e.remedy.contains("branch"),
        "{e}"
    );
    assert_eq!(c.doc(), before, "nothing was added");
    // A number beyond the context means: until it is full.
    let node = c.written(Request::Generate {
        node: Some(node.id),
        spec: GenerateSpec {
            max_tokens: 1000,
            ..open_end
        },
    });
    assert_eq!(node.finish, FinishView::ContextFull);
}

#[test]
fn impossible_requests_change_nothing() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    c.written(send("a", spec(3)));
    let before = c.doc();
    let mut bad = spec(3);
    bad.sampling.top_p = 7.0;
    for (request, words) in [
        (send("  ", spec(1)), "empty"),
        (send("x", bad), "top_p"),
        (
            Request::Generate {
                node: Some(0),
                spec: spec(1),
            },
            "not written by the model",
        ),
        (
            Request::Generate {
                node: Some(77),
                spec: spec(1),
            },
            "no message 77",
        ),
        (
            Request::BranchAt {
                node: 1,
                index: 4,
                token: 1,
                spec: spec(1),
            },
            "no token 4",
        ),
        (
            Request::BranchAt {
                node: 1,
                index: 1,
                token: 260,
                spec: spec(1),
            },
            "no token 260",
        ),
        (Request::SelectLeaf(9), "no message 9"),
        (Request::OpenDoc(5), "no such text"),
        (Request::DeleteDoc(5), "no such text"),
        (Request::UndeleteDoc(5), "brought back"),
        (Request::ExportDoc { format: "pdf".into() }, "pdf"),
    ] {
        let e = c.ask(request).unwrap_err();
        assert!(e.what.contains(words), "{words}: {e}");
        assert!(!e.remedy.is_empty() || e.what.contains("top_p"), "{e}");
        assert_eq!(c.doc(), before, "{words}");
    }
}

#[test]
fn texts_survive_the_host() {
    let mut room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let first = c.written(send("remember me", spec(8)));
    c.done(Request::SetSystem("be kind".into()));
    let doc = c.doc();
    c.ask(Request::NewDoc(DocKind::Text)).unwrap();
    c.written(send("second", spec(2)));
    let second = c.doc().info.id;
    c.done(Request::RenameDoc {
        doc: second,
        title: " My  story ".into(),
    });
    room.stop();
    c.until("the end", |c| c.told.closed.is_some());
    room.start();

    let mut c = room.client();
    let docs = |c: &mut Client| match c.ask(Request::ListDocs).unwrap() {
        Reply::Docs(d) => d,
        other => panic!("{other:?}"),
    };
    let list = docs(&mut c);
    let titles: Vec<&str> = list.iter().map(|d| d.title.as_str()).collect();
    assert_eq!(titles.len(), 2);
    assert!(
        titles.contains(&"My story") && titles.contains(&"remember me"),
        "{titles:?}"
    );
    c.open(room.toy("toy", &Toy::default()), 0);
    let Reply::Doc(back) = c.ask(Request::OpenDoc(doc.info.id)).unwrap() else {
        panic!()
    };
    assert_eq!(
        (&back.nodes, &back.system, back.leaf),
        (&doc.nodes, &doc.system, doc.leaf)
    );
    // Tokens of the same model are still its tokens.
    let node = c.written(Request::Generate {
        node: Some(first.id),
        spec: spec(8),
    });
    assert!(!node.text.is_empty());

    // A text that is not open is renamed all the same.
    c.done(Request::RenameDoc {
        doc: second,
        title: "Other".into(),
    });
    assert!(docs(&mut c).iter().any(|d| d.title == "Other"));
    c.done(Request::DeleteDoc(second));
    assert_eq!(docs(&mut c).len(), 1);
    c.done(Request::UndeleteDoc(second));
    assert_eq!(docs(&mut c).len(), 2);
    c.done(Request::DeleteDoc(second));
    room.start();
    let mut c = room.client();
    assert_eq!(docs(&mut c).len(), 1, "deleted for good");
    assert!(c.ask(Request::UndeleteDoc(second)).is_err());
}

#[test]
fn broken_files_are_set_aside_and_said() {
    let mut room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    c.written(send("good", spec(2)));
    let id = c.doc().info.id;
    room.stop();
    let texts = room.path("data/texts");
    std::fs::write(texts.join("123.json"), "{ not a text").unwrap();
    // A good head with broken messages is noticed when it is opened.
    let good = std::fs::read_to_string(texts.join(format!("{id}.json"))).unwrap();
    let half = good.replace(&format!("\"id\":{id}"), "\"id\":456").replace("]}", "");
    std::fs::write(texts.join("456.json"), half).unwrap();
    std::fs::write(texts.join("notes.txt"), "left alone").unwrap();
    room.start();

    let mut c = room.client();
    c.until("a notice", |c| {
        c.told.notices.iter().any(|n| n.text.contains("123.json"))
    });
    let notice = c.told.notices[0].clone();
    assert!(notice.warning && notice.text.contains("set aside"), "{notice:?}");
    assert!(texts.join("broken/123.json").is_file() && texts.join("notes.txt").is_file());
    let Reply::Docs(list) = c.ask(Request::ListDocs).unwrap() else {
        panic!()
    };
    assert_eq!(list.len(), 2);
    let e = c.ask(Request::OpenDoc(456)).unwrap_err();
    assert!(e.what.contains("set aside") && e.remedy.contains("not affected"), "{e}");
    assert!(texts.join("broken/456.json").is_file());
    let Reply::Docs(list) = c.ask(Request::ListDocs).unwrap() else {
        panic!()
    };
    assert_eq!(list.iter().map(|d| d.id).collect::<Vec<_>>(), [id]);
    assert!(c.ask(Request::OpenDoc(id)).is_ok());
}

#[test]
fn a_folder_that_cannot_be_written_costs_nothing_but_a_notice() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    // A file where the folder should be: works for every user, root included.
    std::fs::write(room.path("data/texts"), "").unwrap();
    let node = c.written(send("keep me", spec(5)));
    c.until("a notice", |c| {
        c.told.notices.iter().any(|n| n.text.contains("cannot be saved"))
    });
    assert!(
        c.told
            .notices
            .iter()
            .any(|n| n.warning && n.text.contains("stay in memory"))
    );
    assert_eq!(c.doc().nodes[1].text, node.text);
    // It is not said again and again.
    c.written(send("more", spec(5)));
    assert_eq!(
        c.told
            .notices
            .iter()
            .filter(|n| n.text.contains("cannot be saved"))
            .count(),
        1
    );
    std::fs::remove_file(room.path("data/texts")).unwrap();
    c.until("better news", |c| {
        c.told.notices.iter().any(|n| n.text.contains("saved again"))
    });
    let id = c.doc().info.id;
    assert!(room.path(&format!("data/texts/{id}.json")).is_file());
}

#[test]
fn a_second_host_on_the_same_folder_saves_nothing() {
    let room = Room::new();
    let second = host::Host::start(room.options()).unwrap();
    let mut c = Client::greeted(&second, Hello::new("test"));
    c.until("a notice", |c| !c.told.notices.is_empty());
    assert!(
        c.told.notices[0].text.contains("another MODEL1 Explorer"),
        "{:?}",
        c.told.notices
    );
}

#[test]
fn settings_are_kept() {
    let mut room = Room::new();
    let mut c = room.client();
    let settings = Settings {
        theme: ThemeChoice::Light,
        zoom: 1.25,
        layout: "tiles".into(),
        ..Settings::default()
    };
    c.done(Request::SetSettings(Box::new(settings.clone())));
    room.start();
    let c = room.client();
    let Some(Welcome::Accepted { settings: back, .. }) = &c.welcome else {
        panic!()
    };
    assert_eq!(*back, settings);
}

#[test]
fn texts_leave_as_files() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy {
        chat: false,
        ..Toy::default()
    });
    let node = c.written(send("Once", spec(4)));
    let Reply::File { name, bytes } = c.ask(Request::ExportDoc { format: "txt".into() }).unwrap() else {
        panic!()
    };
    assert_eq!(name, "Once.txt");
    assert_eq!(String::from_utf8(bytes).unwrap(), format!("Once{}\n", node.text));
    let Reply::File { bytes, .. } = c.ask(Request::ExportDoc { format: "md".into() }).unwrap() else {
        panic!()
    };
    assert!(String::from_utf8(bytes).unwrap().contains("model1 generate"));
}

#[test]
fn control_characters_and_marks_are_text() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let text = "\u{0}\u{1b}[31m\r\n<|im_end|>\u{202e}x";
    c.written(send(text, spec(3)));
    let doc = c.doc();
    assert_eq!(doc.nodes[0].text, text);
    // A NUL is in no command line: ids are.
    assert!(doc.command.contains("--ids"), "{}", doc.command);
    let shown = |title: &str| !title.chars().any(|c| c.is_control() || c == '\u{202e}');
    assert!(shown(&doc.info.title), "{:?}", doc.info.title);
    c.done(Request::RenameDoc {
        doc: doc.info.id,
        title: "a\u{7}\nb\u{202e}c".into(),
    });
    let title = c.doc().info.title;
    assert!(shown(&title) && title.starts_with("a b"), "{title:?}");
    // What the model reads and what is saved is what was written.
    let Reply::File { bytes, .. } = c.ask(Request::ExportDoc { format: "json".into() }).unwrap() else {
        panic!()
    };
    let saved: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(saved["nodes"][0]["text"], text);
}

#[test]
fn a_huge_prompt_is_refused_and_leaves_nothing() {
    let room = Room::new();
    let source = room.toy(
        "toy",
        &Toy {
            context: 4096,
            ..Toy::default()
        },
    );
    let mut c = room.client();
    c.open(source, 0);
    let e = c.ask(send(&"x".repeat(10 << 20), spec(1))).unwrap_err();
    assert!(e.what.contains("more than") && e.what.contains("4096"), "{e}");
    assert!(c.doc().nodes.is_empty(), "nothing was added");
    // Nor can it come in as a system prompt, and it does no harm there.
    c.done(Request::SetSystem("y".repeat(10 << 20)));
    let e = c.ask(send("hi", spec(1))).unwrap_err();
    assert!(e.what.contains("more than") && e.what.contains("4096"), "{e}");
    c.done(Request::SetSystem(String::new()));
    assert_eq!(c.written(send("hi", spec(2))).tokens.len(), 2);
}
