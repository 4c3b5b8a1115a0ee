//! Recorded runs: what a client of a host was told, kept in a file and told again without an engine.
//!
//! A file is a line of JSON ([`Header`]), then a zlib stream of blocks, each with its length as four little-endian
//! bytes before it. Blocks are CBOR and not the wire's postcard: CBOR names fields and variants, so a file stays
//! readable when messages gain fields (with `#[serde(default)]`), requests or variants; in postcard every such change
//! would make all older files unreadable. A block that cannot be read is left out and counted.

mod player;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use protocol::{ErrorInfo, ErrorKind, HostFrame, Reply, Request, Update};
use serde::{Deserialize, Serialize};

pub(crate) use player::{Player, Stage, answer, join, open};

/// End of the name of a recorded run.
pub const EXTENSION: &str = "m1run";
/// Version of the file's form that this program writes.
const VERSION: u32 = 1;
/// What the header calls the file.
const FORMAT: &str = "model1-run";
/// Largest block that is read, in bytes.
const LARGEST: u32 = 256 << 20;
/// Between two updates nothing is waited for longer than this: loading a model is not watched again in full.
const LONGEST_WAIT: Duration = Duration::from_millis(1500);

/// What a recorded run says of itself, in the first line of its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// `model1-run`.
    pub format: String,
    /// Version of the form.
    pub version: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// When, in seconds since 1970.
    pub recorded: u64,
    /// Operating system and machine in words.
    pub machine: String,
    /// The device in words.
    pub device: String,
    /// Name of the model.
    pub model: String,
}

/// Something that happened.
#[derive(Debug, Serialize, Deserialize)]
struct Block {
    /// Microseconds since the recording began.
    at_us: u64,
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
enum What {
    /// The host told what had changed.
    Update(Box<Update>),
    /// The host answered.
    Answer {
        request: Box<Request>,
        result: Box<Result<Reply, ErrorInfo>>,
    },
}

/// Whether a path names a recorded run.
pub(crate) fn is_run(path: &str) -> bool {
    Path::new(path.trim())
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(EXTENSION))
}

/// Records what a client asks and is told. Kept in memory, compressed, until [`Recorder::save`].
pub struct Recorder {
    begin: Instant,
    out: ZlibEncoder<Vec<u8>>,
    asked: BTreeMap<u64, Request>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            out: ZlibEncoder::new(Vec::new(), Compression::best()),
            asked: BTreeMap::new(),
        }
    }
}

impl Recorder {
    /// A request is on its way to the host.
    pub fn asked(&mut self, id: u64, request: &Request) {
        self.asked.insert(id, request.clone());
    }

    /// A frame of the host arrived.
    ///
    /// # Errors
    /// A frame that cannot be written.
    pub fn told(&mut self, frame: &HostFrame) -> std::io::Result<()> {
        let what = match frame {
            HostFrame::Welcome(_) => return Ok(()),
            HostFrame::Update(update) => What::Update(update.clone()),
            HostFrame::Reply { id, result } => match self.asked.remove(id) {
                Some(request) => What::Answer {
                    request: Box::new(request),
                    result: Box::new(result.clone().map(|r| *r)),
                },
                None => return Ok(()),
            },
        };
        let at_us = self.begin.elapsed().as_micros() as u64;
        let mut bytes = Vec::new();
        ciborium::into_writer(&Block { at_us, what }, &mut bytes).map_err(std::io::Error::other)?;
        let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&bytes)
    }

    /// Writes the file. `device` and `model` in words.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(self, path: &Path, device: &str, model: &str) -> std::io::Result<u64> {
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            recorded: crate::docs::now(),
            machine: crate::about::machine(),
            device: device.into(),
            model: model.into(),
        };
        let mut bytes = serde_json::to_vec(&header).map_err(std::io::Error::other)?;
        bytes.push(b'\n');
        bytes.extend(self.out.finish()?);
        std::fs::write(path, &bytes)?;
        Ok(bytes.len() as u64)
    }
}

/// An answer of a recorded run.
struct Answer {
    /// Updates that were told before it.
    after: usize,
    /// Revision of the current text then.
    revision: u64,
    request: Request,
    result: Result<Reply, ErrorInfo>,
}

/// A recorded run as it was read.
pub(crate) struct Tape {
    pub header: Header,
    /// When each update is due after the beginning, with the revision of the current text in it.
    updates: Vec<(Duration, u64, Update)>,
    answers: Vec<Answer>,
    /// Blocks of another program that could not be read.
    pub skipped: usize,
}

fn wrong(path: &Path, what: String) -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Input, format!("{}: {what}.", path.display())).remedy(format!(
        "Accepted: a run that this program or an older one recorded (model1 record --out NAME.{EXTENSION})."
    ))
}

impl Tape {
    /// Reads a file. One that was cut off is read as far as it goes.
    ///
    /// # Errors
    /// A file that cannot be read, or is none, or was written by a newer program.
    pub fn read(path: &Path) -> Result<Self, ErrorInfo> {
        let bytes =
            std::fs::read(path).map_err(|e| crate::errors::of_io("The recorded run cannot be read", path, &e))?;
        let end = bytes.iter().take(1 << 16).position(|b| *b == b'\n');
        let (line, rest) = bytes.split_at(end.unwrap_or(0));
        let header: Header = serde_json::from_slice(line).unwrap_or_default();
        if header.format != FORMAT {
            return Err(wrong(path, "found something that is no recorded run".into()));
        }
        if header.version == 0 || header.version > VERSION {
            return Err(wrong(
                path,
                format!(
                    "found a run of version {}, written by MODEL1 Explorer {}; this one reads version {VERSION}",
                    header.version, header.program
                ),
            ));
        }
        let mut tape = Self {
            header,
            updates: Vec::new(),
            answers: Vec::new(),
            skipped: 0,
        };
        tape.blocks(rest.get(1..).unwrap_or_default());
        if tape.updates.is_empty() {
            return Err(wrong(path, "nothing in it can be read".into()));
        }
        Ok(tape)
    }

    fn blocks(&mut self, bytes: &[u8]) {
        let mut stream = ZlibDecoder::new(bytes);
        let (mut last, mut due, mut revision) = (0, Duration::ZERO, 0);
        let mut length = [0; 4];
        while stream.read_exact(&mut length).is_ok() {
            let length = u32::from_le_bytes(length);
            let mut block = Vec::new();
            let whole = (&mut stream)
                .take(u64::from(length.min(LARGEST)))
                .read_to_end(&mut block);
            if whole.is_err() || block.len() != length as usize {
                return;
            }
            match ciborium::from_reader::<Block, _>(block.as_slice()) {
                Ok(Block {
                    at_us,
                    what: What::Update(mut update),
                }) => {
                    due += Duration::from_micros(at_us.saturating_sub(last)).min(LONGEST_WAIT);
                    last = at_us;
                    if let Some(state) = &mut update.state {
                        revision = state.doc_revision;
                        (state.driver, state.clients) = (true, 1);
                    }
                    self.updates.push((due, revision, *update));
                }
                Ok(Block {
                    what: What::Answer { request, result },
                    ..
                }) => self.answers.push(Answer {
                    after: self.updates.len(),
                    revision,
                    request: *request,
                    result: *result,
                }),
                Err(_) => self.skipped += 1,
            }
        }
    }

    /// What this run is, for people.
    pub fn about(&self) -> String {
        let h = &self.header;
        let skipped = match self.skipped {
            0 => String::new(),
            n => format!(" {n} parts of it were written by another version and cannot be read."),
        };
        format!(
            "A recorded run: {} on {}, {} (UTC).{skipped}",
            h.model,
            h.device,
            date(h.recorded)
        )
    }

    /// The answer to a request after `at` updates: of the same request, else of the one most like it.
    fn answer(&self, request: &Request, at: usize) -> Option<&Result<Reply, ErrorInfo>> {
        if matches!(request, Request::GetDoc) {
            let now = at.checked_sub(1).and_then(|i| self.updates.get(i)).map_or(0, |u| u.1);
            let mut docs = self.answers.iter().filter(|a| a.request == *request);
            let last = docs.clone().next_back();
            return docs.find(|a| a.revision >= now).or(last).map(|a| &a.result);
        }
        let near = |a: &Answer| unlike(request, &a.request);
        let best = self.answers.iter().filter_map(near).min()?;
        let same = || self.answers.iter().filter(|a| near(a) == Some(best));
        let before = same().rfind(|a| a.after <= at);
        before.or(same().next()).map(|a| &a.result)
    }
}

/// How far a recorded request is from the one that is asked; `None` if it answers something else.
fn unlike(asked: &Request, recorded: &Request) -> Option<u64> {
    if asked == recorded {
        return Some(0);
    }
    match (asked, recorded) {
        (Request::GetPlan { tokens: a, context: at }, Request::GetPlan { tokens: b, context }) if a == b => {
            Some(1 + at.abs_diff(*context))
        }
        _ => None,
    }
}

/// Seconds since 1970 as `2026-11-26 08:15`.
fn date(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days since 0000-03-01 in eras of 400 years (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}", rest / 3600, rest % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_as_calendars_have_them() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00");
        assert_eq!(date(1_795_680_900), "2026-11-26 08:15");
    }

    #[test]
    fn only_runs_are_runs() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.m1run");
        for (bytes, what) in [
            (&b"hello"[..], "no recorded run"),
            (b"{\"format\":\"model1-run\",\"version\":99}\n", "version 99"),
            (b"{\"format\":\"model1-run\",\"version\":1}\nnoise", "nothing in it"),
            (b"{\"format\":\"model1-run\",\"version\":1}", "no recorded run"),
        ] {
            std::fs::write(&file, bytes).unwrap();
            let e = Tape::read(&file).err().unwrap();
            assert!(e.what.contains(what) && e.remedy.contains("model1 record"), "{e}");
        }
        let e = Tape::read(&dir.path().join("missing.m1run")).err().unwrap();
        assert_eq!(e.kind, ErrorKind::Resource);
        assert!(is_run("/a/b.m1run") && is_run("x.M1RUN ") && !is_run("/a/m1run") && !is_run("x.gguf"));
    }
}
