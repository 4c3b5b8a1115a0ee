//! Models: where they come from, what is on this machine.

pub(crate) mod facts;
pub(crate) mod fetching;
mod hf_cache;
mod recent;

use std::path::{Path, PathBuf};

use protocol::{CardModel, ErrorInfo, ModelSource, ModelsView, SourceKind};

pub(crate) use recent::{forget, note};

use crate::errors::{input, refused};
use crate::hub::Hub;
use crate::paths::{Paths, expand};

/// What the small chat model has on the disk once it is unpacked.
const SMOLLM2_PARAMETERS: u64 = 134_515_008;

/// Name of the bundled model.
pub(crate) const BUNDLED: &str = "MODEL1-mini";
/// Name of the small chat model.
pub(crate) const SMOLLM2: &str = "SmolLM2-135M-Instruct";

/// Where a model is, or how to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine.
    Here(PathBuf),
    /// SmolLM2, to be fetched into this folder.
    SmolLm2(PathBuf),
    /// A repository of the Hub, to be pulled into this folder.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Folder it will be.
        dest: PathBuf,
    },
}

/// Name for people.
pub(crate) fn name(source: &ModelSource) -> String {
    match source {
        ModelSource::Bundled => BUNDLED.into(),
        ModelSource::SmolLm2 => SMOLLM2.into(),
        ModelSource::Path(p) => name_of_path(&expand(p)),
        ModelSource::Hub(repo) => repo.rsplit('/').next().unwrap_or(repo).to_string(),
    }
}

/// The last part of a path; a snapshot in the Hugging Face cache has the name of its repository.
pub(crate) fn name_of_path(path: &Path) -> String {
    if let Some(repo) = hf_cache::repo_of_snapshot(path) {
        return repo.rsplit('/').next().unwrap_or(&repo).to_string();
    }
    let named = match path.extension() {
        Some(e) if e.eq_ignore_ascii_case("gguf") => path.file_stem(),
        _ => path.file_name(),
    };
    named.map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// Folder with fetched models.
fn cache(paths: &Paths) -> Result<&Path, ErrorInfo> {
    paths.cache.as_deref().ok_or_else(|| {
        refused(
            "There is no folder for fetched models: the environment names no home.",
            "Set HOME or MODEL1_CACHE and start again.",
        )
    })
}

/// Where the model of a source is.
///
/// # Errors
/// A name that cannot be one, or no place to put a fetched model.
pub(crate) fn locate(source: &ModelSource, paths: &Paths) -> Result<Place, ErrorInfo> {
    match source {
        ModelSource::Bundled => paths.bundled.clone().map(Place::Here).ok_or_else(|| {
            input(
                "The bundled model is not there.",
                "Put the folder model1-mini beside the program, or name it with MODEL1_BUNDLED.",
            )
        }),
        ModelSource::SmolLm2 => {
            let dir = cache(paths)?;
            Ok(fetch::smollm2_path(dir).map_or_else(|| Place::SmolLm2(dir.to_path_buf()), Place::Here))
        }
        ModelSource::Path(path) if path.trim().is_empty() => Err(input(
            "No path was given.",
            "Accepted: a folder with config.json and *.safetensors, or a .gguf file.",
        )),
        ModelSource::Path(path) => Ok(Place::Here(expand(path))),
        ModelSource::Hub(repo) => {
            let repo = repo_name(repo)?;
            if let Some(path) = hf_cache::find(&repo) {
                return Ok(Place::Here(path));
            }
            let dest = cache(paths)?.join(repo.replace('/', "--"));
            Ok(if dest.join("config.json").is_file() {
                Place::Here(dest)
            } else {
                Place::Hub { repo, dest }
            })
        }
    }
}

/// `owner/name` as people write it: addresses of the Hub are accepted, too.
fn repo_name(text: &str) -> Result<String, ErrorInfo> {
    let text = text.trim().trim_end_matches('/');
    let text = text.strip_prefix("https://").unwrap_or(text);
    let text = text
        .strip_prefix("huggingface.co/")
        .or_else(|| text.strip_prefix("hf.co/"))
        .unwrap_or(text);
    let text = text.split("/tree/").next().unwrap_or(text);
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    match text.split('/').collect::<Vec<_>>().as_slice() {
        [owner, name] if good(owner) && good(name) => Ok(format!("{owner}/{name}")),
        _ => Err(input(
            format!("`{}` is not a repository.", text.chars().take(80).collect::<String>()),
            "Accepted: OWNER/NAME, as on huggingface.co.",
        )),
    }
}

/// Bytes of the files of a model.
pub(crate) fn bytes_of(path: &Path) -> u64 {
    let length = |p: &Path| std::fs::metadata(p).map_or(0, |m| m.len());
    if path.is_file() {
        return length(path);
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let weights = entries.map(|e| e.path()).filter(|p| {
        let e = p.extension().and_then(|e| e.to_str()).unwrap_or("");
        matches!(e, "safetensors" | "gguf")
    });
    weights.map(|p| length(&p)).sum()
}

/// Whether a path looks like a model, and of which kind.
pub(crate) fn kind_of(path: &Path) -> Option<SourceKind> {
    if path.is_file() {
        let gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        return gguf.then_some(SourceKind::Gguf);
    }
    path.join("config.json").is_file().then_some(SourceKind::Folder)
}

/// The start screen. Looks at the disk.
pub(crate) fn view(hub: &Hub) -> ModelsView {
    let paths = &hub.paths;
    let mut device = hub.with(|inner| inner.device.clone());
    device.free_bytes = engine::memory::available().unwrap_or(0);
    let bundled = paths.bundled.as_deref().filter(|p| kind_of(p).is_some());
    let chat = paths.cache.as_deref().and_then(fetch::smollm2_path);
    ModelsView {
        bundled: CardModel {
            source: ModelSource::Bundled,
            name: BUNDLED.into(),
            about: "tells stories; every mechanism of MODEL1, trained".into(),
            licence: "MIT OR Apache-2.0".into(),
            parameters: bundled.map_or(0, facts::parameters_of),
            bytes: bundled.map_or(0, bytes_of),
            present: bundled.is_some(),
            missing: match (&paths.bundled, bundled) {
                (_, Some(_)) => String::new(),
                (Some(p), None) => format!("{} holds no model", p.display()),
                (None, None) => "the folder model1-mini is not beside the program".into(),
            },
        },
        chat: CardModel {
            source: ModelSource::SmolLm2,
            name: SMOLLM2.into(),
            about: "chats; fetched once from PyPI".into(),
            licence: "Apache-2.0".into(),
            parameters: SMOLLM2_PARAMETERS,
            bytes: chat.as_deref().map_or(fetch::SMOLLM2_BYTES, bytes_of),
            present: chat.is_some(),
            missing: match paths.cache {
                Some(_) => String::new(),
                None => "there is no folder to put it in: set HOME or MODEL1_CACHE".into(),
            },
        },
        recent: recent::list(paths),
        cached: hf_cache::scan(paths.cache.as_deref()),
        device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_as_people_write_them() {
        for text in [
            "a/b.c",
            " a/b.c/ ",
            "https://huggingface.co/a/b.c",
            "hf.co/a/b.c",
            "https://huggingface.co/a/b.c/tree/main",
        ] {
            assert_eq!(repo_name(text).unwrap(), "a/b.c", "{text}");
        }
        for text in [
            "",
            "a",
            "a/b/c",
            "../b",
            "a/..",
            "a/b c",
            "https://evil.example/a/b",
            "a/b?x",
        ] {
            let e = repo_name(text).unwrap_err();
            assert!(e.remedy.contains("OWNER/NAME"), "{text}: {e}");
        }
    }

    #[test]
    fn names_for_people() {
        assert_eq!(name_of_path(Path::new("/m/Tiny.Q4_1.gguf")), "Tiny.Q4_1");
        assert_eq!(name_of_path(Path::new("/m/tiny")), "tiny");
        let snapshot = Path::new("/h/hub/models--org--Model-1B/snapshots/0123");
        assert_eq!(name_of_path(snapshot), "Model-1B");
        assert_eq!(name(&ModelSource::Hub("org/x".into())), "x");
    }

    #[test]
    fn a_missing_cache_is_said() {
        let paths = Paths {
            data: None,
            not_kept: String::new(),
            bundled: None,
            cache: None,
            endpoint: String::new(),
            packages: String::new(),
        };
        for source in [
            ModelSource::Bundled,
            ModelSource::SmolLm2,
            ModelSource::Path(" ".into()),
        ] {
            let e = locate(&source, &paths).unwrap_err();
            assert!(!e.remedy.is_empty(), "{e}");
        }
    }
}
