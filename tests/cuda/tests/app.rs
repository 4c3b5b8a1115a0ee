//! The host with its engine on an emulated GPU, as the app has it: what becomes of a text, of its recipe and of what is
//! said to whoever looks, where the device fails or has no memory left.
#![cfg(target_os = "linux")]

#[path = "../../../engine/host/tests/common/mod.rs"]
mod common;
mod gpu_process;

use std::sync::Arc;

use common::toy::Toy;
use common::*;
use engine::worker::Mode;
use gpu_process::Gpu;
use host::{Host, HostOptions};
use kernels::cuda::fault::ILLEGAL_ADDRESS;
use protocol::*;

const TOKENS: u64 = 160;
/// A launch in the middle of such a text: a token of the toy takes some dozens.
const MIDDLE: u64 = 2500;

fn room() -> (Room, Client) {
    let mut room = Room::new();
    room.stop();
    let options = HostOptions {
        device: "cuda".into(),
        worker: Mode::On,
        ..room.options()
    };
    room.host = Some(Arc::new(Host::start(options).unwrap()));
    let client = room.with_toy(&Toy::default());
    (room, client)
}

fn drawn(tokens: u64) -> GenerateSpec {
    GenerateSpec {
        max_tokens: tokens,
        ..endless()
    }
}

fn tokens(node: &NodeView) -> Vec<u32> {
    node.tokens.iter().map(|t| t.token).collect()
}

/// A recipe that is not the model's own.
fn change(c: &mut Client) -> RecipeView {
    let edit = Edit {
        selector: "layers.*.kv_cache".into(),
        choice: ChoiceView {
            variant: "bf16".into(),
            options: Vec::new(),
        },
    };
    let Reply::Recipe(recipe) = c.ask(Request::EditRecipe(vec![edit])).unwrap() else {
        panic!()
    };
    recipe
}

/// The text written under that recipe where nothing goes wrong.
fn undisturbed(text: &str) -> Vec<u32> {
    let (_room, mut c) = room();
    change(&mut c);
    tokens(&c.written(send(text, drawn(TOKENS))))
}

fn ended(c: &Client) -> String {
    c.told.state.as_ref().map_or(String::new(), |s| s.engine_ended.clone())
}

fn notices(c: &Client) -> String {
    c.told.notices.iter().map(|n| format!("{}\n", n.text)).collect()
}

#[test]
fn a_text_goes_on_after_the_device_failed() {
    let gpu = Gpu::new();
    let want = undisturbed("go");
    gpu.faults(&[&format!("launch={MIDDLE}:{ILLEGAL_ADDRESS}")]);
    let (_room, mut c) = room();
    let recipe = change(&mut c);
    let node = c.written(send("go", drawn(TOKENS)));
    assert!(node.error.is_none(), "{:?}", node.error);
    assert_eq!(tokens(&node), want, "as if nothing had happened");
    let said = notices(&c);
    for part in [
        "The GPU process ended: the device failed: CUDA: running on the GPU: an illegal memory access was encountered",
        "The GPU process was started again with the same recipe",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    c.until("no complaint", |c| ended(c).is_empty());
    let Reply::Recipe(now) = c.ask(Request::EditRecipe(Vec::new())).unwrap() else {
        panic!()
    };
    assert_eq!(now.changes, recipe.changes);
}

#[test]
fn a_device_that_fails_again_waits_for_somebody_to_start_it() {
    let gpu = Gpu::new();
    let want = undisturbed("go");
    let [middle, soon] = [MIDDLE, 3].map(|n| format!("launch={n}:{ILLEGAL_ADDRESS}"));
    gpu.faults(&[&middle, &soon]);
    let (_room, mut c) = room();
    change(&mut c);
    let node = c.written(send("go", drawn(TOKENS)));
    let error = node.error.clone().unwrap();
    assert_eq!(
        (node.finish, error.kind),
        (FinishView::Failed, ErrorKind::Resource),
        "{error}"
    );
    assert!(
        error.what.contains("illegal memory access") && format!("{error}").contains("Restart engine"),
        "{error}"
    );
    let kept = tokens(&node);
    assert!(!kept.is_empty() && kept[..] == want[..kept.len()]);
    c.until("the reason", |c| ended(c).contains("illegal memory access"));

    assert_eq!(c.job(Request::RestartEngine), JobState::Done);
    c.until("no complaint", |c| ended(c).is_empty());
    let node = c.written(Request::Generate {
        node: None,
        spec: drawn(TOKENS - kept.len() as u64),
    });
    assert_eq!(tokens(&node), want, "as if nothing had happened");
}

/// Caches grow when a text passes 1024 tokens.
#[test]
fn a_text_for_which_memory_runs_out_stops_and_goes_on_later() {
    let gpu = Gpu::new();
    let long = "x".repeat(900);
    let want = undisturbed(&long);
    let (_room, mut c) = room();
    change(&mut c);
    let node = c.started(send(&long, drawn(TOKENS)));
    c.tokens_of(node, 2);
    gpu.leave(Some(0));
    let node = c.ended(node);
    let error = node.error.clone().unwrap();
    assert_eq!(
        (node.finish, error.kind),
        (FinishView::Failed, ErrorKind::Resource),
        "{error}"
    );
    assert!(error.what.starts_with("Not enough memory: the KV cache of"), "{error}");
    assert!(
        error.what.contains("0 B are available") && error.remedy.contains("--kv-cache"),
        "{error}"
    );
    let kept = tokens(&node);
    assert!(!kept.is_empty() && kept[..] == want[..kept.len()]);
    // Nothing has ended.
    assert_eq!((ended(&c).as_str(), notices(&c).as_str()), ("", ""));

    gpu.leave(None);
    let node = c.written(Request::Generate {
        node: None,
        spec: drawn(TOKENS - kept.len() as u64),
    });
    assert_eq!(tokens(&node), want, "as if nothing had happened");
}

#[test]
fn a_model_for_which_there_is_no_memory_is_refused_with_figures() {
    let gpu = Gpu::new();
    gpu.leave(Some(1 << 20));
    let mut room = Room::new();
    room.stop();
    let options = HostOptions {
        device: "cuda".into(),
        worker: Mode::On,
        ..room.options()
    };
    room.host = Some(Arc::new(Host::start(options).unwrap()));
    let source = room.toy("toy", &Toy::default());
    let mut c = room.client();
    let JobState::Failed(e) = c.job(Request::OpenModel { source, context: 0 }) else {
        panic!()
    };
    let said = e.to_string();
    for part in ["are needed", "weights", "1.0 MiB of 8.0 GiB on emulator are free"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
