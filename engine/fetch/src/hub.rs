//! Repositories of the Hugging Face Hub, or of a mirror that speaks its HTTP interface:
//! `/api/models/REPO/revision/REVISION?blobs=true` lists the files of one commit, `/REPO/resolve/COMMIT/FILE` is a file
//! (<https://huggingface.co/docs/hub/api>).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::at;
use crate::files;
use crate::http::{Client, Wanted};
use crate::{FetchError, Progress, Watch};

/// The Hub itself.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Stands in a pulled folder and tells where it came from.
const SOURCE_FILE: &str = ".source.json";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// What to pull, and from where.
// No Debug: the token is not for logs.
#[derive(Clone, Copy)]
pub struct Pull<'a> {
    /// `OWNER/NAME`.
    pub repo: &'a str,
    /// Branch, tag or commit; usually `main`.
    pub revision: &'a str,
    /// [`DEFAULT_ENDPOINT`] or a mirror.
    pub endpoint: &'a str,
    /// Access token for private and gated repositories. It is sent to the endpoint alone.
    pub token: Option<&'a str>,
}

/// A file of the repository, as its listing has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    size: Option<u64>,
    /// Known for the large files only (those in LFS or Xet storage).
    sha256: Option<String>,
}

/// Pulls what a transformers model consists of into the folder `dest`: configuration, tokenizer, chat template and
/// safetensors weights (`.bin`, `.pth`, `.onnx` and subfolders are left out). Returns the commit.
///
/// The files are gathered in `DEST.part` beside it and renamed at the end, so `dest` is either absent or whole; after a
/// failure the next call continues with what `DEST.part` holds, if the revision still names the same commit. Where
/// `dest` holds this repository and revision already, nothing is fetched.
///
/// # Errors
/// Everything in [`FetchError`].
pub fn pull(what: &Pull<'_>, dest: &Path, watch: &mut Watch<'_>) -> Result<String, FetchError> {
    pull_with(what, dest, || Client::new(Duration::from_millis(500)), watch)
}

fn pull_with(
    what: &Pull<'_>,
    dest: &Path,
    client: impl FnOnce() -> Client,
    watch: &mut Watch<'_>,
) -> Result<String, FetchError> {
    check_name("repository (OWNER/NAME)", what.repo, |name| {
        name.split('/').count() <= 2
    })?;
    check_name("revision", what.revision, |_| true)?;
    if let Some(commit) = pulled(what, dest)? {
        return Ok(commit);
    }
    if let Some(parent) = dest.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    let lock_path = files::with_ending(dest, ".lock");
    let lock = files::lock(&lock_path, what.repo, watch)?;
    let result = match pulled(what, dest)? {
        Some(commit) => Ok(commit),
        None => gather(what, dest, &client(), watch),
    };
    drop(lock);
    result
}

/// The commit in `dest`, if it was pulled from the same place; an error if `dest` holds something else.
fn pulled(what: &Pull<'_>, dest: &Path) -> Result<Option<String>, FetchError> {
    let occupied = || FetchError::Occupied {
        path: dest.to_owned(),
        wanted: format!("a pulled copy of {} at revision {}", what.repo, what.revision),
    };
    let mut entries = match fs::read_dir(dest) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(dest)(error)),
        Ok(entries) => entries,
    };
    if entries.next().is_none() {
        return Ok(None); // an empty folder is as good as none
    }
    let source = source_of(dest).ok_or_else(occupied)?;
    let same = |key: &str, value: &str| source[key].as_str() == Some(value);
    let commit = source["commit"].as_str().ok_or_else(occupied)?;
    let same_revision = same("revision", what.revision) || commit == what.revision;
    if same("repo", what.repo) && same_revision {
        Ok(Some(commit.to_owned()))
    } else {
        Err(occupied())
    }
}

fn source_of(folder: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(folder.join(SOURCE_FILE)).ok()?).ok()
}

fn gather(what: &Pull<'_>, dest: &Path, client: &Client, watch: &mut Watch<'_>) -> Result<String, FetchError> {
    let endpoint = what.endpoint.trim_end_matches('/');
    let listing_url = format!(
        "{endpoint}/api/models/{}/revision/{}?blobs=true",
        what.repo,
        what.revision.replace('/', "%2F")
    );
    let listing = client.text(&listing_url, what.token, watch)?;
    let (commit, listed) = listing_of(&listing).map_err(|reason| FetchError::Reply {
        url: listing_url,
        reason,
    })?;
    let chosen = choose(what.repo, &listed)?;

    let folder = files::with_ending(dest, ".part");
    open_part_folder(what, &folder, &commit)?;
    let fetch = Fetch {
        client,
        what,
        commit: &commit,
        folder: &folder,
    };
    let (weights, small): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|file| is_weights(&file.name));
    fetch.all(&small, watch)?;
    let weights = match small.iter().find(|file| file.name == INDEX) {
        Some(_) => indexed(&folder.join(INDEX), weights)?,
        None => unindexed(weights),
    };
    fetch.all(&weights, watch)?;

    if dest.exists() {
        fs::remove_dir(dest).map_err(at(dest))?; // empty, see `pulled`
    }
    fs::rename(&folder, dest).map_err(at(dest))?;
    Ok(commit)
}

/// Makes the folder for the files to gather, or takes one over that an earlier try left, if it is of the same commit.
fn open_part_folder(what: &Pull<'_>, folder: &Path, commit: &str) -> Result<(), FetchError> {
    let source = json!({ "repo": what.repo, "revision": what.revision, "commit": commit, "endpoint": what.endpoint });
    if folder.exists() && source_of(folder).as_ref() != Some(&source) {
        fs::remove_dir_all(folder).map_err(at(folder))?;
    }
    fs::create_dir_all(folder).map_err(at(folder))?;
    let path = folder.join(SOURCE_FILE);
    fs::write(&path, format!("{source:#}\n")).map_err(at(&path))
}

struct Fetch<'a> {
    client: &'a Client,
    what: &'a Pull<'a>,
    commit: &'a str,
    folder: &'a Path,
}

impl Fetch<'_> {
    /// Fetches the files one after the other; progress runs over all of them together where their sizes are known.
    fn all(&self, listed: &[Listed], watch: &mut Watch<'_>) -> Result<(), FetchError> {
        let total = listed.iter().map(|file| file.size).sum::<Option<u64>>();
        let mut before = 0;
        for file in listed {
            self.one(file, &mut |progress| match total {
                Some(_) => watch(&Progress {
                    done: before + progress.done,
                    total,
                    ..*progress
                }),
                None => watch(progress),
            })?;
            before += file.size.unwrap_or(0);
        }
        Ok(())
    }

    fn one(&self, file: &Listed, watch: &mut Watch<'_>) -> Result<(), FetchError> {
        let target = self.folder.join(&file.name);
        if target.exists() {
            return Ok(()); // an earlier try got this far
        }
        let part = files::with_ending(&target, ".part");
        let endpoint = self.what.endpoint.trim_end_matches('/');
        let url = format!("{endpoint}/{}/resolve/{}/{}", self.what.repo, self.commit, file.name);
        let (name, size) = (file.name.as_str(), file.size);
        let wanted = Wanted {
            url: &url,
            token: self.what.token,
            name,
            part: &part,
            size,
        };
        let continued = files::length(&part) > 0;
        self.client.download(&wanted, watch)?;
        if let Some(sha256) = &file.sha256 {
            match files::verify(&part, name, sha256, watch) {
                Err(FetchError::WrongHash { .. }) if continued => {
                    self.client.download(&wanted, watch)?;
                    files::verify(&part, name, sha256, watch)?;
                }
                result => result?,
            }
        }
        files::publish(&part, &target)
    }
}

/// Names go into addresses and paths as they are: letters, digits and `-_./`, no empty and no dot components.
fn check_name(what: &'static str, name: &str, also: impl Fn(&str) -> bool) -> Result<(), FetchError> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
    let component = |part: &str| !part.is_empty() && part != "." && part != "..";
    if name.chars().all(allowed) && name.split('/').all(component) && also(name) {
        return Ok(());
    }
    Err(FetchError::Name {
        what,
        name: name.to_owned(),
    })
}

/// The commit and the files of a listing.
fn listing_of(text: &str) -> Result<(String, Vec<Listed>), String> {
    let listing: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let commit = listing["sha"].as_str().ok_or("no commit (`sha`) in the listing")?;
    check_name("commit", commit, |_| true).map_err(|error| error.to_string())?;
    let siblings = listing["siblings"]
        .as_array()
        .ok_or("no files (`siblings`) in the listing")?;
    let mut files = Vec::new();
    for sibling in siblings {
        let name = sibling["rfilename"]
            .as_str()
            .ok_or("a file without a name (`rfilename`)")?
            .to_owned();
        let size = sibling["size"].as_u64().or_else(|| sibling["lfs"]["size"].as_u64());
        let sha256 = sibling["lfs"]["sha256"].as_str().map(str::to_owned);
        files.push(Listed { name, size, sha256 });
    }
    Ok((commit.to_owned(), files))
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// The files a model consists of, among those at the top of the repository.
fn choose(repo: &str, listed: &[Listed]) -> Result<Vec<Listed>, FetchError> {
    const EXACT: &[&str] = &[
        "config.json",
        "generation_config.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        INDEX,
    ];
    let wanted = |name: &str| {
        EXACT.contains(&name)
            || is_weights(name)
            || name.starts_with("chat_template")
            || (name.starts_with("tokenizer") && !name.ends_with(".bin"))
    };
    let chosen: Vec<_> = listed
        .iter()
        .filter(|file| !file.name.contains('/') && wanted(&file.name))
        .cloned()
        .collect();
    for file in &chosen {
        check_name("file name", &file.name, |name| !name.starts_with('.'))?;
    }
    let found = || {
        let names: Vec<_> = listed.iter().map(|file| file.name.as_str()).take(12).collect();
        if names.is_empty() {
            "it is empty".to_owned()
        } else {
            names.join(", ")
        }
    };
    let lacks = |missing| {
        Err(FetchError::NoModel {
            repo: repo.to_owned(),
            missing,
            found: found(),
        })
    };
    if !chosen.iter().any(|file| file.name == "config.json") {
        return lacks("config.json");
    }
    if !chosen.iter().any(|file| is_weights(&file.name)) {
        return lacks("*.safetensors");
    }
    Ok(chosen)
}

/// The weights that the index names: a repository may hold a second set under other names.
fn indexed(index: &Path, weights: Vec<Listed>) -> Result<Vec<Listed>, FetchError> {
    let reply = |reason: String| FetchError::Reply {
        url: INDEX.to_owned(),
        reason,
    };
    let text = fs::read_to_string(index).map_err(at(index))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| reply(error.to_string()))?;
    let map = value["weight_map"]
        .as_object()
        .ok_or_else(|| reply("no `weight_map`".into()))?;
    let mut names: BTreeSet<_> = map.values().filter_map(Value::as_str).collect();
    let chosen: Vec<_> = weights
        .into_iter()
        .filter(|file| names.remove(file.name.as_str()))
        .collect();
    match names.first() {
        Some(missing) => Err(reply(format!("it names {missing}, which the repository does not have"))),
        None => Ok(chosen),
    }
}

/// Without an index: the one file of the usual name, or all there are.
fn unindexed(weights: Vec<Listed>) -> Vec<Listed> {
    match weights.iter().find(|file| file.name == SINGLE) {
        Some(single) => vec![single.clone()],
        None => weights,
    }
}

#[cfg(test)]
mod tests;
