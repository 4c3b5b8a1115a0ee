//! Texts as JSON files. The first line holds the head, so that a list of many texts reads one line of each:
//!
//! ```text
//! {"head":{"format":"model1-text","version":1,"id":5,...},
//! "system":"","leaf":1,
//! "nodes":[
//! {...},
//! {...}
//! ]}
//! ```

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;

use protocol::{
    Alternative, DocInfo, DocKind, ErrorInfo, FinishView, GenerateSpec, NodeView, Role, RunSummary, TokenInfo,
};
use serde::{Deserialize, Serialize};

use super::tree::{Doc, Node};

const FORMAT: &str = "model1-text";
const VERSION: u32 = 1;
/// Longest head line; a file whose first line is longer is not one of ours.
const LONGEST_HEAD: u64 = 1 << 16;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    id: u64,
    kind: DocKind,
    /// As shown.
    shown: String,
    /// As given; empty = made from the first words.
    title: String,
    model: String,
    created: u64,
    changed: u64,
    messages: u32,
}

#[derive(Deserialize)]
struct OnlyHead {
    head: Head,
}

#[derive(Deserialize)]
struct File {
    head: Head,
    system: String,
    leaf: Option<u32>,
    nodes: Vec<FileNode>,
}

/// (token, text, logprob, alternatives, position, recipe): NaN is written as null.
type FileToken = (u32, String, Option<f32>, Vec<(u32, String, Option<f32>)>, u64, u16);

#[derive(Serialize, Deserialize)]
struct FileNode {
    parent: Option<u32>,
    role: Role,
    text: String,
    finish: FinishView,
    created: u64,
    spec: Option<GenerateSpec>,
    recipes: Vec<String>,
    summary: Option<RunSummary>,
    error: Option<ErrorInfo>,
    given: u32,
    vocabulary: u64,
    command: String,
    tokens: Vec<FileToken>,
}

fn number(x: f32) -> Option<f32> {
    x.is_finite().then_some(x)
}

impl FileNode {
    fn new(node: &Node) -> Self {
        let v = &node.view;
        let token = |t: &TokenInfo| {
            let top = t.top.iter().map(|a| (a.token, a.text.clone(), number(a.logprob)));
            let top = top.collect();
            (t.token, t.text.clone(), number(t.logprob), top, t.position, t.recipe)
        };
        Self {
            parent: v.parent,
            role: v.role,
            text: v.text.clone(),
            finish: v.finish,
            created: v.created,
            spec: v.spec.clone(),
            recipes: v.recipes.clone(),
            summary: v.summary.clone(),
            error: v.error.clone(),
            given: node.given,
            vocabulary: node.vocabulary,
            command: node.command.clone(),
            tokens: v.tokens.iter().map(token).collect(),
        }
    }

    fn into_node(self, id: u32) -> Node {
        let token = |(token, text, logprob, top, position, recipe): FileToken| TokenInfo {
            token,
            text,
            logprob: logprob.unwrap_or(f32::NAN),
            top: top
                .into_iter()
                .map(|(token, text, logprob)| Alternative {
                    token,
                    text,
                    logprob: logprob.unwrap_or(f32::NEG_INFINITY),
                })
                .collect(),
            position,
            recipe,
        };
        Node {
            given: self.given,
            vocabulary: self.vocabulary,
            command: self.command,
            view: NodeView {
                id,
                parent: self.parent,
                role: self.role,
                text: self.text,
                tokens: self.tokens.into_iter().map(token).collect(),
                // The host that wrote it is gone.
                finish: match self.finish {
                    FinishView::Running => FinishView::Cancelled,
                    other => other,
                },
                spec: self.spec,
                recipes: self.recipes,
                summary: self.summary,
                error: self.error,
                created: self.created,
            },
        }
    }
}

/// The file of a text.
pub(crate) fn write(doc: &Doc, out: &mut impl Write) -> std::io::Result<()> {
    let info = doc.info();
    let head = Head {
        format: FORMAT.into(),
        version: VERSION,
        id: doc.id,
        kind: doc.kind,
        shown: info.title,
        title: doc.title.clone(),
        model: doc.model.clone(),
        created: doc.created,
        changed: doc.changed,
        messages: info.messages,
    };
    write!(out, "{{\"head\":{},", serde_json::to_string(&head)?)?;
    let system = serde_json::to_string(&doc.system)?;
    write!(
        out,
        "\n\"system\":{system},\"leaf\":{},",
        serde_json::to_string(&doc.leaf)?
    )?;
    write!(out, "\n\"nodes\":[")?;
    for (i, node) in doc.nodes.iter().enumerate() {
        out.write_all(if i == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, &FileNode::new(node))?;
    }
    out.write_all(b"\n]}\n")
}

fn info(head: &Head) -> Result<DocInfo, String> {
    if head.format != FORMAT {
        return Err(format!("format: found `{}`, accepted: `{FORMAT}`", head.format));
    }
    if head.version != VERSION {
        return Err(format!("version: found {}, accepted: {VERSION}", head.version));
    }
    Ok(DocInfo {
        id: head.id,
        title: head.shown.clone(),
        kind: head.kind,
        model: head.model.clone(),
        changed: head.changed,
        messages: head.messages,
    })
}

/// The line of a file in the list; reads its first line only.
///
/// # Errors
/// Why it is not a text of ours, in words.
pub(crate) fn read_info(path: &Path) -> Result<DocInfo, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut line = String::new();
    let mut reader = BufReader::new(std::io::Read::take(file, LONGEST_HEAD));
    reader.read_line(&mut line).map_err(|e| e.to_string())?;
    let line = line.trim_end();
    let line = line
        .strip_suffix(',')
        .ok_or("the first line is not the head of a text")?;
    let parsed: OnlyHead = serde_json::from_str(&format!("{line}}}")).map_err(|e| e.to_string())?;
    info(&parsed.head)
}

/// A whole text.
///
/// # Errors
/// Why it is not a text of ours, in words.
pub(crate) fn read(path: &Path) -> Result<Doc, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let file: File = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    info(&file.head)?;
    let nodes: Vec<Arc<Node>> = file
        .nodes
        .into_iter()
        .enumerate()
        .map(|(i, n)| Arc::new(n.into_node(i as u32)))
        .collect();
    for node in &nodes {
        let v = &node.view;
        if v.parent.is_some_and(|p| p >= v.id) {
            return Err(format!("message {}: its parent is not before it", v.id));
        }
        if node.given as usize > v.tokens.len() {
            return Err(format!("message {}: more tokens given than there are", v.id));
        }
    }
    if file.leaf.is_some_and(|l| l as usize >= nodes.len()) {
        return Err("leaf: there is no such message".into());
    }
    Ok(Doc {
        id: file.head.id,
        kind: file.head.kind,
        title: file.head.title,
        model: file.head.model,
        created: file.head.created,
        changed: file.head.changed,
        system: file.system,
        nodes,
        leaf: file.leaf,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tree::Draft;
    use super::*;

    fn sample(text: &str) -> Doc {
        let mut doc = Doc::new(77, DocKind::Chat, "m", 5);
        doc.system = "Be\nbrief, \"please\"".into();
        let user = Draft {
            parent: None,
            role: Role::User,
            text: text.into(),
            tokens: Vec::new(),
            vocabulary: 0,
            spec: None,
        };
        let parent = Some(doc.add(user, 6));
        let tokens = vec![TokenInfo {
            token: 5,
            text: text.into(),
            logprob: f32::NAN,
            top: vec![Alternative {
                token: 6,
                text: "\u{fffd}".into(),
                logprob: -0.1,
            }],
            position: 9,
            recipe: 0,
        }];
        let id = doc.add(
            Draft {
                parent,
                role: Role::Assistant,
                text: text.into(),
                tokens,
                vocabulary: 3,
                spec: None,
            },
            7,
        );
        doc.recipe_number(id, "h");
        doc
    }

    fn written(doc: &Doc) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("77.json");
        write(doc, &mut std::fs::File::create(&path).unwrap()).unwrap();
        (dir, path)
    }

    #[test]
    fn the_file_is_plain_json_and_its_first_line_is_the_head() {
        let doc = sample("hello");
        let (_dir, path) = written(&doc);
        let text = std::fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["nodes"][1]["tokens"][0][2], serde_json::Value::Null);
        assert_eq!(read_info(&path).unwrap(), doc.info());
    }

    #[test]
    fn a_message_that_was_being_written_is_over() {
        let mut doc = sample("a");
        doc.node_mut(1).unwrap().view.finish = FinishView::Running;
        let (_dir, path) = written(&doc);
        assert_eq!(read(&path).unwrap().nodes[1].view.finish, FinishView::Cancelled);
    }

    #[test]
    fn other_files_are_refused_in_words() {
        let doc = sample("a");
        let (_dir, path) = written(&doc);
        let good = std::fs::read_to_string(&path).unwrap();
        for (bad, why) in [
            (String::new(), "head"),
            ("{}".into(), "head"),
            (good.replace("model1-text", "other"), "format"),
            (good.replace("\"version\":1", "\"version\":2"), "version"),
        ] {
            std::fs::write(&path, bad).unwrap();
            let e = read_info(&path).unwrap_err();
            assert!(e.contains(why), "{e}");
        }
        for (from, to, why) in [
            ("\"leaf\":1", "\"leaf\":2", "leaf"),
            ("\"parent\":0", "\"parent\":1", "parent"),
            ("\"given\":1", "\"given\":2", "given"),
            ("\n]}", "", "EOF"),
        ] {
            std::fs::write(&path, good.replace(from, to)).unwrap();
            let e = read(&path).unwrap_err();
            assert!(e.contains(why), "{from}: {e}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC*|[\\x00-\\x1f]{0,9}") {
            let doc = sample(&text);
            let (_dir, path) = written(&doc);
            let back = read(&path).unwrap();
            prop_assert_eq!(&back.system, &doc.system);
            prop_assert_eq!(back.leaf, doc.leaf);
            prop_assert_eq!(&back.nodes[1].view.text, &text);
            prop_assert_eq!(&back.nodes[1].view.tokens[0].top, &doc.nodes[1].view.tokens[0].top);
            prop_assert!(back.nodes[1].view.tokens[0].logprob.is_nan());
            prop_assert_eq!(back.info(), doc.info());
            prop_assert_eq!(read_info(&path).unwrap(), doc.info());
        }
    }
}
