//! The heatmap itself.

use egui::{
    Align2, Color32, Pos2, Rect, Response, Role, Sense, Stroke, StrokeKind, TextureHandle, TextureOptions, Ui,
    WidgetInfo, pos2, vec2,
};

use super::grid::{Grid, is_masked};
use super::paint::{Shades, Window, picture};
use super::parts::{badge, hatch};
use crate::fmt;
use crate::theme::{self, Palette, text_on};
use crate::views::Context;
use crate::widgets::plots::{Explain, Quantity, figure_menu};

/// Names of rows or columns.
#[derive(Clone, Copy)]
pub enum Labels<'a> {
    /// None.
    None,
    /// Round numbers: index + offset, with a caption for the axis.
    Numbers(&'a str, u64),
    /// A name for each.
    Names(&'a dyn Fn(usize) -> String),
}

/// A zoom into a heatmap, in cells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeatZoom {
    /// First and one past the last row.
    pub rows: (f64, f64),
    /// First and one past the last column.
    pub cols: (f64, f64),
}

#[derive(Clone, Debug, PartialEq)]
struct Key {
    revision: u64,
    window: Window,
    shades: Shades,
    dark: bool,
}

/// What a heatmap keeps from frame to frame.
#[derive(Default)]
pub struct HeatState {
    /// The part that is shown; `None` = all.
    pub zoom: Option<HeatZoom>,
    texture: Option<TextureHandle>,
    key: Option<Key>,
    not_finite: usize,
    masked: bool,
}

impl std::fmt::Debug for HeatState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeatState")
            .field("zoom", &self.zoom)
            .finish_non_exhaustive()
    }
}

/// What came back.
#[derive(Debug)]
pub struct HeatResponse {
    /// The cells' response.
    pub response: Response,
    /// The cell under the pointer: row, column.
    pub hover: Option<(usize, usize)>,
    /// The cell that was clicked.
    pub clicked: Option<(usize, usize)>,
    /// Where the cells are on the screen.
    pub frame: Rect,
    /// The part the user zoomed to; `Some(None)` = back to all. The state has it already.
    pub zoomed: Option<Option<HeatZoom>>,
    view: HeatZoom,
}

impl HeatResponse {
    /// Screen rectangle of a cell (maybe outside the frame).
    pub fn cell(&self, row: usize, col: usize) -> Rect {
        place(self.frame, &self.view, (row, row + 1), (col, col + 1))
    }
}

/// Draws the tooltip of a cell: row, column, value.
type Tooltip<'a> = &'a dyn Fn(&mut Ui, usize, usize, f32);

/// See the module.
pub struct Heatmap<'a> {
    name: &'a str,
    pub(super) grid: &'a dyn Grid,
    shades: Shades,
    quantity: Quantity,
    pub(super) rows: Labels<'a>,
    pub(super) cols: Labels<'a>,
    separators: &'a [usize],
    highlight: (Option<usize>, Option<usize>),
    summary: String,
    explain: Explain<'a>,
    /// Columns shown, given from outside; the heatmap's own zoom then only has rows.
    linked_cols: Option<(f64, f64)>,
    tooltip: Option<Tooltip<'a>>,
}

impl<'a> Heatmap<'a> {
    /// A heatmap; `name` is its identity, its accessible name and its file name.
    pub fn new(name: &'a str, grid: &'a dyn Grid, shades: Shades, quantity: Quantity, explain: Explain<'a>) -> Self {
        Self {
            name,
            grid,
            shades,
            quantity,
            rows: Labels::None,
            cols: Labels::None,
            separators: &[],
            highlight: (None, None),
            summary: String::new(),
            explain,
            linked_cols: None,
            tooltip: None,
        }
    }

    /// Names of rows and columns.
    #[must_use]
    pub fn labels(mut self, rows: Labels<'a>, cols: Labels<'a>) -> Self {
        (self.rows, self.cols) = (rows, cols);
        self
    }

    /// Hairlines before these columns.
    #[must_use]
    pub fn separators(mut self, cols: &'a [usize]) -> Self {
        self.separators = cols;
        self
    }

    /// Row and column of the shared selection.
    #[must_use]
    pub fn highlight(mut self, row: Option<usize>, col: Option<usize>) -> Self {
        self.highlight = (row, col);
        self
    }

    /// What it says, for people who do not see it.
    #[must_use]
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.summary = summary.into();
        self
    }

    /// Columns follow a shared axis.
    #[must_use]
    pub fn linked_cols(mut self, cols: (f64, f64)) -> Self {
        self.linked_cols = Some(cols);
        self
    }

    /// What the tooltip of a cell says, instead of its place and value.
    #[must_use]
    pub fn tooltip(mut self, tooltip: Tooltip<'a>) -> Self {
        self.tooltip = Some(tooltip);
        self
    }

    /// Draws it into the rest of `ui`.
    pub fn show(
        self,
        cx: &mut Context<'_>,
        ui: &mut Ui,
        state: &mut HeatState,
        csv: &dyn Fn() -> String,
    ) -> HeatResponse {
        let p = Palette::of(ui);
        let whole = ui.max_rect();
        let (outer, _) = ui.allocate_exact_size(ui.available_size().max(vec2(24.0, 24.0)), Sense::hover());
        let view = self.view(state);
        let frame = self.frame(ui, outer);
        let id = ui.make_persistent_id(("heatmap", self.name));
        let response = ui
            .interact(frame, id, Sense::click_and_drag())
            .on_hover_cursor(egui::CursorIcon::Crosshair);
        let label = format!("{}: {}", self.name, self.summary);
        response.widget_info(|| WidgetInfo::labeled(Role::Image, true, &label));
        self.refresh(ui, state, frame, &view);
        let painter = ui.painter_at(frame);
        if state.masked {
            hatch(&painter, frame, p);
        }
        if let (Some(texture), Some(key)) = (&state.texture, &state.key) {
            let w = key.window;
            let cells = (w.row, w.row + w.high * w.row_block);
            let rect = place(frame, &view, cells, (w.col, w.col + w.wide * w.col_block));
            painter.image(
                texture.id(),
                rect,
                Rect::from_min_max(Pos2::ZERO, pos2(1.0, 1.0)),
                Color32::WHITE,
            );
        }
        self.paint_values(&painter, frame, &view, p);
        for col in self.separators {
            let x = place(frame, &view, (0, 1), (*col, col + 1)).left();
            painter.vline(x, frame.y_range(), Stroke::new(theme::LINE, p.text));
        }
        ui.painter()
            .rect_stroke(frame, 0.0, Stroke::new(theme::LINE, p.line), StrokeKind::Outside);
        self.paint_labels(ui, outer, frame, &view, p);
        let at = |pos: Pos2| self.cell_at(frame, &view, pos);
        let hover = response.hover_pos().filter(|pos| frame.contains(*pos)).and_then(at);
        let clicked = response
            .clicked()
            .then(|| response.interact_pointer_pos())
            .flatten()
            .and_then(at);
        self.paint_highlight(&painter, frame, &view, p, hover);
        if state.not_finite > 0 {
            badge(ui, frame, p, state.not_finite);
        }
        let zoomed = self.zoom(ui, &response, frame, &view, state);
        if let (Some((row, col)), false) = (hover, response.dragged()) {
            let value = self.grid.value(row, col);
            response.clone().on_hover_ui_at_pointer(|ui| match self.tooltip {
                Some(tooltip) => tooltip(ui, row, col, value),
                None => self.default_tooltip(ui, row, col, value),
            });
        }
        let (row, col) = (
            hover.map(|h| h.0).or(self.highlight.0),
            hover.map(|h| h.1).or(self.highlight.1),
        );
        let value = row
            .zip(col)
            .map(|(r, c)| self.text_of(self.grid.value(r, c)))
            .unwrap_or_default();
        figure_menu(cx, &response, self.name, whole, &value, csv, &self.explain);
        HeatResponse {
            response,
            hover,
            clicked,
            frame,
            zoomed,
            view,
        }
    }

    fn view(&self, state: &HeatState) -> HeatZoom {
        let (rows, cols) = (self.grid.rows() as f64, self.grid.cols() as f64);
        let mut view = HeatZoom {
            rows: (0.0, rows.max(1.0)),
            cols: (0.0, cols.max(1.0)),
        };
        if let Some(zoom) = state.zoom.filter(|z| z.rows.0 < rows && z.cols.0 < cols) {
            view = HeatZoom {
                rows: (zoom.rows.0, zoom.rows.1.min(rows)),
                cols: (zoom.cols.0, zoom.cols.1.min(cols)),
            };
        }
        if let Some(cols) = self.linked_cols {
            view.cols = cols;
        }
        view
    }

    /// The cells' rectangle: what the labels leave.
    fn frame(&self, ui: &Ui, outer: Rect) -> Rect {
        let width = |text: String| {
            ui.painter()
                .layout_no_wrap(text, theme::mono_caption(), Color32::WHITE)
                .size()
                .x
        };
        let left = match self.rows {
            Labels::None => theme::GRID,
            Labels::Numbers(..) => 40.0,
            Labels::Names(name) => {
                // The widest of a few names: measuring thousands costs more than it gains.
                let step = self.grid.rows().div_ceil(64).max(1);
                (0..self.grid.rows())
                    .step_by(step)
                    .map(|r| width(name(r)))
                    .fold(24.0, f32::max)
                    + 10.0
            }
        };
        let bottom = match self.cols {
            Labels::None => theme::GRID,
            Labels::Numbers(..) => 18.0,
            Labels::Names(_) => 64.0,
        };
        let right = theme::PAD;
        let rect = Rect::from_min_max(
            outer.min + vec2(left.min(outer.width() * 0.4), 2.0),
            outer.max - vec2(right, bottom.min(outer.height() * 0.4)),
        );
        // Whole pixels: cells must not shimmer.
        let ppp = ui.ctx().pixels_per_point();
        let snap = |v: f32| (v * ppp).round() / ppp;
        Rect::from_min_max(
            pos2(snap(rect.left()), snap(rect.top())),
            pos2(snap(rect.right()), snap(rect.bottom())),
        )
    }

    fn refresh(&self, ui: &Ui, state: &mut HeatState, frame: Rect, view: &HeatZoom) {
        let ppp = ui.ctx().pixels_per_point();
        let most = ui.input(|i| i.max_texture_side).min(4096);
        let pixels = |side: f32| ((side * ppp) as usize).clamp(1, most);
        let count = (self.grid.rows(), self.grid.cols());
        let window = Window::new(
            view.rows,
            view.cols,
            count,
            (pixels(frame.height()), pixels(frame.width())),
        );
        let dark = ui.visuals().dark_mode;
        let key = Key {
            revision: self.grid.revision(),
            window,
            shades: self.shades,
            dark,
        };
        if state.key.as_ref() == Some(&key) {
            return;
        }
        if window.high == 0 || window.wide == 0 {
            (state.texture, state.key) = (None, None);
            return;
        }
        let shot = picture(self.grid, &window, &self.shades, Palette::for_dark(dark));
        (state.not_finite, state.masked) = (shot.not_finite, shot.masked);
        match &mut state.texture {
            Some(texture) => texture.set(shot.image, TextureOptions::NEAREST),
            None => state.texture = Some(ui.ctx().load_texture(self.name, shot.image, TextureOptions::NEAREST)),
        }
        state.key = Some(key);
    }

    fn cell_at(&self, frame: Rect, view: &HeatZoom, pos: Pos2) -> Option<(usize, usize)> {
        let row = view.rows.0 + f64::from((pos.y - frame.top()) / frame.height()) * (view.rows.1 - view.rows.0);
        let col = view.cols.0 + f64::from((pos.x - frame.left()) / frame.width()) * (view.cols.1 - view.cols.0);
        let (row, col) = (row.floor(), col.floor());
        let inside = row >= 0.0 && col >= 0.0 && (row as usize) < self.grid.rows() && (col as usize) < self.grid.cols();
        inside.then_some((row as usize, col as usize))
    }

    /// Values in the cells, where they are large enough to read.
    fn paint_values(&self, painter: &egui::Painter, frame: Rect, view: &HeatZoom, p: &Palette) {
        let cell = place(frame, view, (0, 1), (0, 1));
        if cell.width() < 40.0 || cell.height() < 16.0 {
            return;
        }
        let rows = view.rows.0.floor() as usize..(view.rows.1.ceil() as usize).min(self.grid.rows());
        for row in rows {
            for col in view.cols.0.max(0.0).floor() as usize..(view.cols.1.ceil() as usize).min(self.grid.cols()) {
                let value = self.grid.value(row, col);
                if !is_masked(value) {
                    let ink = text_on(self.shades.color(p, value));
                    let center = place(frame, view, (row, row + 1), (col, col + 1)).center();
                    let text = self.text_of(value);
                    painter.text(center, Align2::CENTER_CENTER, text, theme::mono_caption(), ink);
                }
            }
        }
    }

    fn text_of(&self, value: f32) -> String {
        if is_masked(value) {
            "–".into()
        } else {
            self.quantity.figure(f64::from(value)).plain()
        }
    }

    fn paint_highlight(
        &self,
        painter: &egui::Painter,
        frame: Rect,
        view: &HeatZoom,
        p: &Palette,
        hover: Option<(usize, usize)>,
    ) {
        let row = hover
            .map(|h| h.0)
            .or(self.highlight.0)
            .filter(|r| *r < self.grid.rows());
        let col = hover
            .map(|h| h.1)
            .or(self.highlight.1)
            .filter(|c| *c < self.grid.cols());
        let ink = Stroke::new(theme::LINE, p.text.gamma_multiply(0.7));
        let edge = |rect: Rect| {
            painter.rect_stroke(
                rect,
                0.0,
                Stroke::new(3.0, p.canvas.gamma_multiply(0.5)),
                StrokeKind::Middle,
            );
            painter.rect_stroke(rect, 0.0, ink, StrokeKind::Middle);
        };
        match (row, col) {
            (Some(row), Some(col)) => {
                let cell = place(frame, view, (row, row + 1), (col, col + 1));
                let centre = cell.center();
                if cell.width() < 6.0 || cell.height() < 6.0 {
                    painter.hline(frame.x_range(), centre.y, ink);
                    painter.vline(centre.x, frame.y_range(), ink);
                    edge(Rect::from_center_size(centre, cell.size().max(vec2(6.0, 6.0))));
                } else {
                    edge(place(frame, view, (row, row + 1), (0, self.grid.cols())).intersect(frame));
                    edge(cell);
                }
            }
            (Some(row), None) => edge(place(frame, view, (row, row + 1), (0, self.grid.cols())).intersect(frame)),
            (None, Some(col)) => {
                let x = place(frame, view, (0, 1), (col, col + 1)).center().x;
                painter.vline(x, frame.y_range(), ink);
            }
            (None, None) => {}
        }
    }

    fn default_tooltip(&self, ui: &mut Ui, row: usize, col: usize, value: f32) {
        let p = Palette::of(ui);
        let name = |labels: &Labels<'_>, i: usize| match labels {
            Labels::None => String::new(),
            Labels::Numbers(caption, offset) => format!("{caption} {}", fmt::count(i as u64 + offset)),
            Labels::Names(name) => name(i),
        };
        let place = [name(&self.rows, row), name(&self.cols, col)]
            .into_iter()
            .filter(|s| !s.is_empty());
        ui.label(egui::RichText::new(place.collect::<Vec<_>>().join(", ")).color(p.secondary));
        let value = if is_masked(value) {
            "not computed".to_string()
        } else {
            self.text_of(value)
        };
        ui.label(egui::RichText::new(value).font(theme::mono()));
    }

    /// A dragged rectangle zooms, a double click shows all.
    fn zoom(
        &self,
        ui: &Ui,
        response: &Response,
        frame: Rect,
        view: &HeatZoom,
        state: &mut HeatState,
    ) -> Option<Option<HeatZoom>> {
        if response.double_clicked() {
            state.zoom = None;
            return Some(None);
        }
        let (delta, to) = response.total_drag_delta().zip(response.interact_pointer_pos())?;
        let p = Palette::of(ui);
        let band = Rect::from_two_pos(to - delta, to).intersect(frame);
        if band.width() < 6.0 && band.height() < 6.0 {
            return None;
        }
        ui.painter().rect(
            band,
            0.0,
            p.accent.gamma_multiply(0.2),
            Stroke::new(theme::LINE, p.accent),
            StrokeKind::Inside,
        );
        if !response.drag_stopped() {
            return None;
        }
        // A drag along one axis alone leaves the other as it is.
        let range = |from: f32, to: f32, start: f32, size: f32, shown: (f64, f64), most: usize| {
            if (to - from).abs() < 6.0 {
                return shown;
            }
            let cell = |v: f32| shown.0 + f64::from((v - start) / size) * (shown.1 - shown.0);
            let (a, b) = (cell(from).floor().max(0.0), cell(to).ceil().min(most as f64));
            (a, b.max(a + 1.0))
        };
        let zoom = HeatZoom {
            rows: range(
                band.top(),
                band.bottom(),
                frame.top(),
                frame.height(),
                view.rows,
                self.grid.rows(),
            ),
            cols: range(
                band.left(),
                band.right(),
                frame.left(),
                frame.width(),
                view.cols,
                self.grid.cols(),
            ),
        };
        state.zoom = Some(zoom);
        Some(Some(zoom))
    }
}

/// Screen rectangle of a range of cells.
fn place(frame: Rect, view: &HeatZoom, rows: (usize, usize), cols: (usize, usize)) -> Rect {
    let x =
        |col: usize| frame.left() + ((col as f64 - view.cols.0) / (view.cols.1 - view.cols.0)) as f32 * frame.width();
    let y =
        |row: usize| frame.top() + ((row as f64 - view.rows.0) / (view.rows.1 - view.rows.0)) as f32 * frame.height();
    Rect::from_min_max(pos2(x(cols.0), y(rows.0)), pos2(x(cols.1), y(rows.1)))
}
