//! Texts and comparisons as files.

use std::io::{Cursor, Write};

use engine::Engine;
use engine::compare::export::{Environment, ExportError, files, write};
use protocol::{CompareResult, DocKind, ErrorInfo, ErrorKind, Reply, Role};
use zip::write::SimpleFileOptions;

use super::tree::Doc;
use crate::errors::{input, internal};
use crate::paths::expand;

/// The shown branch as a file (`txt`, `md`), or the whole tree (`json`).
///
/// # Errors
/// Another format.
pub(crate) fn file(doc: &Doc, format: &str) -> Result<Reply, ErrorInfo> {
    let bytes = match format {
        "txt" => plain(doc).into_bytes(),
        "md" => markdown(doc).into_bytes(),
        "json" => {
            let mut out = Vec::new();
            super::write(doc, &mut out).map_err(|e| internal(format!("The text could not be written: {e}.")))?;
            out
        }
        other => {
            return Err(input(
                format!("There is no format `{other}`."),
                "Accepted: txt, md, json.",
            ));
        }
    };
    let name = format!("{}.{format}", file_stem(&doc.info().title));
    Ok(Reply::File { name, bytes })
}

fn plain(doc: &Doc) -> String {
    let path = doc.path(doc.leaf);
    if doc.kind == DocKind::Text {
        let mut text: String = path.iter().map(|n| n.view.text.as_str()).collect();
        text.push('\n');
        return text;
    }
    let system = (!doc.system.trim().is_empty()).then_some(("System", doc.system.as_str()));
    let messages = path.iter().map(|n| (speaker(n.view.role), n.view.text.as_str()));
    let parts: Vec<String> = system
        .into_iter()
        .chain(messages)
        .map(|(who, text)| format!("{who}:\n{}\n", text.trim_end()))
        .collect();
    parts.join("\n")
}

fn speaker(role: Role) -> &'static str {
    match role {
        Role::System => "System",
        Role::User => "User",
        Role::Assistant => "Model",
    }
}

fn markdown(doc: &Doc) -> String {
    let info = doc.info();
    let mut out = format!("# {}\n\n*{}*\n\n", info.title.replace('#', "\\#"), info.model);
    let path = doc.path(doc.leaf);
    if doc.kind == DocKind::Text {
        // The prompt is bold, what the model wrote is not.
        for node in &path {
            let text = node.view.text.trim_end_matches('\n');
            match node.view.role {
                Role::User if !text.trim().is_empty() => {
                    let (lead, body) = text.split_at(text.len() - text.trim_start().len());
                    out.push_str(&format!("{lead}**{}**", body.trim_end()));
                    out.push_str(&body[body.trim_end().len()..]);
                }
                _ => out.push_str(&node.view.text),
            }
        }
        out.push('\n');
    } else {
        if !doc.system.trim().is_empty() {
            out.push_str(&format!("> {}\n\n", doc.system.trim().replace('\n', "\n> ")));
        }
        for node in &path {
            out.push_str(&format!(
                "**{}**\n\n{}\n\n",
                speaker(node.view.role),
                node.view.text.trim_end()
            ));
        }
    }
    let command = path.last().map(|n| n.command.as_str()).unwrap_or_default();
    if !command.is_empty() {
        out.push_str(&format!("\n```sh\n{command}\n```\n"));
    }
    out
}

/// A title as a file name any system takes.
fn file_stem(title: &str) -> String {
    let name: String = title
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || "-_".contains(c) {
                c
            } else {
                ' '
            }
        })
        .collect();
    let name = name.split_whitespace().take(8).collect::<Vec<_>>().join("-");
    if name.is_empty() {
        "text".into()
    } else {
        name.chars().take(60).collect()
    }
}

/// The report of a comparison: written to a folder, or as a ZIP.
///
/// # Errors
/// A folder that is not empty, a full disk, a picture that could not be drawn.
pub(crate) fn comparison(engine: &Engine, result: &CompareResult, folder: &str) -> Result<Reply, ErrorInfo> {
    let environment = Environment::gather(engine, concat!("MODEL1 Explorer ", env!("CARGO_PKG_VERSION")));
    if !folder.is_empty() {
        let written = write(result, &environment, &expand(folder)).map_err(|e| export_error(&e))?;
        return Ok(Reply::Written(
            written.iter().map(|p| p.display().to_string()).collect(),
        ));
    }
    let files = files(result, &environment).map_err(|e| export_error(&e))?;
    let stem = format!("comparison-{}", file_stem(&result.model));
    let bytes = pack(&stem, &files).map_err(|e| internal(format!("The report could not be packed: {e}.")))?;
    Ok(Reply::File {
        name: format!("{stem}.zip"),
        bytes,
    })
}

fn pack(stem: &str, files: &[(String, Vec<u8>)]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(format!("{stem}/{name}"), SimpleFileOptions::default())?;
        zip.write_all(bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}

fn export_error(e: &ExportError) -> ErrorInfo {
    match e {
        ExportError::Io { path, error } => crate::errors::of_io("The report could not be written", path, error),
        ExportError::Exists { .. } => input(e.to_string(), "Choose another folder."),
        ExportError::Picture { .. } => ErrorInfo::new(ErrorKind::Internal, e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Draft;
    use super::*;

    fn doc(kind: DocKind) -> Doc {
        let mut doc = Doc::new(1, kind, "MODEL1-mini", 0);
        doc.system = "Be brief.".into();
        let mut parent = None;
        for (role, text) in [(Role::User, "Once upon "), (Role::Assistant, "a time\n")] {
            let draft = Draft {
                parent,
                role,
                text: text.into(),
                tokens: Vec::new(),
                vocabulary: 0,
                spec: None,
            };
            parent = Some(doc.add(draft, 0));
        }
        doc
    }

    fn text(doc: &Doc, format: &str) -> (String, String) {
        match file(doc, format).unwrap() {
            Reply::File { name, bytes } => (name, String::from_utf8(bytes).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_text_and_a_chat_as_files() {
        assert_eq!(
            text(&doc(DocKind::Text), "txt"),
            ("Once-upon.txt".into(), "Once upon a time\n\n".into())
        );
        let (_, md) = text(&doc(DocKind::Text), "md");
        assert!(md.contains("**Once upon** a time"), "{md}");
        let (_, chat) = text(&doc(DocKind::Chat), "txt");
        assert_eq!(chat, "System:\nBe brief.\n\nUser:\nOnce upon\n\nModel:\na time\n");
        let (name, json) = text(&doc(DocKind::Chat), "json");
        assert_eq!(name, "Once-upon.json");
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
        assert!(
            file(&doc(DocKind::Text), "pdf")
                .unwrap_err()
                .remedy
                .contains("txt, md, json")
        );
    }

    #[test]
    fn titles_make_safe_file_names() {
        assert_eq!(file_stem("../../etc/passwd"), "etc-passwd");
        assert_eq!(file_stem("???"), "text");
        assert_eq!(file_stem("竜 の 話"), "竜-の-話");
    }

    #[test]
    fn a_report_is_one_folder_in_the_archive() {
        let bytes = pack("comparison-x", &[("a.csv".into(), b"1".to_vec())]).unwrap();
        let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
        assert_eq!(zip.by_index(0).unwrap().name(), "comparison-x/a.csv");
    }
}
