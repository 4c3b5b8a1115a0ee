//! A full disk loses nothing. The disk is that of a child process whose files may not grow beyond a few KiB: the
//! system refuses every write beyond that, as a full disk does, for every user and in every sandbox.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(target_os = "linux")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::toy::Toy;
use common::*;
use host::Host;
use protocol::*;

/// Names the folder of the test in the child.
const FOLDER: &str = "MODEL1_TEST_FULL_DISK";
/// Largest file, in bytes.
const LIMIT: u64 = 8192;

#[test]
fn a_full_disk_loses_nothing() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return on_a_full_disk(Path::new(&folder));
    }
    let dir = tempfile::tempdir().unwrap();
    Toy::default().write(&dir.path().join("toy"));
    // Without the trap the signal that comes with the limit would end the program.
    let script = format!("trap '' XFSZ; exec prlimit --fsize={LIMIT}:unlimited -- \"$@\"");
    let out = Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_loses_nothing", "--nocapture"])
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert!(said.contains("the disk was full"), "{said}");
}

/// Makes room on the disk.
fn make_room() {
    let pid = std::process::id().to_string();
    let limit = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=unlimited"])
        .status();
    assert!(limit.unwrap().success());
}

fn on_a_full_disk(dir: &Path) {
    let room = Room::new();
    let options = || host::HostOptions {
        data_dir: Some(dir.join("data")),
        ..room.options()
    };
    let host = Host::start(options()).unwrap();
    let mut c = Client::greeted(&host, Hello::new("test"));
    c.open(ModelSource::Path(dir.join("toy").to_str().unwrap().into()), 0);

    // A short text is saved, a long one is not.
    c.written(send("short", spec(3)));
    let short = c.doc();
    let file = |doc: &DocView| -> PathBuf { dir.join(format!("data/texts/{}.json", doc.info.id)) };
    c.until("the file", |_| file(&short).is_file());
    let saved = std::fs::read(file(&short)).unwrap();
    c.written(send("and more", spec(300)));
    let long = c.doc();
    c.until("a notice", |c| {
        c.told.notices.iter().any(|n| n.text.contains("cannot be saved"))
    });
    let notice = c.told.notices[0].clone();
    assert!(
        notice.warning && notice.text.contains("File too large") && notice.text.contains("stay in memory"),
        "{}",
        notice.text
    );
    // The old file is whole, nothing lies beside it, and the text is there.
    assert_eq!(std::fs::read(file(&short)).unwrap(), saved);
    assert_eq!(std::fs::read_dir(dir.join("data/texts")).unwrap().count(), 1);
    assert_eq!(c.doc().nodes, long.nodes);

    // A report that does not fit is said and leaves nothing.
    let state = c.job(Request::Compare(CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Own,
        text: CompareText::Current,
        positions: 200,
        isolate: false,
    }));
    assert_eq!(state, JobState::Done);
    let job = c.told.jobs.iter().rfind(|j| j.kind == JobKind::Compare).unwrap().id;
    let export = Request::ExportComparison {
        job,
        folder: dir.join("report").to_str().unwrap().into(),
    };
    let e = c.ask(export.clone()).unwrap_err();
    assert!(
        e.kind == ErrorKind::Resource && e.what.contains("report could not be written") && !e.remedy.is_empty(),
        "{e}"
    );
    let names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    eprintln!("the disk was full");

    make_room();
    c.until("better news", |c| {
        c.told.notices.iter().any(|n| n.text.contains("saved again"))
    });
    assert!(matches!(c.ask(export), Ok(Reply::Written(files)) if files.len() > 8));
    // Lets go of the folder.
    drop(host);
    let host = Host::start(options()).unwrap();
    let mut c = Client::greeted(&host, Hello::new("test"));
    c.open(ModelSource::Path(dir.join("toy").to_str().unwrap().into()), 0);
    let Reply::Doc(back) = c.ask(Request::OpenDoc(long.info.id)).unwrap() else {
        panic!()
    };
    assert_eq!((&back.nodes, back.leaf), (&long.nodes, long.leaf));
}
