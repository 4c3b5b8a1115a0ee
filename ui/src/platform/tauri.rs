//! The desktop shell: dialogs, saving, dropped files and the window's form through its commands
//! (`src-tauri/src/commands.rs`).

use std::cell::RefCell;
use std::rc::Rc;

use protocol::ThemeChoice;
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::JsValue;

use super::{Platform, PlatformEvent, Reach};
use crate::link::tauri::{Channel, TauriLink, invoke, object};
use crate::link::web::text_of;

/// A frame that takes so long, in milliseconds, makes the native window worth offering.
const SLOW_MS: f64 = 40.0;

type Inbox = Rc<RefCell<Vec<PlatformEvent>>>;

/// The window of the desktop shell.
pub struct Tauri {
    ctx: egui::Context,
    inbox: Inbox,
}

impl Tauri {
    /// The window of this context; from now on it hears what the shell has to say.
    pub fn new(ctx: &egui::Context) -> Self {
        let inbox: Inbox = Rc::default();
        let (heard, woken) = (inbox.clone(), ctx.clone());
        let channel = Channel::hearing(move |message| {
            if let Some(event) = event_of(&message) {
                heard.borrow_mut().push(event);
                crate::web::wake(&woken);
            }
        });
        let own = Self {
            ctx: ctx.clone(),
            inbox,
        };
        own.call(
            "shell_events",
            object("events", channel.as_ref()),
            JsValue::UNDEFINED,
            |_| None,
        );
        own
    }

    /// Calls a command; its answer or its failure becomes an event.
    fn call(
        &self,
        command: &'static str,
        arguments: JsValue,
        options: JsValue,
        answered: impl FnOnce(JsValue) -> Option<PlatformEvent> + 'static,
    ) {
        let (inbox, ctx) = (self.inbox.clone(), self.ctx.clone());
        wasm_bindgen_futures::spawn_local(async move {
            let event = match invoke(command, arguments, options).await {
                Ok(answer) => answered(answer),
                Err(e) => Some(PlatformEvent::Failed(text_of(&e))),
            };
            if let Some(event) = event {
                inbox.borrow_mut().push(event);
                crate::web::wake(&ctx);
            }
        });
    }
}

/// What the shell said: an object with `kind`, and `paths` or `path`.
fn event_of(message: &JsValue) -> Option<PlatformEvent> {
    let get = |name: &str| js_sys::Reflect::get(message, &name.into()).ok();
    let paths = || -> Vec<String> {
        let list = get("paths").and_then(|p| p.dyn_into::<js_sys::Array>().ok());
        list.iter()
            .flat_map(|l| l.iter())
            .filter_map(|p| p.as_string())
            .collect()
    };
    match get("kind")?.as_string()?.as_str() {
        "hover" => Some(PlatformEvent::Hover(paths())),
        "leave" => Some(PlatformEvent::Leave),
        "drop" => Some(PlatformEvent::Dropped(paths())),
        "open" => Some(PlatformEvent::Open(get("path")?.as_string()?)),
        _ => None,
    }
}

/// `null` = cancelled.
fn picked(answer: JsValue) -> Option<PlatformEvent> {
    answer.as_string().map(PlatformEvent::Picked)
}

impl Platform for Tauri {
    fn poll(&mut self) -> Vec<PlatformEvent> {
        std::mem::take(&mut *self.inbox.borrow_mut())
    }

    fn has_dialogs(&self) -> bool {
        true
    }

    fn pick_folder(&mut self) {
        self.call("pick_folder", JsValue::UNDEFINED, JsValue::UNDEFINED, picked);
    }

    fn pick_model(&mut self) {
        self.call("pick_model", JsValue::UNDEFINED, JsValue::UNDEFINED, picked);
    }

    fn save(&mut self, name: &str, bytes: Vec<u8>) {
        let encoded = String::from(js_sys::encode_uri_component(name));
        let headers = object("headers", &object("name", &encoded.into()));
        let body = js_sys::Uint8Array::from(bytes.as_slice());
        self.call("save_file", body.into(), headers, |answer| {
            answer.as_string().map(PlatformEvent::Saved)
        });
    }

    fn set_theme(&mut self, theme: ThemeChoice) {
        let name = match theme {
            ThemeChoice::System => "system",
            ThemeChoice::Dark => "dark",
            ThemeChoice::Light => "light",
        };
        self.call("set_theme", object("theme", &name.into()), JsValue::UNDEFINED, |_| None);
    }

    fn toggle_full_screen(&mut self, _ctx: &egui::Context) {
        self.call("toggle_fullscreen", JsValue::UNDEFINED, JsValue::UNDEFINED, |_| None);
    }

    fn reach(&mut self, authority: &str, token: &str) -> Reach {
        let (authority, token) = (authority.to_string(), token.to_string());
        Reach::Through(Box::new(move |ctx| {
            Box::new(TauriLink::connect(ctx, Some((&authority, &token))))
        }))
    }

    fn reload(&mut self) -> Option<()> {
        web_sys::window()?.location().reload().ok()
    }

    fn can_go_native(&self) -> bool {
        // Measured by boot.js while the interface loaded.
        let measured = web_sys::window().and_then(|w| js_sys::Reflect::get(&w, &"model1_frame_ms".into()).ok());
        measured.and_then(|m| m.as_f64()).is_some_and(|ms| ms > SLOW_MS)
    }

    fn go_native(&mut self) {
        self.call("open_native", JsValue::UNDEFINED, JsValue::UNDEFINED, |_| None);
    }
}
