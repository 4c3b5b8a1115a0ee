//! The command line that reproduces a message.

use protocol::{Edit, GenerateSpec};

/// How the prompt can be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As `--prompt`.
    Text(String),
    /// As `--prompt --chat`.
    Chat(String),
    /// Only as token ids: several messages, kept tokens.
    Ids,
}

/// What a command has to repeat.
pub(crate) struct Run<'a> {
    /// `--model`.
    pub model: &'a str,
    /// Changes to the checkpoint's own recipe.
    pub changes: &'a [Edit],
    /// How the prompt can be given.
    pub form: &'a Form,
    /// Tokens before the first drawn one.
    pub ids: &'a [u32],
    /// How it was written.
    pub spec: &'a GenerateSpec,
    /// Tokens drawn, if it was stopped before its end.
    pub drawn: Option<u64>,
    /// Context, if it is not the checkpoint's.
    pub context: Option<u64>,
    /// Another recipe was put in force in between.
    pub swapped: bool,
}

/// Longest argument Linux accepts, with room to spare.
const LONGEST: usize = 120 << 10;

/// The command.
pub(crate) fn command(run: &Run<'_>) -> String {
    let mut out = vec!["model1 generate".to_string(), option("--model", run.model)];
    for edit in run.changes {
        out.push(option("--set", &edit.to_string()));
    }
    if let Some(n) = run.context {
        out.push(format!("--context {n}"));
    }
    let mut notes = Vec::new();
    match run.form {
        Form::Text(text) | Form::Chat(text) if fits(text) => {
            out.push(option("--prompt", text));
            if matches!(run.form, Form::Chat(_)) {
                out.push("--chat".into());
            }
        }
        _ => {
            let ids: Vec<String> = run.ids.iter().map(ToString::to_string).collect();
            let ids = ids.join(",");
            if ids.len() <= LONGEST {
                out.push(format!("--ids {ids}"));
            } else {
                out.push("--ids @ids.txt".into());
                notes.push(format!(
                    "ids.txt: the {} token ids of the text before the message",
                    run.ids.len()
                ));
            }
        }
    }
    sampling(run, &mut out);
    if run.swapped {
        notes.push("the recipe was changed while this was written: the part before is processed anew here".into());
    }
    let mut text = out.join(" ");
    if !notes.is_empty() {
        text.push_str(&format!("  # {}", notes.join("; ")));
    }
    text
}

/// Whether a text can be an argument as it is. `-` alone reads standard input.
fn fits(text: &str) -> bool {
    !text.is_empty() && text != "-" && text.len() <= LONGEST && !text.contains('\0')
}

fn sampling(run: &Run<'_>, out: &mut Vec<String>) {
    let s = &run.spec.sampling;
    if let Some(n) = run.drawn.or((run.spec.max_tokens > 0).then_some(run.spec.max_tokens)) {
        out.push(format!("--max-tokens {n}"));
    }
    if s.temperature == 0.0 {
        out.push("--greedy".into());
    } else {
        // All of them, because what is left out comes from the model's generation_config.
        out.push(format!("--temperature {}", s.temperature));
        out.push(format!("--top-k {} --top-p {} --min-p {}", s.top_k, s.top_p, s.min_p));
        out.push(format!("--seed {}", s.seed));
    }
    out.push(format!("--repetition-penalty {}", s.repetition_penalty));
    if s.frequency_penalty != 0.0 {
        out.push(format!("--frequency-penalty={}", s.frequency_penalty));
    }
    if s.presence_penalty != 0.0 {
        out.push(format!("--presence-penalty={}", s.presence_penalty));
    }
    out.extend(
        run.spec
            .stop
            .iter()
            .filter(|t| !t.is_empty())
            .map(|t| option("--stop", t)),
    );
    if run.spec.ignore_eos {
        out.push("--ignore-eos".into());
    }
}

/// An option with its value; values that begin with a hyphen need the form with `=`.
fn option(name: &str, value: &str) -> String {
    let quoted = quote(value);
    if value.starts_with('-') {
        format!("{name}={quoted}")
    } else {
        format!("{name} {quoted}")
    }
}

/// A word for a POSIX shell.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use protocol::{ChoiceView, OptionChoice, OptionValue, Sampling};

    use super::*;

    fn spec() -> GenerateSpec {
        GenerateSpec {
            sampling: Sampling {
                temperature: 0.8,
                top_k: 40,
                top_p: 0.95,
                min_p: 0.0,
                repetition_penalty: 1.0,
                frequency_penalty: -0.5,
                presence_penalty: 0.0,
                seed: 7,
                logprobs: 8,
            },
            max_tokens: 50,
            stop: vec!["\n\n".into(), "it's".into()],
            ignore_eos: false,
            thinking: false,
        }
    }

    fn run<'a>(form: &'a Form, spec: &'a GenerateSpec, ids: &'a [u32], changes: &'a [Edit]) -> String {
        command(&Run {
            model: "/m/my model",
            changes,
            form,
            ids,
            spec,
            drawn: None,
            context: None,
            swapped: false,
        })
    }

    /// What a shell makes of a command.
    fn words(command: &str) -> Vec<String> {
        let script = format!("show() {{ shift; for w in \"$@\"; do printf '%s\\0' \"$w\"; done; }}; show {command}");
        let out = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(out.status.success(), "{command}");
        let text = String::from_utf8(out.stdout).unwrap();
        text.split_terminator('\0').map(str::to_string).collect()
    }

    #[test]
    fn a_shell_reads_back_what_was_meant() {
        let edit = Edit {
            selector: "layers.*.attention".into(),
            choice: ChoiceView {
                variant: "top_k".into(),
                options: vec![OptionChoice {
                    name: "k".into(),
                    value: OptionValue::Whole(8),
                }],
            },
        };
        let text = "It's $HOME, `x` \\ \"y\"\nnew line ; rm -rf !";
        let got = words(&run(&Form::Chat(text.into()), &spec(), &[], &[edit]));
        let want = [
            "generate",
            "--model",
            "/m/my model",
            "--set",
            "layers.*.attention=top_k:k=8",
            "--prompt",
            text,
            "--chat",
            "--max-tokens",
            "50",
            "--temperature",
            "0.8",
            "--top-k",
            "40",
            "--top-p",
            "0.95",
            "--min-p",
            "0",
            "--seed",
            "7",
            "--repetition-penalty",
            "1",
            "--frequency-penalty=-0.5",
            "--stop",
            "\n\n",
            "--stop",
            "it's",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn prompts_that_are_no_arguments_become_ids() {
        for text in ["", "-", "a\0b"] {
            let got = run(&Form::Text(text.into()), &spec(), &[5, 9], &[]);
            assert!(got.contains("--ids 5,9") && !got.contains("--prompt"), "{got}");
        }
        let got = words(&run(&Form::Text("-x".into()), &spec(), &[], &[]));
        assert!(got.contains(&"--prompt=-x".to_string()), "{got:?}");
        let many = vec![123_456; 40_000];
        let got = run(&Form::Ids, &spec(), &many, &[]);
        assert!(
            got.len() < 1000 && got.contains("# ids.txt: the 40000 token ids"),
            "{got}"
        );
    }

    #[test]
    fn greedy_runs_name_no_seed() {
        let mut s = spec();
        s.sampling.temperature = 0.0;
        s.max_tokens = 0;
        let got = run(&Form::Ids, &s, &[1], &[]);
        assert!(
            got.contains("--greedy") && !got.contains("--seed") && !got.contains("--max-tokens"),
            "{got}"
        );
    }
}
