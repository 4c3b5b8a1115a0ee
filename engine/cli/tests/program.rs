//! What all subcommands share: help, Ctrl-C, pipes; and `model1 demo`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::process::Child;
use std::time::{Duration, Instant};

use common::{LAYERS, Toy, command, finish, golden, model1, telemetry};

/// A run in the background that is ended with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Running {
    /// Exit code and what was said on stderr; fails where the run does not end.
    fn end(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(120), "the run does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

/// Presses Ctrl-C.
fn interrupt(Running(child): &Running) {
    let kill = format!("kill -INT {}", child.id());
    let status = std::process::Command::new("sh").args(["-c", &kill]).status();
    assert!(status.unwrap().success());
}

/// Waits until something is so.
fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_subcommand_explains_itself() {
    let top = model1(&["--help"]).ok().stdout;
    assert!(
        top.contains("Examples:\n  model1 demo\n") && top.contains("Exit codes: 0 done"),
        "{top}"
    );
    for name in [
        "demo", "generate", "chat", "show", "compare", "sweep", "bench", "logits", "devices", "pull", "serve",
    ] {
        assert!(top.contains(&format!("\n  {name} ")), "{name} is missing: {top}");
        let help = model1(&[name, "--help"]).ok();
        assert!(
            help.stdout.contains(&format!("Usage: model1 {name}")),
            "{}",
            help.stdout
        );
        assert_eq!(help.stderr, "");
    }
    assert_eq!(
        model1(&["--version"]).ok().stdout,
        concat!("model1 ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn ctrl_c_ends_with_130_and_keeps_the_text() {
    let toy = Toy::new();
    let file = toy.text("steps.jsonl");
    let mut c = toy.command("generate", &["--prompt", "once", "--ignore-eos", "--telemetry", &file]);
    let mut run = Running(c.spawn().unwrap());
    let mut out = run.0.stdout.take().unwrap();
    let mut text = vec![0; 50];
    out.read_exact(&mut text).unwrap();
    interrupt(&run);
    let reader = std::thread::spawn(move || {
        out.read_to_end(&mut text).unwrap();
        text
    });
    let (code, figures) = run.end();
    let text = reader.join().unwrap();
    assert_eq!(code, Some(130), "{figures}");
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("once") && text.ends_with('\n'), "{text}");
    assert!(figures.contains(" tokens, stopped; prompt 4 tokens"), "{figures}");
    let produced: usize = figures
        .trim_start()
        .trim_start_matches('[')
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(text.trim_end().len() >= 4 + produced, "{produced} of {}", text.len());
    assert_eq!(telemetry(&toy.path("steps.jsonl")).1.len(), produced);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let toy = Toy::new();
    let (model, tree) = (toy.model(), golden("tiny-v4"));
    for args in [
        vec!["generate", "--model", &model, "--prompt", "once", "--ignore-eos"],
        vec!["show", "--model", &tree, "--plan"],
        vec!["show", "--schema"],
    ] {
        let mut run = Running(command(&args).spawn().unwrap());
        drop(run.0.stdout.take());
        let (code, err) = run.end();
        assert!(!err.contains("panicked") && !err.contains("error:"), "{args:?}: {err}");
        assert!(matches!(code, Some(0 | 130)), "{args:?}: {code:?}");
    }
}

#[test]
fn ctrl_c_leaves_no_half_file() {
    let toy = Toy::new();
    let ids = toy.write("ids.txt", &"5 ".repeat(100_000));
    let (at, out) = (format!("@{ids}"), toy.text("out"));
    let mut c = toy.command("logits", &["--ids", &at, "--out", &out, "--decode"]);
    let run = Running(c.spawn().unwrap());
    until("the part file", || toy.files().len() == 2);
    interrupt(&run);
    assert_eq!(run.end(), (Some(130), String::new()));
    assert_eq!(toy.files(), ["ids.txt"]);
}

#[cfg(target_os = "linux")] // looks into /proc
#[test]
fn ctrl_c_ends_a_wait_for_input() {
    let toy = Toy::new();
    for (name, args) in [("chat", &["-n", "4"][..]), ("generate", &["--prompt", "-"])] {
        let mut c = toy.command(name, args);
        let mut run = Running(c.stdin(std::process::Stdio::piped()).spawn().unwrap());
        let open = run.0.stdin.take();
        // The wait has begun when the program sleeps in a read of standard input.
        let call = format!("/proc/{}/syscall", run.0.id());
        until("the read", || {
            std::fs::read_to_string(&call).is_ok_and(|s| s.starts_with("0 0x0 ") || s.starts_with("63 0x0 "))
        });
        interrupt(&run);
        assert_eq!(run.end().0, Some(130), "{name}");
        drop(open);
    }
}

#[test]
fn progress_is_for_terminals() {
    let toy = Toy::new();
    let said = toy
        .run("generate", &["--prompt", &"x".repeat(600), "-n", "1"])
        .ok()
        .stderr;
    assert!(!said.contains('\r') && !said.contains('\x1b'), "{said:?}");
}

#[test]
fn warnings_are_kept_from_quiet_runs() {
    let toy = Toy::changed(|c| c["shininess"] = 3.into(), |_| ());
    let loud = toy.run("generate", &["--prompt", "x", "-n", "1"]).ok();
    let warning = "warning: config keys not known here and ignored: shininess\n";
    assert!(loud.stderr.starts_with(warning), "{}", loud.stderr);
    assert_eq!(toy.run("generate", &["--prompt", "x", "-n", "1", "-q"]).ok().stderr, "");
}

#[test]
fn input_that_is_no_text_is_refused() {
    let toy = Toy::new();
    let file = toy.path("bytes");
    std::fs::write(&file, [0xFF, 0xFE, b'\n']).unwrap();
    for (name, args) in [("chat", &["-q"][..]), ("generate", &["--prompt", "-"])] {
        let mut c = toy.command(name, args);
        c.stdin(std::fs::File::open(&file).unwrap());
        let message = finish(c, "").error(2);
        assert_eq!(
            message,
            "standard input: found bytes that are not UTF-8, accepted: UTF-8 text"
        );
    }
}

#[test]
fn the_demo_writes_a_text_and_its_figures() {
    let toy = Toy::new();
    let ran = toy.run("demo", &[]).ok();
    assert!(ran.stdout.ends_with('\n') && ran.stdout.len() > 100, "{}", ran.stdout);
    assert!(
        ran.stderr
            .contains("prompt: Write a short story about a fox who finds a map."),
        "{}",
        ran.stderr
    );
    assert_eq!(
        ran.stderr.lines().filter(|l| l.contains(" f32 ")).count(),
        LAYERS,
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.lines().last().unwrap().starts_with("Next: model1 chat | "),
        "{}",
        ran.stderr
    );
}

#[test]
fn without_a_model_the_bundled_one_runs() {
    let show = |args: &[&str], bundled: &str, model: &str| {
        let mut c = command(&[&["show", "--print-recipe"], args].concat());
        c.env("MODEL1_BUNDLED", bundled).env("MODEL1_MODEL", model);
        finish(c, "")
    };
    let (v4, llama) = (golden("tiny-v4"), golden("tiny-llama"));
    let own = |path: &str| model1(&["show", "--print-recipe", "--model", path]).ok().stdout;
    assert_eq!(show(&[], &v4, "").ok().stdout, own(&v4));
    assert_eq!(show(&[], &v4, &llama).ok().stdout, own(&llama));
    assert_eq!(show(&["--model", "bundled"], &v4, &llama).ok().stdout, own(&v4));
    assert_eq!(show(&[], &v4, "bundled").ok().stdout, own(&v4));
    let missing = show(&[], "/nonexistent/mini", "").error(2);
    assert!(
        missing.starts_with("the bundled model /nonexistent/mini: no such file or folder; accepted: "),
        "{missing}"
    );
}
