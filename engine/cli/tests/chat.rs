//! `model1 chat` with the turns on standard input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Ran, Toy, finish, telemetry};

fn chat(toy: &Toy, args: &[&str], turns: &str) -> Ran {
    finish(toy.command("chat", &[&["-n", "8"], args].concat()), turns).ok()
}

/// `N` of every "N tokens reused from the cache".
fn reused(ran: &Ran) -> Vec<usize> {
    let before = ran.stderr.split(" tokens reused from the cache").collect::<Vec<_>>();
    let last = |s: &&str| s.rsplit(' ').next().unwrap().parse().unwrap();
    before[..before.len() - 1].iter().map(last).collect()
}

/// `N` of every "prompt N tokens".
fn processed(ran: &Ran) -> Vec<usize> {
    let after = ran.stderr.split("prompt ").skip(1);
    after
        .filter_map(|s| s.split(' ').next().unwrap().parse().ok())
        .collect()
}

#[test]
fn a_second_turn_processes_only_what_is_new() {
    let toy = Toy::new();
    let file = toy.text("steps.jsonl");
    let ran = chat(
        &toy,
        &["--telemetry", &file],
        "hello\n\nand you?\n/kv\n/quit\nnot read\n",
    );
    let answers: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(answers.len(), 2, "{}", ran.stdout);
    assert!(answers.iter().all(|a| a.len() == 8), "{}", ran.stdout);
    // One token per character and mark.
    let first = "_user\nhello_\n_assistant\n".len();
    let new = "_\n_user\nand you?_\n_assistant\n".len();
    assert_eq!(reused(&ran), [0, first + 7], "{}", ran.stderr);
    assert_eq!(processed(&ran), [first, 1 + new], "{}", ran.stderr);
    let held = first + 8 + new + 7;
    assert!(
        ran.stderr.contains(&format!("{held} tokens in the cache, ")),
        "{}",
        ran.stderr
    );
    let (_, steps) = telemetry(&toy.path("steps.jsonl"));
    assert_eq!(steps.len(), 16, "two prompts, seven tokens after each");
    assert_eq!((steps[0].position, steps[0].tokens as usize), (0, first));
    assert_eq!(
        (steps[8].position as usize, steps[8].tokens as usize),
        (first + 7, 1 + new)
    );
}

#[test]
fn quiet_prints_answers_only() {
    let toy = Toy::new();
    let loud = chat(&toy, &[], "hello\nagain\n");
    let quiet = chat(&toy, &["--quiet"], "hello\nagain\n");
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.stdout, loud.stdout);
    assert!(
        loud.stderr
            .starts_with("model: llama (3 layers, 32 wide, vocabulary 260); /help, /reset"),
        "{}",
        loud.stderr
    );
}

#[test]
fn the_answer_is_the_one_generate_gives() {
    let toy = Toy::new();
    let answer = chat(&toy, &["-q"], "hello\n").stdout;
    assert_eq!(
        toy.run("generate", &["--chat", "--prompt", "hello", "-n", "8", "-q"])
            .ok()
            .stdout,
        answer
    );
    let system = chat(&toy, &["-q", "--system", "Be short."], "hello\n").stdout;
    let spelled = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(
        toy.run("generate", &["--prompt", spelled, "-n", "8", "-q"]).ok().stdout,
        system
    );
    assert_ne!(system, answer);
}

#[test]
fn reset_undo_and_regenerate_go_back() {
    let toy = Toy::new();
    let lines = |turns: &str| -> Vec<String> {
        let ran = chat(&toy, &["-q"], turns);
        ran.stdout.lines().map(str::to_owned).collect()
    };
    let plain = lines("hello\nagain\n");
    assert_eq!(
        lines("hello\n/reset\nhello\nagain\n"),
        [0, 0, 1].map(|i| plain[i].clone())
    );
    assert_eq!(lines("hello\nother\n/undo\nagain\n")[2], plain[1]);
    assert_eq!(
        lines("hello\n/regenerate\n/regenerate\nagain\n"),
        [0, 0, 0, 1].map(|i| plain[i].clone())
    );
}

#[test]
fn commands_explain_themselves_and_unknown_ones_are_no_message() {
    let toy = Toy::new();
    let ran = chat(&toy, &["-q"], "/help\n/regenerate\n/undo\n/restart\n");
    assert_eq!(ran.stdout, "");
    let wanted = "/help, /reset (forget everything), /undo (last turn), /regenerate, /kv (cache), /quit";
    let said: Vec<&str> = ran.stderr.lines().collect();
    let unknown = format!("error: no command `/restart`; accepted: {wanted}");
    assert_eq!(said, [wanted, "nothing to regenerate", "nothing to undo", &unknown]);
}

#[test]
fn a_turn_too_long_is_refused_and_the_chat_goes_on() {
    let toy = Toy::new();
    let long = "x".repeat(60);
    let ran = chat(
        &toy,
        &["-q", "--context", "60"],
        &format!("hello\n{long}\n/regenerate\n"),
    );
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", ran.stdout);
    assert_eq!(lines[0], lines[1]);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.starts_with("error: context overflow: "), "{}", ran.stderr);
}

#[test]
fn a_base_model_cannot_chat() {
    let toy = Toy::new();
    std::fs::remove_file(toy.path("model/tokenizer_config.json")).unwrap();
    let message = finish(toy.command("chat", &[]), "hello\n").error(2);
    assert!(
        message.starts_with("chat: this model has no chat template"),
        "{message}"
    );
}

#[test]
fn regenerate_draws_again() {
    let toy = Toy::new();
    let ran = chat(
        &toy,
        &["-q", "--temperature", "2", "--seed", "4"],
        "hello\n/regenerate\n/regenerate\n",
    );
    let lines: std::collections::BTreeSet<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ran.stdout);
}
