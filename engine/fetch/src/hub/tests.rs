use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::test_server::{Answer, Server};
use crate::unwatched;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

struct Scene {
    server: Server,
    folder: TempDir,
}

/// A repository `owner/name` with these files; weights carry their checksum in the listing, as on the Hub.
fn scene(files: &[(&str, &[u8])]) -> Scene {
    let scene = Scene {
        server: Server::start(),
        folder: tempfile::tempdir().unwrap(),
    };
    let siblings: Vec<_> = files
        .iter()
        .map(|(name, bytes)| {
            let sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            let lfs = is_weights(name).then(|| json!({ "sha256": sha256, "size": bytes.len() }));
            json!({ "rfilename": name, "size": bytes.len(), "lfs": lfs })
        })
        .collect();
    let listing = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
    scene.server.answer(
        "/api/models/owner/name/revision/main?blobs=true",
        Answer::Bytes(listing.into()),
    );
    for (name, bytes) in files {
        scene.server.answer(&resolve(name), Answer::Bytes(bytes.to_vec()));
    }
    scene
}

fn resolve(name: &str) -> String {
    format!("/owner/name/resolve/{COMMIT}/{name}")
}

impl Scene {
    fn dest(&self) -> PathBuf {
        self.folder.path().join("models/toy")
    }

    fn pull(&self) -> Result<String, FetchError> {
        self.pull_as("owner/name", None, &mut unwatched)
    }

    fn pull_as(&self, repo: &str, token: Option<&str>, watch: &mut Watch<'_>) -> Result<String, FetchError> {
        let what = Pull {
            repo,
            revision: "main",
            endpoint: &self.server.address,
            token,
        };
        pull_with(&what, &self.dest(), || Client::new(Duration::from_millis(1)), watch)
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.dest()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

const WEIGHTS: &[u8] = &[7; 50_000];
const SMALL: &[(&str, &[u8])] = &[("config.json", b"{}"), ("model.safetensors", WEIGHTS)];

#[test]
fn takes_what_a_model_needs_and_nothing_else() {
    let files: &[(&str, &[u8])] = &[
        ("config.json", b"{}"),
        ("generation_config.json", b"{}"),
        ("tokenizer.json", b"[]"),
        ("tokenizer_config.json", b"[]"),
        ("chat_template.jinja", b"x"),
        ("model.safetensors", WEIGHTS),
        ("consolidated.safetensors", b"second set"),
        ("pytorch_model.bin", b"no"),
        ("consolidated.00.pth", b"no"),
        ("onnx/model.onnx", b"no"),
        ("original/config.json", b"no"),
        ("README.md", b"no"),
        ("empty.json", b""),
    ];
    let scene = scene(files);
    assert_eq!(scene.pull().unwrap(), COMMIT);
    let wanted = [
        SOURCE_FILE,
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ];
    let wanted = wanted.into_iter().chain(["tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(scene.names(), wanted.map(str::to_owned).collect());
    assert_eq!(fs::read(scene.dest().join("model.safetensors")).unwrap(), WEIGHTS);
    scene.server.asked();
    assert_eq!(scene.pull().unwrap(), COMMIT);
    assert!(scene.server.asked().is_empty(), "a second pull asks nothing");
}

#[test]
fn takes_the_shards_of_the_index() {
    let index = json!({ "weight_map": { "a": "model-1.safetensors", "b": "model-2.safetensors" } }).to_string();
    let files: &[(&str, &[u8])] = &[
        ("config.json", b"{}"),
        (INDEX, index.as_bytes()),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
        ("consolidated.safetensors", b"second set"),
    ];
    let whole = scene(files);
    whole.pull().unwrap();
    assert!(whole.names().contains("model-2.safetensors") && !whole.names().contains("consolidated.safetensors"));

    let error = scene(&files[..3]).pull().unwrap_err();
    assert!(error.to_string().contains("model-2.safetensors"), "{error}");
}

#[test]
fn progress_runs_over_all_files() {
    let scene = scene(SMALL);
    let mut last = 0;
    let mut watch = |progress: &Progress<'_>| {
        if progress.file == "model.safetensors" && progress.stage == crate::Stage::Download {
            assert_eq!(progress.total, Some(WEIGHTS.len() as u64));
            assert!(progress.done >= last);
            last = progress.done;
        }
        ControlFlow::Continue(())
    };
    scene.pull_as("owner/name", None, &mut watch).unwrap();
    assert_eq!(last, WEIGHTS.len() as u64);
}

#[test]
fn nothing_half_done_is_left_in_place_and_the_next_try_continues() {
    let scene = scene(SMALL);
    // Listing and config.json arrive; the weights break off after 20,000 bytes and then do not come at all.
    scene.server.cut(&[usize::MAX, usize::MAX, 20_000, 0, 0, 0, 0]);
    let error = scene.pull().unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    assert!(!scene.dest().exists());
    scene.server.asked();
    scene.pull().unwrap();
    let weights: Vec<_> = scene
        .server
        .asked()
        .into_iter()
        .skip(1)
        .map(|asked| (asked.path, asked.range))
        .collect();
    assert_eq!(weights, [(resolve("model.safetensors"), Some(20_000))]);
    assert_eq!(fs::read(scene.dest().join("model.safetensors")).unwrap(), WEIGHTS);
}

#[test]
fn a_new_commit_starts_over() {
    let scene = scene(SMALL);
    let part = files::with_ending(&scene.dest(), ".part");
    fs::create_dir_all(&part).unwrap();
    fs::write(part.join(SOURCE_FILE), r#"{"repo": "owner/name", "commit": "other"}"#).unwrap();
    fs::write(part.join("tokenizer.json"), "of another commit").unwrap();
    scene.pull().unwrap();
    assert!(!scene.names().contains("tokenizer.json"));
}

#[test]
fn follows_redirects_and_keeps_the_token_at_home() {
    let scene = scene(SMALL);
    let elsewhere = Server::start();
    elsewhere.answer("/blob", Answer::Bytes(WEIGHTS.to_vec()));
    // Another name for the same machine: another host to the client.
    let address = elsewhere.address.replace("127.0.0.1", "localhost");
    scene.server.answer(
        &resolve("model.safetensors"),
        Answer::Redirect(format!("{address}/blob")),
    );
    scene
        .server
        .answer(&resolve("config.json"), Answer::Guarded("secret", b"{}".to_vec()));
    elsewhere.cut(&[10_000]);
    scene.pull_as("owner/name", Some("secret"), &mut unwatched).unwrap();
    let asked: Vec<_> = elsewhere
        .asked()
        .into_iter()
        .map(|asked| (asked.range, asked.token))
        .collect();
    assert_eq!(asked, [(None, None), (Some(10_000), None)]);
}

#[test]
fn errors_name_the_cause() {
    let scene = scene(SMALL);
    let error = scene.pull_as("owner/missing", None, &mut unwatched).unwrap_err();
    assert!(
        matches!(error, FetchError::NotFound { .. }) && error.to_string().contains("owner/missing"),
        "{error}"
    );

    let listing = "/api/models/owner/name/revision/main?blobs=true";
    scene.server.answer(listing, Answer::Guarded("secret", b"{}".to_vec()));
    let error = scene.pull().unwrap_err();
    assert!(matches!(error, FetchError::Denied { with_token: false, .. }), "{error}");
    let error = scene.pull_as("owner/name", Some("wrong"), &mut unwatched).unwrap_err();
    assert!(matches!(error, FetchError::Denied { with_token: true, .. }), "{error}");
    assert!(!error.to_string().contains("wrong"), "the token is not repeated");
    let error = scene.pull_as("owner/name", Some("secret"), &mut unwatched).unwrap_err();
    assert!(matches!(error, FetchError::Reply { .. }), "{error}");

    for repo in ["", "/", "../x", "a/b/c", "owner/na me", "owner/name?x"] {
        assert!(
            matches!(scene.pull_as(repo, None, &mut unwatched), Err(FetchError::Name { .. })),
            "{repo}"
        );
    }
    assert!(!scene.dest().exists() && !files::with_ending(&scene.dest(), ".part").exists());
}

#[test]
fn refuses_what_is_no_model() {
    let error = scene(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")])
        .pull()
        .unwrap_err();
    assert!(
        error.to_string().contains("safetensors") && error.to_string().contains("pytorch_model.bin"),
        "{error}"
    );
    let error = scene(&[("model.safetensors", b"x")]).pull().unwrap_err();
    assert!(error.to_string().contains("no config.json"), "{error}");
    let evil = scene(&[("config.json", b"{}"), ("..\\x.safetensors", b"x")]);
    assert!(matches!(evil.pull(), Err(FetchError::Name { .. })));
}

#[test]
fn refuses_wrong_weights_and_an_occupied_folder() {
    let wrong = scene(SMALL);
    wrong
        .server
        .answer(&resolve("model.safetensors"), Answer::Bytes(vec![8; WEIGHTS.len()]));
    assert!(matches!(wrong.pull(), Err(FetchError::WrongHash { .. })));
    assert!(!wrong.dest().exists());

    let occupied = scene(SMALL);
    fs::create_dir_all(occupied.dest()).unwrap();
    fs::write(occupied.dest().join("thesis.txt"), "mine").unwrap();
    assert!(matches!(occupied.pull(), Err(FetchError::Occupied { .. })));
    assert_eq!(occupied.names(), BTreeSet::from(["thesis.txt".to_owned()]));
}
