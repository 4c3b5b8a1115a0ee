//! Finds an installed font with a character that the interface's own fonts lack.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use fontdb::{Database, Family, Query, Stretch, Style, Weight};
use protocol::FontFile;

/// Largest font file that is sent.
const MOST: usize = 48 << 20;

/// Characters that are remembered to be in no font.
const REMEMBERED: usize = 4096;

/// Families tried first: one plain weight each, made to be read on screens. Ideographs are drawn as one region writes
/// them, so those come by language: the user's first, the others in this order.
const LIKED: [(&str, &[&str]); 6] = [
    ("", &["Noto Sans"]),
    (
        "zh",
        &[
            "Noto Sans CJK SC",
            "Noto Sans SC",
            "Source Han Sans SC",
            "Source Han Sans",
            "PingFang SC",
            "Microsoft YaHei",
            "WenQuanYi Micro Hei",
        ],
    ),
    (
        "zh_TW",
        &[
            "Noto Sans CJK TC",
            "Noto Sans TC",
            "Source Han Sans TC",
            "PingFang TC",
            "Microsoft JhengHei",
        ],
    ),
    (
        "ja",
        &[
            "Noto Sans CJK JP",
            "Noto Sans JP",
            "Hiragino Sans",
            "Yu Gothic",
            "IPAPGothic",
        ],
    ),
    (
        "ko",
        &[
            "Noto Sans CJK KR",
            "Noto Sans KR",
            "Apple SD Gothic Neo",
            "Malgun Gothic",
        ],
    ),
    ("", &["DejaVu Sans", "Arial Unicode MS", "Segoe UI"]),
];

/// [`LIKED`] in the order for a locale as POSIX writes it (`ja_JP.UTF-8`).
fn liked(locale: &str) -> impl Iterator<Item = &'static str> {
    let language = match locale {
        l if l.starts_with("zh_TW") || l.starts_with("zh_HK") || l.starts_with("zh_MO") => "zh_TW",
        l => l.get(..2).unwrap_or("other"),
    };
    // "Noto Sans" has no ideographs, and everything else as it should look beside our own fonts.
    let soon = move |(of, names): &&(&str, &[&str])| *of == language || names == &["Noto Sans"];
    let rest = LIKED.iter().filter(move |l| !soon(l));
    LIKED
        .iter()
        .filter(soon)
        .chain(rest)
        .flat_map(|(_, names)| names.iter().copied())
}

/// The user's locale; empty where none is set.
fn locale() -> String {
    let set = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(set)
        .unwrap_or_default()
}

/// A script, the Debian package that brings a font, and the Unicode ranges that stand for it, ends included.
type Script = (&'static str, &'static str, &'static [(u32, u32)]);

const SCRIPTS: [Script; 13] = [
    (
        "Chinese, Japanese or Korean",
        "fonts-noto-cjk",
        &[
            (0x1100, 0x11ff),
            (0x2e80, 0x312f),
            (0x3130, 0x9fff),
            (0xa960, 0xa97f),
            (0xac00, 0xd7ff),
            (0xf900, 0xfaff),
            (0xfe30, 0xfe4f),
            (0xff00, 0xffef),
            (0x1f200, 0x1f2ff),
            (0x20000, 0x3ffff),
        ],
    ),
    (
        "Arabic",
        "fonts-noto-core",
        &[
            (0x600, 0x6ff),
            (0x750, 0x77f),
            (0x8a0, 0x8ff),
            (0xfb50, 0xfdff),
            (0xfe70, 0xfeff),
        ],
    ),
    ("Hebrew", "fonts-noto-core", &[(0x590, 0x5ff), (0xfb1d, 0xfb4f)]),
    ("Thai", "fonts-noto-core", &[(0xe00, 0xe7f)]),
    ("Indian", "fonts-noto-core", &[(0x900, 0xdff)]),
    (
        "Cyrillic",
        "fonts-noto-core",
        &[(0x400, 0x52f), (0x2de0, 0x2dff), (0xa640, 0xa69f)],
    ),
    ("Armenian", "fonts-noto-core", &[(0x530, 0x58f)]),
    ("Georgian", "fonts-noto-core", &[(0x10a0, 0x10ff), (0x2d00, 0x2d2f)]),
    ("Ethiopic", "fonts-noto-core", &[(0x1200, 0x139f)]),
    ("Tibetan", "fonts-noto-core", &[(0xf00, 0xfff)]),
    ("Khmer or Lao", "fonts-noto-core", &[(0xe80, 0xeff), (0x1780, 0x17ff)]),
    (
        "emoji",
        "fonts-noto-color-emoji",
        &[(0x1f300, 0x1faff), (0x2600, 0x27bf)],
    ),
    ("a rare script", "fonts-noto-extra", &[(0x80, 0x10_ffff)]),
];

/// The fonts of the system, looked for once.
fn database() -> &'static Database {
    static DATABASE: OnceLock<Database> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let mut db = Database::new();
        db.load_system_fonts();
        db
    })
}

/// A font with a character, or the sentence that says which package brings one. Reads font files.
pub(crate) fn find(c: char) -> FontFile {
    // Looking through all fonts in vain takes longest and is asked again for every text.
    static IN_VAIN: Mutex<BTreeSet<char>> = Mutex::new(BTreeSet::new());
    let in_vain = || IN_VAIN.lock().unwrap_or_else(PoisonError::into_inner);
    if in_vain().contains(&c) {
        return nothing(c);
    }
    let font = find_in(database(), c, &locale());
    if font.bytes.is_empty() && in_vain().len() < REMEMBERED {
        in_vain().insert(c);
    }
    font
}

fn nothing(c: char) -> FontFile {
    FontFile {
        family: String::new(),
        index: 0,
        bytes: Vec::new(),
        missing: missing(c),
    }
}

fn find_in(db: &Database, c: char, locale: &str) -> FontFile {
    let plain = |f: &&fontdb::FaceInfo| f.style == Style::Normal && f.stretch == Stretch::Normal;
    let liked = liked(locale).filter_map(|name| {
        db.query(&Query {
            families: &[Family::Name(name)],
            weight: Weight::NORMAL,
            stretch: Stretch::Normal,
            style: Style::Normal,
        })
    });
    // Then whatever there is: regular weights first, no fixed pitch, by name, so that the choice is always the same.
    let mut rest: Vec<&fontdb::FaceInfo> = db.faces().filter(plain).collect();
    let name = |f: &fontdb::FaceInfo| f.families.first().map(|n| n.0.clone()).unwrap_or_default();
    rest.sort_by_key(|f| (f.weight.0.abs_diff(400), f.monospaced, name(f)));
    for id in liked.chain(rest.iter().map(|f| f.id)) {
        let has = db.with_face_data(id, |data, index| {
            let face = ttf_parser::Face::parse(data, index).ok()?;
            // Fonts that hold nothing but pictures cannot be drawn.
            let drawn = face.tables().glyf.is_some() || face.tables().cff.is_some();
            (drawn && face.glyph_index(c).is_some() && data.len() <= MOST).then(|| (data.to_vec(), index))
        });
        if let (Some(Some((bytes, index))), Some(face)) = (has, db.face(id)) {
            return FontFile {
                family: name(face),
                index,
                bytes,
                missing: String::new(),
            };
        }
    }
    nothing(c)
}

fn missing(c: char) -> String {
    let code = c as u32;
    if c.is_control() {
        return format!("U+{code:04X} is a control character: it has no shape.");
    }
    let within = |ranges: &[(u32, u32)]| ranges.iter().any(|&(a, b)| (a..=b).contains(&code));
    let (script, package) = SCRIPTS
        .iter()
        .find(|(_, _, ranges)| within(ranges))
        .map_or(("text", "fonts-noto-core"), |(s, p, _)| (*s, *p));
    format!(
        "No installed font has {c} (U+{code:04X}, {script}): on Debian and Ubuntu, apt install {package} brings one."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_font_names_the_package_that_brings_one() {
        let none = Database::new();
        for (c, package) in [
            ('中', "fonts-noto-cjk"),
            ('の', "fonts-noto-cjk"),
            ('한', "fonts-noto-cjk"),
            ('ش', "fonts-noto-core"),
            ('ไ', "fonts-noto-core"),
            ('ж', "fonts-noto-core"),
            ('🦊', "fonts-noto-color-emoji"),
            ('\u{10330}', "fonts-noto-extra"),
        ] {
            let font = find_in(&none, c, "");
            assert!(
                font.bytes.is_empty() && font.missing.contains(package),
                "{c}: {}",
                font.missing
            );
        }
        assert!(missing('\u{7}').contains("control character"));
    }

    #[test]
    fn ideographs_are_drawn_as_the_users_language_writes_them() {
        for (locale, first) in [
            ("ja_JP.UTF-8", "Noto Sans CJK JP"),
            ("zh_CN.UTF-8", "Noto Sans CJK SC"),
            ("zh_TW.UTF-8", "Noto Sans CJK TC"),
            ("ko_KR.UTF-8", "Noto Sans CJK KR"),
            ("C.UTF-8", "Noto Sans CJK SC"),
            ("", "Noto Sans CJK SC"),
            ("日", "Noto Sans CJK SC"),
        ] {
            let order: Vec<&str> = liked(locale).collect();
            assert_eq!(order[0], "Noto Sans", "{locale}");
            let ideographs = order.iter().find(|n| n.contains("CJK"));
            assert_eq!(ideographs, Some(&first), "{locale}");
            // Every one is tried, once.
            assert_eq!(order.len(), LIKED.iter().map(|(_, names)| names.len()).sum::<usize>());
        }
        let font = find_in(database(), '直', "ja_JP.UTF-8");
        let installed = database()
            .faces()
            .any(|f| f.families.iter().any(|(n, _)| n == "Noto Sans CJK JP"));
        assert!(!installed || font.family == "Noto Sans CJK JP", "{}", font.family);
    }

    #[test]
    fn a_font_that_is_there_has_the_character() {
        let db = database();
        if db.is_empty() {
            return;
        }
        let font = find('a');
        let face = ttf_parser::Face::parse(&font.bytes, font.index).unwrap();
        assert!(face.glyph_index('a').is_some() && !font.family.is_empty());
        // Private characters are in hardly any font, and never lead to a font without them.
        let font = find('\u{10fffd}');
        let good =
            ttf_parser::Face::parse(&font.bytes, font.index).is_ok_and(|f| f.glyph_index('\u{10fffd}').is_some());
        assert!(good || !font.missing.is_empty());
    }
}
