//! Models in the cache of the Hugging Face libraries, and those this program pulled.
//!
//! The cache's form (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>): a folder `models--OWNER--NAME`
//! with `refs/main` (a commit) and `snapshots/COMMIT/` (links to the files).

use std::path::{Path, PathBuf};

use protocol::RecentModel;

use crate::models::{bytes_of, kind_of, name_of_path};

/// The folder of the Hugging Face libraries.
fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| Some(variable("HF_HOME")?.join("hub")))
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(variable("HOME")?.join(".cache/huggingface/hub")))
}

/// `owner/name` of a folder `models--owner--name`.
fn repo_of(folder: &str) -> Option<String> {
    let rest = folder.strip_prefix("models--")?;
    Some(
        rest.split_once("--")
            .map_or(rest.to_string(), |(owner, name)| format!("{owner}/{name}")),
    )
}

/// `owner/name` of a snapshot's path.
pub(super) fn repo_of_snapshot(path: &Path) -> Option<String> {
    let snapshots = path
        .parent()
        .filter(|p| p.file_name().is_some_and(|n| n == "snapshots"))?;
    repo_of(snapshots.parent()?.file_name()?.to_str()?)
}

/// The snapshot of a repository's folder: that of `main`, else the only one.
fn snapshot(repo: &Path) -> Option<PathBuf> {
    let snapshots = repo.join("snapshots");
    let commit = std::fs::read_to_string(repo.join("refs/main")).unwrap_or_default();
    // A commit is a plain name; anything else would lead elsewhere.
    let commit = commit.trim();
    let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    if plain && snapshots.join(commit).is_dir() {
        return Some(snapshots.join(commit));
    }
    let mut all = std::fs::read_dir(snapshots).ok()?.flatten().map(|e| e.path());
    all.next().filter(|_| all.next().is_none())
}

/// A model in a snapshot: the folder, or its only GGUF file. Weights must be there: the libraries also cache a
/// configuration alone.
fn model_in(snapshot: &Path) -> Option<PathBuf> {
    (kind_of(snapshot).is_some() && bytes_of(snapshot) > 0)
        .then(|| snapshot.to_path_buf())
        .or_else(|| {
            let files = std::fs::read_dir(snapshot).ok()?.flatten().map(|e| e.path());
            let mut ggufs = files.filter(|p| kind_of(p) == Some(protocol::SourceKind::Gguf));
            ggufs.next().filter(|_| ggufs.next().is_none())
        })
}

/// Where a repository is in the cache.
pub(super) fn find(repo: &str) -> Option<PathBuf> {
    find_in(&folder()?, repo)
}

fn find_in(folder: &Path, repo: &str) -> Option<PathBuf> {
    model_in(&snapshot(&folder.join(format!("models--{}", repo.replace('/', "--"))))?)
}

/// Models in the cache, and those in the folder of fetched models.
pub(super) fn scan(own: Option<&Path>) -> Vec<RecentModel> {
    let mut all = folder().map(|f| scan_hub(&f)).unwrap_or_default();
    all.extend(own.map(scan_own).unwrap_or_default());
    all.sort_by(|a, b| (a.name.to_lowercase(), &a.path).cmp(&(b.name.to_lowercase(), &b.path)));
    all
}

fn folders(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

fn line(name: String, path: PathBuf) -> Option<RecentModel> {
    Some(RecentModel {
        kind: kind_of(&path)?,
        bytes: bytes_of(&path),
        name,
        path: path.display().to_string(),
        opened: 0,
    })
}

fn scan_hub(folder: &Path) -> Vec<RecentModel> {
    let models = folders(folder).into_iter().filter_map(|repo| {
        let name = repo_of(repo.file_name()?.to_str()?)?;
        line(name, model_in(&snapshot(&repo)?)?)
    });
    models.collect()
}

/// Pulled repositories lie in folders `OWNER--NAME`.
fn scan_own(folder: &Path) -> Vec<RecentModel> {
    let models = folders(folder).into_iter().filter_map(|path| {
        let name = name_of_path(&path);
        let whole = path.extension().is_none_or(|e| e != "part") && bytes_of(&path) > 0;
        let name = name
            .split_once("--")
            .map_or(name.clone(), |(owner, n)| format!("{owner}/{n}"));
        line(name, path).filter(|_| whole)
    });
    models.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_cache_of_the_libraries() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        put(d, "models--a--Two/refs/main", "c2");
        for commit in ["c1", "c2"] {
            put(d, &format!("models--a--Two/snapshots/{commit}/config.json"), "{}");
            put(
                d,
                &format!("models--a--Two/snapshots/{commit}/model.safetensors"),
                "xyz",
            );
        }
        // A configuration alone is no model, nor is a commit that leads elsewhere.
        put(d, "models--a--Config/snapshots/c/config.json", "{}");
        put(d, "models--a--Evil/refs/main", "../../models--a--Two/snapshots/c1");
        put(d, "models--b--Gguf/snapshots/c/M.Q4_0.gguf", "gguf");
        put(d, "datasets--a--x/snapshots/c/config.json", "{}");
        let mut found = scan_hub(d);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = found.iter().map(|m| (m.name.as_str(), m.bytes)).collect();
        assert_eq!(names, [("a/Two", 3), ("b/Gguf", 4)]);
        assert!(found[0].path.ends_with("c2"), "{}", found[0].path);
        assert_eq!(find_in(d, "a/Two").unwrap(), Path::new(&found[0].path));
        assert_eq!(find_in(d, "a/None"), None);
    }

    #[test]
    fn pulled_models() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["o--m", "o--half.part"] {
            put(dir.path(), &format!("{name}/config.json"), "{}");
            put(dir.path(), &format!("{name}/model.safetensors"), "x");
        }
        let found = scan_own(dir.path());
        assert_eq!(found.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["o/m"]);
    }
}
