//! The command with its engine on an emulated GPU: a device that fails costs nothing of the text, a lack of memory ends it
//! with one error, and a conversation goes on.
#![cfg(target_os = "linux")]

#[path = "../../../engine/host/tests/common/toy.rs"]
#[allow(dead_code)] // other tests use the rest
mod toy;

mod gpu_process;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use gpu_process::{Gpu, example};
use kernels::cuda::fault::ILLEGAL_ADDRESS;
use model1_tests::goldens::folder;

/// A launch in the middle of every text here.
const MIDDLE: u64 = 1500;

fn model1(gpu: &Gpu, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(example("model1_on_emulator"));
    command
        .env("MODEL1_WORKER_PROGRAM", gpu.program())
        .args(args)
        .args(["--device", "cuda", "--worker", "on", "--threads", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A text of 40 tokens after a prompt of so many.
fn text(gpu: &Gpu, prompt: u32) -> Output {
    let model = folder("tiny-v4").display().to_string();
    let ids: Vec<String> = (0..prompt).map(|i| ((i * 7919 + 13) % 120 + 2).to_string()).collect();
    let ids = ids.join(",");
    let drawing = ["-n", "40", "--temperature", "1", "--seed", "3", "--ignore-eos"];
    let args = [&["generate", "--model", &model, "--ids", &ids][..], &drawing].concat();
    model1(gpu, &args, "")
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_text_goes_on_after_the_device_failed() {
    let gpu = Gpu::new();
    let want = text(&gpu, 5);
    assert!(want.status.success(), "{}", said(&want));
    gpu.faults(&[&format!("launch={MIDDLE}:{ILLEGAL_ADDRESS}")]);
    let out = text(&gpu, 5);
    let said = said(&out);
    assert!(out.status.success() && out.stdout == want.stdout, "{said}");
    for part in [
        "The GPU process ended: the device failed: CUDA: running on the GPU: an illegal memory access was encountered",
        "The GPU process was started again with the same recipe",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn several_texts_are_written_together_and_go_on_after_the_device_failed() {
    let gpu = Gpu::new();
    let model = folder("tiny-v4").display().to_string();
    let write = || {
        let drawing = ["--temperature", "1", "--seed", "3", "--ignore-eos", "-n", "20"];
        let args = ["generate", "--model", &model, "--ids", "5,9,2,77", "--samples", "3"];
        model1(&gpu, &[&args[..], &drawing].concat(), "")
    };
    let want = write();
    assert!(want.status.success(), "{}", said(&want));
    let text = String::from_utf8_lossy(&want.stdout).into_owned();
    assert!(text.contains("[3 of 3, seed 5: "), "{text}");
    gpu.faults(&[&format!("launch={MIDDLE}:{ILLEGAL_ADDRESS}")]);
    let out = write();
    assert!(out.status.success() && out.stdout == want.stdout, "{}", said(&out));
    assert!(
        said(&out).contains("was started again with the same recipe"),
        "{}",
        said(&out)
    );
}

#[test]
fn a_device_that_always_fails_is_given_up_with_one_error_after_the_text_so_far() {
    let gpu = Gpu::new();
    let want = text(&gpu, 5).stdout;
    let [middle, soon] = [MIDDLE, 3].map(|n| format!("launch={n}:{ILLEGAL_ADDRESS}"));
    gpu.faults(&[&middle, &soon, &soon]);
    let out = text(&gpu, 5);
    let said = said(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(
        said.contains("illegal memory access") && said.contains("within a minute"),
        "{said}"
    );
    // All that came, and the line is ended.
    let (last, text) = out.stdout.split_last().unwrap();
    assert!(*last == b'\n' && text.len() > 20 && want.starts_with(text), "{said}");
}

#[test]
fn memory_that_runs_out_is_one_error_after_the_text_so_far() {
    let gpu = Gpu::new();
    let want = text(&gpu, 1000).stdout;
    gpu.faults(&[&format!("left={MIDDLE}:0")]);
    let out = text(&gpu, 1000);
    let said = said(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    for part in [
        "error: not enough memory: the KV cache of 1028 tokens",
        "0 B are available",
        "--kv-cache",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("ended"), "{said}");
    let (last, text) = out.stdout.split_last().unwrap();
    assert!(*last == b'\n' && text.len() > 20 && want.starts_with(text), "{said}");
}

#[test]
fn a_conversation_goes_on_after_a_turn_that_failed() {
    let gpu = Gpu::new();
    let folder = tempfile::tempdir().unwrap();
    let model = toy::Toy::default()
        .write(&folder.path().join("toy"))
        .display()
        .to_string();
    let chat = |input: &str| {
        let drawing = ["-n", "100", "--temperature", "1", "--seed", "3", "--ignore-eos"];
        model1(&gpu, &[&["chat", "--model", &model][..], &drawing].concat(), input)
    };
    let want = chat("hello\nmore\n");
    assert!(want.status.success() && want.stdout.len() > 200, "{}", said(&want));
    // The device fails in an answer.
    gpu.faults(&[&format!("launch={MIDDLE}:{ILLEGAL_ADDRESS}")]);
    let out = chat("hello\nmore\n");
    assert!(out.status.success() && out.stdout == want.stdout, "{}", said(&out));
    assert!(said(&out).contains("was started again"), "{}", said(&out));
    // There is no memory for the model when the first answer is asked for; the next try is the first answer.
    gpu.faults(&["alloc=9"]);
    let out = chat("hello\n/regenerate\nmore\n");
    assert!(out.status.success() && out.stdout == want.stdout, "{}", said(&out));
    assert!(
        said(&out).contains("error: not enough memory") && said(&out).contains("/regenerate tries again"),
        "{}",
        said(&out)
    );
}
