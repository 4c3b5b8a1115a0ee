//! The interface in a page: the entry that `ui/web/page/boot.js` calls.

use std::cell::RefCell;

use eframe::WebRunner;
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::*;

use crate::App;
use crate::commands;
use crate::link::tauri::TauriLink;
use crate::link::web::WebLink;
use crate::link::{Dialer, tauri};
use crate::platform::Platform;
use crate::test_bridge::{self, TestBridge};

thread_local! {
    // The runner lives as long as the page.
    static RUNNER: RefCell<Option<WebRunner>> = const { RefCell::new(None) };
}

/// Starts the interface on the canvas of this id.
///
/// # Errors
/// What the browser says where it cannot draw.
#[wasm_bindgen]
pub async fn start(canvas: String) -> Result<(), JsValue> {
    keep_panics();
    let document = web_sys::window().and_then(|w| w.document()).ok_or("there is no page")?;
    let canvas: web_sys::HtmlCanvasElement = document
        .get_element_by_id(&canvas)
        .and_then(|e| e.dyn_into().ok())
        .ok_or("there is no such canvas")?;
    let runner = WebRunner::new();
    let started = runner.clone();
    RUNNER.with(|r| *r.borrow_mut() = Some(started));
    runner
        .start(
            canvas,
            eframe::WebOptions::default(),
            Box::new(|cc| Ok(Box::new(Page::new(&cc.egui_ctx)?))),
        )
        .await
}

/// A panic ends as a trap that says nothing. Its sentence is left where boot.js finds it.
fn keep_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if let Some(window) = web_sys::window() {
            // Nothing can be done about a page that refuses this.
            let _ = js_sys::Reflect::set(&window, &"model1_panic".into(), &info.to_string().into());
        }
        before(info);
    }));
}

/// Tells boot.js when the next frame is due, so that it asks for none before.
struct Due;

impl egui::Plugin for Due {
    fn debug_name(&self) -> &'static str {
        "when the next frame is due"
    }

    fn output_hook(&mut self, _ctx: &egui::Context, output: &mut egui::FullOutput) {
        let root = output.viewport_output.get(&egui::ViewportId::ROOT);
        let delay = root.map_or(std::time::Duration::ZERO, |o| o.repaint_delay);
        let Some(window) = web_sys::window() else { return };
        let now = window.performance().map_or(0.0, |p| p.now());
        // A delay without end becomes a time without end.
        let due = now + delay.as_secs_f64() * 1e3;
        // A page that refuses this is asked for frames all the time, as it would be without.
        let _ = js_sys::Reflect::set(&window, &"model1_next".into(), &due.into());
    }
}

/// Asks for a frame because something arrived that is no event of the page.
pub(crate) fn wake(ctx: &egui::Context) {
    ctx.request_repaint();
    let wake = web_sys::window().and_then(|w| js_sys::Reflect::get(&w, &"model1_wake".into()).ok());
    if let Some(wake) = wake.and_then(|w| w.dyn_into::<js_sys::Function>().ok()) {
        // It cannot fail, and without it the next event brings the frame.
        let _ = wake.call0(&JsValue::UNDEFINED);
    }
}

/// A command of the test bridge alone: the page about a fault has to be seen, too.
const PANIC: &str = "test: panic";

#[expect(clippy::panic, reason = "only a page opened for tests can ask for it")]
fn break_down() {
    panic!("a test asked for it");
}

/// The interface, and the test bridge if the page was opened with it.
struct Page {
    app: App,
    bridge: Option<TestBridge>,
}

impl Page {
    fn new(ctx: &egui::Context) -> Result<Self, String> {
        let in_shell = tauri::is_here();
        let dialer: Dialer = if in_shell {
            Box::new(|ctx| Box::new(TauriLink::connect(ctx, None)))
        } else {
            let url = socket_address().ok_or("the page has no address")?;
            Box::new(move |ctx| Box::new(WebLink::connect(&url, ctx)))
        };
        let platform: Box<dyn Platform> = if in_shell {
            Box::new(crate::platform::tauri::Tauri::new(ctx))
        } else {
            Box::new(crate::platform::web::Web::new(ctx))
        };
        ctx.add_plugin(Due);
        let app = App::new(ctx, dialer, platform, if in_shell { "tauri" } else { "browser" });
        Ok(Self {
            app,
            bridge: test_bridge::offer(ctx),
        })
    }
}

impl eframe::App for Page {
    fn ui(&mut self, ui: &mut egui::Ui, frame: &mut eframe::Frame) {
        if let Some(bridge) = &self.bridge {
            for title in bridge.take_commands() {
                if title == PANIC {
                    break_down();
                }
                let entry = commands::COMMANDS.iter().find(|e| e.title == title);
                if let Some(entry) = entry {
                    self.app.invoke(entry.command);
                }
            }
        }
        self.app.ui(ui, frame);
        if let Some(bridge) = &self.bridge {
            bridge.set_state(test_bridge::state_of(&self.app));
        }
    }
}

/// Where the host that served this page takes WebSockets.
fn socket_address() -> Option<String> {
    let location = web_sys::window()?.location();
    let scheme = if location.protocol().ok()? == "https:" {
        "wss"
    } else {
        "ws"
    };
    Some(format!("{scheme}://{}/ws", location.host().ok()?))
}
