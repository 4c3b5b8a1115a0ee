//! A browser: files are saved by downloading them; there are no dialogs that could tell a path of the host.

use protocol::ThemeChoice;
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::JsValue;

use super::{Hovering, Platform, PlatformEvent, Reach};
use crate::link::web::text_of;

/// The page in a browser.
pub struct Web {
    ctx: egui::Context,
    hovering: Hovering,
    events: Vec<PlatformEvent>,
}

impl Web {
    /// The page of this context.
    pub fn new(ctx: &egui::Context) -> Self {
        Self {
            ctx: ctx.clone(),
            hovering: Hovering::default(),
            events: Vec::new(),
        }
    }
}

impl Platform for Web {
    fn poll(&mut self) -> Vec<PlatformEvent> {
        let hovering = &mut self.hovering;
        self.events.extend(self.ctx.input(|i| hovering.look(i)));
        std::mem::take(&mut self.events)
    }

    fn has_dialogs(&self) -> bool {
        false
    }

    fn pick_folder(&mut self) {}

    fn pick_model(&mut self) {}

    fn save(&mut self, name: &str, bytes: Vec<u8>) {
        self.events.push(match download(name, &bytes) {
            Ok(()) => PlatformEvent::Saved(name.to_string()),
            Err(e) => PlatformEvent::Failed(format!("{name} could not be downloaded: {}", text_of(&e))),
        });
        self.ctx.request_repaint();
    }

    fn set_theme(&mut self, _theme: ThemeChoice) {}

    fn toggle_full_screen(&mut self, _ctx: &egui::Context) {
        let Some(document) = web_sys::window().and_then(|w| w.document()) else {
            return;
        };
        if document.fullscreen_element().is_some() {
            document.exit_fullscreen();
        } else if let Some(root) = document.document_element()
            && let Err(e) = root.request_fullscreen()
        {
            self.events.push(PlatformEvent::Failed(text_of(&e)));
        }
    }

    fn carries_frames(&self) -> bool {
        false
    }

    fn reach(&mut self, authority: &str, token: &str) -> Reach {
        let link = format!("http://{authority}/enter/{token}");
        let gone = web_sys::window().map(|w| w.location().assign(&link));
        match gone {
            Some(Ok(())) => Reach::Leaves,
            Some(Err(e)) => Reach::Not(text_of(&e)),
            None => Reach::Not("There is no page.".into()),
        }
    }

    fn reload(&mut self) -> Option<()> {
        web_sys::window()?.location().reload().ok()
    }
}

/// Lets the browser save these bytes under this name.
fn download(name: &str, bytes: &[u8]) -> Result<(), JsValue> {
    let document = web_sys::window().and_then(|w| w.document()).ok_or("there is no page")?;
    let parts = js_sys::Array::of1(&js_sys::Uint8Array::from(bytes));
    let blob = web_sys::Blob::new_with_u8_array_sequence(&parts)?;
    let url = web_sys::Url::create_object_url_with_blob(&blob)?;
    let anchor: web_sys::HtmlAnchorElement = document.create_element("a")?.unchecked_into();
    anchor.set_href(&url);
    anchor.set_download(name);
    anchor.click();
    web_sys::Url::revoke_object_url(&url)
}
