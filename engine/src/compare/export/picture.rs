//! From SVG to PNG.

use std::sync::{Arc, LazyLock};

use resvg::{tiny_skia, usvg};

/// Pixels per unit of the drawing, for sharp text.
const SCALE: f32 = 2.0;

/// Inter, cut to what charts need (SIL Open Font License, see the licence beside it).
const FONT: &[u8] = include_bytes!("../../../assets/Inter-charts.otf");

static OPTIONS: LazyLock<usvg::Options<'static>> = LazyLock::new(|| {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    usvg::Options {
        font_family: "Inter".into(),
        fontdb: Arc::new(fonts),
        ..usvg::Options::default()
    }
});

/// Draws.
pub(super) fn png(svg: &str) -> Result<Vec<u8>, String> {
    let tree = usvg::Tree::from_str(svg, &OPTIONS).map_err(|e| e.to_string())?;
    let size = tree.size();
    let (w, h) = (
        (size.width() * SCALE).ceil() as u32,
        (size.height() * SCALE).ceil() as u32,
    );
    let mut pixels = tiny_skia::Pixmap::new(w, h).ok_or_else(|| format!("no room for {w} x {h} pixels"))?;
    resvg::render(
        &tree,
        tiny_skia::Transform::from_scale(SCALE, SCALE),
        &mut pixels.as_mut(),
    );
    pixels.encode_png().map_err(|e| e.to_string())
}
