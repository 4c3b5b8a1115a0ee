//! From errors of the parts to errors people see: what happened, on what, what to do.

use engine::EngineError;
use fetch::FetchError;
use kernels::ir::ExecError;
use protocol::{ErrorInfo, ErrorKind};

/// Stopped on request.
pub(crate) fn cancelled() -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Cancelled, "Stopped on request.")
}

/// Something the client may change.
pub(crate) fn input(what: impl Into<String>, remedy: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Input, what).remedy(remedy)
}

/// Something the client may not do now.
pub(crate) fn refused(what: impl Into<String>, remedy: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Refused, what).remedy(remedy)
}

/// A bug or a broken engine.
pub(crate) fn internal(what: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Internal, what)
        .remedy("This is a fault in MODEL1 Explorer: copy the details and report it.")
        .details(crate::about::versions())
}

/// There is no model.
pub(crate) fn no_model() -> ErrorInfo {
    refused("No model is loaded.", "Open one on the start screen first.")
}

/// An error of the engine in its own words.
pub(crate) fn of_engine(e: &EngineError) -> ErrorInfo {
    let kind = match e {
        EngineError::Cancelled | EngineError::Checkpoint(engine::CheckpointError::Cancelled) => return cancelled(),
        EngineError::Memory { .. } | EngineError::Exec(ExecError::OutOfMemory { .. }) => ErrorKind::Resource,
        EngineError::Checkpoint(engine::CheckpointError::Io { .. }) => ErrorKind::Resource,
        // A device that failed, or a process that ended: no fault of the text.
        EngineError::Exec(ExecError::Device(_) | ExecError::Fatal(_) | ExecError::Lost(_)) => ErrorKind::Resource,
        EngineError::Exec(ExecError::ContextFull { .. } | ExecError::TokenRange { .. }) => ErrorKind::Input,
        EngineError::Exec(_) => ErrorKind::Internal,
        _ => ErrorKind::Input,
    };
    let (what, remedy) = split(&e.to_string());
    let mut details = String::new();
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        details.push_str(&format!("caused by: {cause}\n"));
        source = cause.source();
    }
    details.push_str(&crate::about::versions());
    ErrorInfo {
        kind,
        what,
        remedy,
        details,
    }
}

/// An error of fetching a model.
pub(crate) fn of_fetch(e: &FetchError) -> ErrorInfo {
    let kind = match e {
        FetchError::Cancelled => {
            return ErrorInfo::new(ErrorKind::Cancelled, "The download was stopped.")
                .remedy("What has been fetched is kept for the next try.");
        }
        FetchError::NotFound { .. }
        | FetchError::Denied { .. }
        | FetchError::NoModel { .. }
        | FetchError::Name { .. }
        | FetchError::Occupied { .. } => ErrorKind::Input,
        _ => ErrorKind::Resource,
    };
    let text = e.to_string();
    let (what, remedy) = match text.split_once(". ") {
        // "--model DIR" is for the command line.
        Some((what, rest)) if matches!(e, FetchError::Unreachable { .. }) => {
            let rest = rest.split(". A model that").next().unwrap_or(rest);
            let more = "A model that is already on this machine needs no network: open its folder.";
            (sentence(what), format!("{rest}. {more}"))
        }
        _ => split(&text),
    };
    ErrorInfo {
        kind,
        what,
        remedy,
        details: crate::about::versions(),
    }
}

/// An error of the operating system at a path.
pub(crate) fn of_io(what: &str, path: &std::path::Path, e: &std::io::Error) -> ErrorInfo {
    let remedy = match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "Make room on the disk and try again.",
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            "Choose a folder this program may write to."
        }
        std::io::ErrorKind::NotFound => "Check the path.",
        _ => "Check the disk and try again.",
    };
    ErrorInfo::new(ErrorKind::Resource, format!("{what}: {}: {e}.", path.display())).remedy(remedy)
}

/// Messages of the parts end with what is accepted or what to do; that becomes the remedy.
fn split(text: &str) -> (String, String) {
    for (at, skip, lead) in [("; accepted: ", 2, ""), (", accepted: ", 2, ""), ("; ", 2, "")] {
        if let Some(i) = text.rfind(at) {
            let (what, rest) = (&text[..i], &text[i + skip..]);
            return (sentence(what), sentence(&format!("{lead}{rest}")));
        }
    }
    (sentence(text), String::new())
}

/// With a capital (unless it begins with a path or a name) and a full stop.
fn sentence(text: &str) -> String {
    let text = text.trim();
    let first = text.split(char::is_whitespace).next().unwrap_or("");
    let word = !first.is_empty() && first.chars().all(|c| c.is_ascii_lowercase() || c == ':' || c == ',');
    let mut out = match text.chars().next() {
        Some(c) if word => c.to_uppercase().chain(text.chars().skip(1)).collect(),
        _ => text.to_string(),
    };
    if !out.is_empty() && !out.ends_with(['.', '!', '?']) {
        out.push('.');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_becomes_the_remedy() {
        let e = EngineError::Config {
            path: "/m/config.json".into(),
            field: "model_type".into(),
            found: "\"bert\"".into(),
            accepted: "llama, gpt2".into(),
        };
        let e = of_engine(&e);
        assert_eq!(e.kind, ErrorKind::Input);
        assert_eq!(e.what, "/m/config.json: field `model_type`: found \"bert\".");
        assert_eq!(e.remedy, "Accepted: llama, gpt2.");
        assert!(e.details.contains("MODEL1 Explorer"), "{}", e.details);
    }

    #[test]
    fn memory_and_disk_are_the_machines() {
        let e = of_engine(&EngineError::Memory {
            what: "the KV cache".into(),
            needed: "9 GiB".into(),
            available: "1 GiB".into(),
            hint: "use less".into(),
        });
        assert_eq!(e.kind, ErrorKind::Resource);
        assert!(e.what.starts_with("Not enough memory: the KV cache"), "{}", e.what);
        assert_eq!(e.remedy, "Use less.");
        assert_eq!(of_engine(&EngineError::Cancelled).kind, ErrorKind::Cancelled);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let e = of_io("Texts cannot be saved", "/x".as_ref(), &full);
        assert!(e.remedy.contains("room"), "{e}");
    }

    #[test]
    fn a_broken_network_names_no_command_line() {
        let e = of_fetch(&FetchError::Unreachable {
            url: "https://h/x".into(),
            reason: "refused".into(),
            tries: 3,
        });
        assert_eq!(e.kind, ErrorKind::Resource);
        assert!(!e.remedy.contains("--model") && e.remedy.contains("proxy"), "{e}");
        assert!(e.what.starts_with("Cannot fetch https://h/x: refused (3 tries)"), "{e}");
    }
}
