//! Colours, sizes and fonts. Nothing else in this crate names one.

use std::sync::Arc;

use egui::epaint::Shadow;
use egui::style::{HandleShape, ScrollStyle, Selection, TextCursorStyle, WidgetVisuals, Widgets};
use egui::{
    Color32, CornerRadius, FontData, FontDefinitions, FontFamily, FontId, Margin, Stroke, Style, TextStyle, Theme,
    Visuals, vec2,
};

/// Grid of all distances.
pub const GRID: f32 = 4.0;
/// Padding of panels.
pub const PAD: f32 = 12.0;
/// Height of a row.
pub const ROW: f32 = 24.0;
/// Corner radius.
pub const RADIUS: u8 = 6;
/// Width of lines.
pub const LINE: f32 = 1.0;
/// Body text.
pub const BODY: f32 = 13.0;
/// Captions.
pub const CAPTION: f32 = 11.0;
/// Titles and running text of stories.
pub const TITLE: f32 = 16.0;
/// Large figures.
pub const FIGURE: f32 = 22.0;
/// Monospaced text beside body text: JetBrains Mono runs larger than Inter at one size.
pub const MONO: f32 = 12.0;
/// Longest fade, in seconds.
pub const FADE: f32 = 0.12;

/// The colours of one theme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Palette {
    /// Behind everything.
    pub canvas: Color32,
    /// Panels.
    pub panel: Color32,
    /// Buttons, fields, cards on panels.
    pub raised: Color32,
    /// Lines and frames.
    pub line: Color32,
    /// Text.
    pub text: Color32,
    /// Secondary text and units.
    pub secondary: Color32,
    /// Faint text: hints, disabled.
    pub faint: Color32,
    /// Accent; side A.
    pub accent: Color32,
    /// Side B.
    pub second: Color32,
    /// Good.
    pub good: Color32,
    /// Warning.
    pub warn: Color32,
    /// Bad.
    pub bad: Color32,
    /// Text on an accent fill.
    pub on_accent: Color32,
    /// Fill of something hovered.
    pub hover: Color32,
    /// Fill of something selected.
    pub selected: Color32,
    /// NaN and infinities.
    pub not_finite: Color32,
    /// Components of the KV cache in the order of `KvBytes::parts`.
    pub kv: [Color32; 6],
    /// Middle of the diverging map.
    pub neutral: Color32,
}

const fn rgb(hex: u32) -> Color32 {
    Color32::from_rgb((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
}

impl Palette {
    /// Dark.
    pub const DARK: Self = Self {
        canvas: rgb(0x0e1116),
        panel: rgb(0x151a21),
        raised: rgb(0x1d242d),
        line: rgb(0x2a323d),
        text: rgb(0xe6eaf0),
        secondary: rgb(0x9aa6b4),
        faint: rgb(0x5f6b7a),
        accent: rgb(0x4da3ff),
        second: rgb(0xffb020),
        good: rgb(0x3fbf7f),
        warn: rgb(0xe0a72e),
        bad: rgb(0xe5534b),
        on_accent: rgb(0x0b1522),
        hover: rgb(0x252e39),
        selected: rgb(0x1c3a5c),
        not_finite: rgb(0xff00ff),
        kv: [
            rgb(0x3ac0b2),
            rgb(0xa78bfa),
            rgb(0xf27cae),
            rgb(0x9bbf45),
            rgb(0xc7a27c),
            rgb(0x75859a),
        ],
        neutral: rgb(0x2a323d),
    };

    /// Light.
    pub const LIGHT: Self = Self {
        canvas: rgb(0xf6f7f9),
        panel: rgb(0xffffff),
        raised: rgb(0xffffff),
        line: rgb(0xdde2e8),
        text: rgb(0x171b21),
        secondary: rgb(0x56616e),
        faint: rgb(0x8a94a1),
        accent: rgb(0x0b6bdd),
        second: rgb(0xb86e00),
        good: rgb(0x1e8e5a),
        warn: rgb(0xa66f00),
        bad: rgb(0xc93c37),
        on_accent: rgb(0xffffff),
        hover: rgb(0xeef1f5),
        selected: rgb(0xd6e6fb),
        not_finite: rgb(0xd400d4),
        kv: [
            rgb(0x0f8f83),
            rgb(0x7a55d9),
            rgb(0xc23d82),
            rgb(0x6a8a12),
            rgb(0x96693a),
            rgb(0x6a7789),
        ],
        neutral: rgb(0xe7ebf0),
    };

    /// The palette in force.
    pub fn of(ui: &egui::Ui) -> &'static Self {
        Self::for_dark(ui.visuals().dark_mode)
    }

    /// The palette in force, without a `Ui`.
    pub fn of_context(ctx: &egui::Context) -> &'static Self {
        Self::for_dark(ctx.theme() == Theme::Dark)
    }

    /// By darkness.
    pub fn for_dark(dark: bool) -> &'static Self {
        if dark { &Self::DARK } else { &Self::LIGHT }
    }

    /// Colour of the line of layer `index` of `count`: along viridis, away from its darkest and lightest ends.
    pub fn layer(&self, index: usize, count: usize) -> Color32 {
        let dark = *self == Self::DARK;
        let t = if count < 2 {
            0.5
        } else {
            index as f32 / (count - 1) as f32
        };
        let (low, high) = if dark { (0.3, 0.98) } else { (0.05, 0.82) };
        viridis(low + t * (high - low))
    }

    /// Diverging map: blue (A) at -1, neutral at 0, amber (B) at 1.
    pub fn diverging(&self, t: f32) -> Color32 {
        if t.is_nan() {
            return self.not_finite;
        }
        let end = if t < 0.0 { self.accent } else { self.second };
        mix(self.neutral, end, t.abs().min(1.0))
    }
}

/// Mixes two opaque colours in gamma space; `t` = 1 gives `b`.
pub fn mix(a: Color32, b: Color32, t: f32) -> Color32 {
    let c = |x: u8, y: u8| (f32::from(x) + (f32::from(y) - f32::from(x)) * t).round() as u8;
    Color32::from_rgb(c(a.r(), b.r()), c(a.g(), b.g()), c(a.b(), b.b()))
}

/// Sequential map for `t` in 0..=1; NaN and infinities give the marker colour of the dark theme.
pub fn viridis(t: f32) -> Color32 {
    // Seventeen samples of matplotlib's viridis (CC0), linear between them: at most 2/255 off.
    const STOPS: [u32; 17] = [
        0x440154, 0x481769, 0x472a7a, 0x433d84, 0x3d4e8a, 0x355e8d, 0x2e6d8e, 0x297b8e, 0x23898e, 0x1f978b, 0x21a585,
        0x2eb37c, 0x46c06f, 0x65cb5e, 0x89d548, 0xb0dd2f, 0xfde725,
    ];
    if !t.is_finite() {
        return Palette::DARK.not_finite;
    }
    let x = t.clamp(0.0, 1.0) * 16.0;
    let i = (x as usize).min(15);
    mix(rgb(STOPS[i]), rgb(STOPS[i + 1]), x - i as f32)
}

/// Black or white, whichever reads better on `fill`.
pub fn text_on(fill: Color32) -> Color32 {
    let linear = |v: u8| (f32::from(v) / 255.0).powf(2.2);
    let luminance = 0.2126 * linear(fill.r()) + 0.7152 * linear(fill.g()) + 0.0722 * linear(fill.b());
    if luminance > 0.18 {
        Color32::BLACK
    } else {
        Color32::WHITE
    }
}

/// Semibold text.
pub fn strong_family() -> FontFamily {
    FontFamily::Name("strong".into())
}

/// Body text.
pub fn body() -> FontId {
    FontId::proportional(BODY)
}

/// Captions.
pub fn caption() -> FontId {
    FontId::proportional(CAPTION)
}

/// Tokens, ids, numbers in tables.
pub fn mono() -> FontId {
    FontId::monospace(MONO)
}

/// Monospaced captions.
pub fn mono_caption() -> FontId {
    FontId::monospace(10.0)
}

/// Semibold body text.
pub fn strong() -> FontId {
    FontId::new(BODY, strong_family())
}

/// Titles.
pub fn title() -> FontId {
    FontId::new(TITLE, strong_family())
}

/// Large figures.
pub fn figure() -> FontId {
    FontId::new(FIGURE, strong_family())
}

/// Running text of stories and chats.
pub fn reading() -> FontId {
    FontId::proportional(TITLE)
}

/// The bundled fonts, then those the host found for other scripts: (family, file).
pub fn fonts(extra: &[(String, Arc<FontData>)]) -> FontDefinitions {
    let mut d = FontDefinitions::empty();
    let bundled: [(&str, &'static [u8]); 3] = [
        ("inter", include_bytes!("../assets/fonts/Inter-Regular.otf")),
        ("inter-semibold", include_bytes!("../assets/fonts/Inter-SemiBold.otf")),
        (
            "jetbrains-mono",
            include_bytes!("../assets/fonts/JetBrainsMono-Regular.ttf"),
        ),
    ];
    for (name, bytes) in bundled {
        d.font_data.insert(name.into(), Arc::new(FontData::from_static(bytes)));
    }
    d.font_data.insert(
        "phosphor".into(),
        Arc::new(
            FontData::from_static(include_bytes!("../assets/fonts/Phosphor.ttf")).tweak(egui::FontTweak {
                scale: 1.15,
                y_offset_factor: 0.05,
                ..Default::default()
            }),
        ),
    );
    for (family, data) in extra {
        d.font_data.insert(family.clone(), data.clone());
    }
    let family = |first: &[&str]| -> Vec<String> {
        let bundled = first.iter().map(|name| (*name).to_string());
        bundled.chain(extra.iter().map(|(name, _)| name.clone())).collect()
    };
    d.families.insert(
        FontFamily::Proportional,
        family(&["inter", "phosphor", "jetbrains-mono"]),
    );
    d.families
        .insert(FontFamily::Monospace, family(&["jetbrains-mono", "phosphor", "inter"]));
    d.families.insert(
        strong_family(),
        family(&["inter-semibold", "phosphor", "jetbrains-mono"]),
    );
    d
}

/// Puts fonts and both themes in force.
pub fn install(ctx: &egui::Context) {
    ctx.set_fonts(fonts(&[]));
    ctx.set_style_of(Theme::Dark, style(&Palette::DARK, true));
    ctx.set_style_of(Theme::Light, style(&Palette::LIGHT, true));
}

/// Switches fades off (or on again).
pub fn set_motion(ctx: &egui::Context, motion: bool) {
    ctx.all_styles_mut(|s| {
        s.animation_time = if motion { FADE } else { 0.0 };
        if motion {
            s.scroll_animation = egui::style::ScrollAnimation::duration(FADE);
        } else {
            s.scroll_animation = egui::style::ScrollAnimation::none();
        }
    });
}

fn style(p: &Palette, motion: bool) -> Style {
    let mut s = Style {
        visuals: visuals(p),
        ..Default::default()
    };
    s.text_styles = [
        (TextStyle::Small, caption()),
        (TextStyle::Body, body()),
        (TextStyle::Button, body()),
        (TextStyle::Heading, title()),
        (TextStyle::Monospace, mono()),
    ]
    .into();
    s.drag_value_text_style = TextStyle::Monospace;
    s.animation_time = if motion { FADE } else { 0.0 };
    s.scroll_animation = egui::style::ScrollAnimation::duration(FADE);
    s.explanation_tooltips = false;
    s.compact_menu_style = true;
    let g = &mut s.spacing;
    g.item_spacing = vec2(2.0 * GRID, GRID);
    g.window_margin = Margin::same(PAD as i8);
    g.menu_margin = Margin::same(GRID as i8);
    g.button_padding = vec2(2.0 * GRID, 3.0);
    g.interact_size = vec2(ROW, ROW);
    g.indent = 4.0 * GRID;
    g.slider_width = 160.0;
    g.slider_rail_height = 4.0;
    g.combo_width = 80.0;
    g.icon_width = 14.0;
    g.icon_width_inner = 8.0;
    g.icon_spacing = 6.0;
    g.tooltip_width = 360.0;
    g.menu_width = 320.0;
    g.scroll = ScrollStyle {
        bar_width: 8.0,
        floating_width: 3.0,
        floating_allocated_width: 0.0,
        handle_min_length: 24.0,
        foreground_color: false,
        bar_inner_margin: 2.0,
        bar_outer_margin: 2.0,
        dormant_background_opacity: 0.0,
        active_background_opacity: 0.0,
        interact_background_opacity: 0.3,
        dormant_handle_opacity: 0.5,
        active_handle_opacity: 0.8,
        interact_handle_opacity: 1.0,
        ..ScrollStyle::floating()
    };
    s.interaction.selectable_labels = false;
    s.interaction.tooltip_delay = 0.25;
    s.interaction.tooltip_grace_time = 0.3;
    s.interaction.show_tooltips_only_when_still = false;
    s
}

fn visuals(p: &Palette) -> Visuals {
    let dark = *p == Palette::DARK;
    let radius = CornerRadius::same(RADIUS);
    let state = |fill: Color32, frame: Color32, ink: Color32| WidgetVisuals {
        bg_fill: fill,
        weak_bg_fill: fill,
        bg_stroke: Stroke::new(LINE, frame),
        corner_radius: radius,
        fg_stroke: Stroke::new(LINE, ink),
        expansion: 0.0,
    };
    let mut v = if dark { Visuals::dark() } else { Visuals::light() };
    v.widgets = Widgets {
        noninteractive: state(p.panel, p.line, p.text),
        inactive: state(p.raised, p.line, p.text),
        hovered: state(p.hover, mix(p.line, p.secondary, 0.5), p.text),
        // Pressed or focused: the ring is the accent.
        active: state(p.hover, p.accent, p.text),
        open: state(p.hover, p.accent, p.text),
    };
    v.selection = Selection {
        bg_fill: p.selected,
        stroke: Stroke::new(LINE, if dark { p.text } else { p.accent }),
    };
    v.weak_text_color = Some(p.secondary);
    v.hyperlink_color = p.accent;
    v.faint_bg_color = mix(p.panel, p.canvas, 0.5);
    v.extreme_bg_color = p.canvas;
    v.text_edit_bg_color = Some(p.canvas);
    v.code_bg_color = p.canvas;
    v.warn_fg_color = p.warn;
    v.error_fg_color = p.bad;
    v.window_corner_radius = CornerRadius::same(RADIUS + 2);
    v.menu_corner_radius = radius;
    v.window_fill = p.panel;
    v.window_stroke = Stroke::new(LINE, p.line);
    v.panel_fill = p.panel;
    let shade = if dark { 120 } else { 40 };
    let shadow = Shadow {
        offset: [0, 8],
        blur: 24,
        spread: 0,
        color: Color32::from_black_alpha(shade),
    };
    v.window_shadow = shadow;
    v.popup_shadow = Shadow {
        offset: [0, 4],
        blur: 12,
        ..shadow
    };
    v.window_highlight_topmost = false;
    v.text_cursor = TextCursorStyle {
        stroke: Stroke::new(1.5, p.accent),
        ..v.text_cursor
    };
    v.handle_shape = HandleShape::Circle;
    v.slider_trailing_fill = true;
    v.collapsing_header_frame = false;
    v.indent_has_left_vline = false;
    v.striped = false;
    v.disabled_alpha = 0.45;
    v.interact_cursor = None;
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_contrast_is_readable() {
        // WCAG contrast: body text 7, secondary text 4.5 on panels.
        let l = |c: Color32| {
            let f = |v: u8| {
                let s = f64::from(v) / 255.0;
                if s <= 0.04045 {
                    s / 12.92
                } else {
                    ((s + 0.055) / 1.055).powf(2.4)
                }
            };
            0.2126 * f(c.r()) + 0.7152 * f(c.g()) + 0.0722 * f(c.b())
        };
        let contrast = |a: Color32, b: Color32| {
            let (x, y) = (l(a).max(l(b)), l(a).min(l(b)));
            (x + 0.05) / (y + 0.05)
        };
        for p in [Palette::DARK, Palette::LIGHT] {
            assert!(contrast(p.text, p.panel) >= 7.0);
            assert!(contrast(p.secondary, p.panel) >= 4.5);
            assert!(
                contrast(p.on_accent, p.accent) >= 4.5,
                "{}",
                contrast(p.on_accent, p.accent)
            );
            assert!(contrast(p.text, p.selected) >= 7.0);
            for kv in p.kv {
                assert!(contrast(kv, p.panel) >= 3.0, "{kv:?} {}", contrast(kv, p.panel));
            }
        }
    }

    #[test]
    fn maps_hit_their_ends_and_mark_nan() {
        assert_eq!(viridis(0.0), rgb(0x440154));
        assert_eq!(viridis(1.0), rgb(0xfde725));
        assert_eq!(viridis(f32::NAN), Palette::DARK.not_finite);
        assert_eq!(Palette::DARK.diverging(-1.0), Palette::DARK.accent);
        assert_eq!(Palette::DARK.diverging(1.0), Palette::DARK.second);
        assert_eq!(Palette::DARK.diverging(0.0), Palette::DARK.neutral);
        assert_eq!(text_on(viridis(0.0)), Color32::WHITE);
        assert_eq!(text_on(viridis(1.0)), Color32::BLACK);
    }
}
