//! What end-to-end tests see of the interface. A canvas is opaque to browser drivers, and on the web eframe hands the
//! AccessKit tree to nobody; so a page that was opened with `?test` keeps that tree and offers it as
//! `window.__model1_test`:
//!
//! - `snapshot()`: JSON of [`Snapshot`];
//! - `invoke(id)`: runs a command of the registry in the next frame, by its id.
//!
//! Nothing of this exists on pages opened without `?test`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egui::accesskit::{Node, Toggled, TreeUpdate};
use serde::Serialize;

/// One named widget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Widget {
    /// Role, as AccessKit names it: `Button`, `TextInput`, ...
    pub role: String,
    /// Name.
    pub name: String,
    /// Value, or the text of a label.
    pub value: String,
    /// Left, top, width, height in CSS pixels.
    pub rect: [f64; 4],
    /// Whether it can be used.
    pub enabled: bool,
    /// Whether it is chosen or ticked; `None` where neither can be.
    pub on: Option<bool>,
}

/// The interface at the end of a frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// Frames painted so far.
    pub frame: u64,
    /// What the application says of itself.
    pub state: serde_json::Value,
    /// Widgets that have a name or a value, in the order of the tree.
    pub widgets: Vec<Widget>,
}

#[derive(Default)]
struct Shared {
    frame: u64,
    zoom: f64,
    tree: Option<TreeUpdate>,
    state: serde_json::Value,
    commands: Vec<String>,
    context: Option<egui::Context>,
}

/// The application's end of the bridge.
#[derive(Clone, Default)]
pub struct TestBridge(Arc<Mutex<Shared>>);

impl TestBridge {
    /// Starts keeping the tree of every frame.
    pub fn install(ctx: &egui::Context) -> Self {
        let bridge = Self::default();
        ctx.enable_accesskit();
        bridge.shared().context = Some(ctx.clone());
        ctx.add_plugin(Keep(bridge.clone()));
        bridge
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commands that a test asked for since the last call.
    pub fn take_commands(&self) -> Vec<String> {
        std::mem::take(&mut self.shared().commands)
    }

    /// What the application has to say of itself in this frame.
    pub fn set_state(&self, state: serde_json::Value) {
        self.shared().state = state;
    }

    /// Asks for a command and wakes the application.
    pub fn invoke(&self, id: &str) {
        let mut shared = self.shared();
        shared.commands.push(id.to_string());
        let context = shared.context.clone();
        drop(shared);
        if let Some(context) = context {
            #[cfg(target_arch = "wasm32")]
            crate::web::wake(&context);
            #[cfg(not(target_arch = "wasm32"))]
            context.request_repaint();
        }
    }

    /// The last frame.
    pub fn snapshot(&self) -> Snapshot {
        let shared = self.shared();
        let nodes = shared.tree.iter().flat_map(|t| t.nodes.iter());
        Snapshot {
            frame: shared.frame,
            state: shared.state.clone(),
            widgets: nodes.filter_map(|(_, node)| widget(node, shared.zoom)).collect(),
        }
    }
}

/// A node as a widget; those without words are left out.
fn widget(node: &Node, zoom: f64) -> Option<Widget> {
    let name = node.label().unwrap_or_default().to_string();
    let value = match (node.value(), node.numeric_value()) {
        (Some(text), _) => text.to_string(),
        (None, Some(number)) => number.to_string(),
        (None, None) => String::new(),
    };
    if name.is_empty() && value.is_empty() {
        return None;
    }
    let rect = node
        .bounds()
        .map_or([0.0; 4], |b| [b.x0, b.y0, b.x1 - b.x0, b.y1 - b.y0].map(|v| v * zoom));
    let on = node.toggled().map(|t| t == Toggled::True).or(node.is_selected());
    Some(Widget {
        role: format!("{:?}", node.role()),
        name,
        value,
        rect,
        enabled: !node.is_disabled(),
        on,
    })
}

/// What the application says of itself: enough to follow a flow, whatever the panels look like.
pub fn state_of(app: &crate::App) -> serde_json::Value {
    use crate::store::Connection;
    use protocol::{JobState, ModelState, Role};

    let store = &app.store;
    let (connection, reason) = match store.connection() {
        Connection::Connecting => ("connecting", String::new()),
        Connection::Ready => ("ready", String::new()),
        Connection::Waiting { reason, .. } => ("waiting", reason.clone()),
        Connection::Refused(sentence) => ("refused", sentence.clone()),
    };
    let state = store.state.as_ref();
    let (model, about) = match state.map(|s| &s.model) {
        None | Some(ModelState::None) => ("none", String::new()),
        Some(ModelState::Loading { name, .. }) => ("loading", name.clone()),
        Some(ModelState::Ready(model)) => ("ready", model.name.clone()),
        Some(ModelState::Failed { error, .. }) => ("failed", error.to_string()),
    };
    let branch: Vec<_> = store.text.iter().flat_map(|t| t.branch()).collect();
    let written: String = branch
        .iter()
        .filter(|n| n.role == Role::Assistant)
        .map(|n| n.text.as_str())
        .collect();
    let tokens: usize = branch.iter().map(|n| n.tokens.len()).sum();
    let recipe = state.and_then(|s| s.recipe.as_ref());
    let jobs = store.jobs.running().map(|j| {
        let failed = matches!(j.state, JobState::Failed(_));
        serde_json::json!({ "what": j.what, "done": j.done, "total": j.total, "failed": failed })
    });
    let (fonts, boxes) = app.system_fonts();
    serde_json::json!({
        "connection": connection,
        "reason": reason,
        "run": store.host.as_ref().map(|h| h.run),
        "driver": state.map(|s| s.driver),
        "clients": state.map(|s| s.clients),
        "model": model,
        "about": about,
        "workspace": format!("{:?}", app.layout.workspace),
        "writing": state.is_some_and(|s| s.writing.is_some()),
        "unanswered": store.unanswered(),
        "finish": branch.last().map(|n| format!("{:?}", n.finish)),
        "written": written,
        "tokens": tokens,
        "steps": store.steps.len(),
        "recipe": recipe.map(|r| &r.hash),
        "changes": recipe.map(|r| r.changes.len()),
        "jobs": jobs.collect::<Vec<_>>(),
        "fonts": fonts,
        "boxes": boxes,
    })
}

/// Takes the tree out of each frame's output.
struct Keep(TestBridge);

impl egui::Plugin for Keep {
    fn debug_name(&self) -> &'static str {
        "test bridge"
    }

    fn output_hook(&mut self, ctx: &egui::Context, output: &mut egui::FullOutput) {
        let zoom = f64::from(ctx.zoom_factor());
        let mut shared = self.0.shared();
        shared.frame += 1;
        shared.zoom = zoom;
        if let Some(tree) = &output.platform_output.accesskit_update {
            shared.tree = Some(tree.clone());
        }
    }
}

/// Puts the bridge into the page, if it was opened with `?test`.
#[cfg(target_arch = "wasm32")]
pub fn offer(ctx: &egui::Context) -> Option<TestBridge> {
    use wasm_bindgen::prelude::*;

    let window = web_sys::window()?;
    let query = window.location().search().ok()?;
    if !query
        .trim_start_matches('?')
        .split('&')
        .any(|p| p == "test" || p.starts_with("test="))
    {
        return None;
    }
    let bridge = TestBridge::install(ctx);
    let (asked, told) = (bridge.clone(), bridge.clone());
    let snapshot = Closure::<dyn Fn() -> String>::new(move || {
        serde_json::to_string(&asked.snapshot()).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
    });
    let invoke = Closure::<dyn Fn(String)>::new(move |id: String| told.invoke(&id));
    let object = js_sys::Object::new();
    for (name, function) in [
        ("snapshot", snapshot.into_js_value()),
        ("invoke", invoke.into_js_value()),
    ] {
        js_sys::Reflect::set(&object, &name.into(), &function).ok()?;
    }
    js_sys::Reflect::set(&window, &"__model1_test".into(), &object).ok()?;
    Some(bridge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widgets_have_role_name_value_and_place() {
        let ctx = egui::Context::default();
        let bridge = TestBridge::install(&ctx);
        let mut text = "Once upon a time".to_string();
        let mut ticked = true;
        for _ in 0..2 {
            let mut shown = ctx.run_ui(egui::RawInput::default(), |ui| {
                let _ = ui.button("Generate");
                ui.checkbox(&mut ticked, "Keep");
                ui.text_edit_singleline(&mut text);
                ui.add_enabled(false, egui::Button::new("Stop"));
            });
            shown.textures_delta.clear();
        }
        let snapshot = bridge.snapshot();
        assert_eq!(snapshot.frame, 2);
        let find = |name: &str| snapshot.widgets.iter().find(|w| w.name == name).unwrap();
        let generate = find("Generate");
        assert_eq!(
            (generate.role.as_str(), generate.enabled, generate.on),
            ("Button", true, None)
        );
        assert!(generate.rect[2] > 10.0 && generate.rect[3] > 5.0, "{:?}", generate.rect);
        assert!(!find("Stop").enabled);
        assert_eq!(find("Keep").on, Some(true));
        assert!(
            snapshot
                .widgets
                .iter()
                .any(|w| w.role == "TextInput" && w.value == text),
            "{snapshot:?}"
        );
    }

    #[test]
    fn commands_are_handed_over_once_in_their_order() {
        let bridge = TestBridge::install(&egui::Context::default());
        bridge.invoke("generate");
        bridge.invoke("stop");
        assert_eq!(bridge.take_commands(), ["generate", "stop"]);
        assert!(bridge.take_commands().is_empty());
    }
}
