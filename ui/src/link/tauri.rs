//! Tauri's IPC, for the desktop shell: one command carries frames to the host, a raw channel carries frames back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::*;

use super::web::text_of;
use super::{Link, LinkEvent};

#[wasm_bindgen]
extern "C" {
    /// Tauri's channel: the shell sends, the page hears.
    #[wasm_bindgen(js_namespace = ["__TAURI__", "core"])]
    pub(crate) type Channel;

    #[wasm_bindgen(constructor, js_namespace = ["__TAURI__", "core"])]
    pub(crate) fn new() -> Channel;

    #[wasm_bindgen(method, setter)]
    fn set_onmessage(this: &Channel, callback: &js_sys::Function);

    /// Calls a command of the shell.
    #[wasm_bindgen(js_namespace = ["__TAURI__", "core"], catch)]
    pub(crate) async fn invoke(command: &str, arguments: JsValue, options: JsValue) -> Result<JsValue, JsValue>;
}

impl Channel {
    /// A channel whose messages go to `heard`, for as long as the page lives: the shell may always send one more.
    pub(crate) fn hearing(heard: impl FnMut(JsValue) + 'static) -> Self {
        let channel = Self::new();
        let callback = Closure::<dyn FnMut(JsValue)>::new(heard).into_js_value();
        channel.set_onmessage(callback.unchecked_ref());
        channel
    }
}

/// Whether the page is in the desktop shell.
pub fn is_here() -> bool {
    let window = web_sys::window();
    window.is_some_and(|w| js_sys::Reflect::has(&w, &"__TAURI_INTERNALS__".into()).unwrap_or(false))
}

/// An object with one member.
pub(crate) fn object(name: &str, value: &JsValue) -> JsValue {
    let object = js_sys::Object::new();
    // A plain object takes any member.
    let _ = js_sys::Reflect::set(&object, &name.into(), value);
    object.into()
}

#[derive(Default)]
struct Shared {
    inbox: RefCell<Vec<LinkEvent>>,
    /// Frames to send, in order: calls of commands may overtake each other, so one follows the other.
    outbox: RefCell<VecDeque<Vec<u8>>>,
    sending: Cell<bool>,
    /// Nothing more goes in or out.
    over: Cell<bool>,
}

impl Shared {
    fn say(&self, event: LinkEvent, ctx: &egui::Context) {
        if !self.over.get() {
            self.over.set(matches!(event, LinkEvent::Closed(_)));
            self.inbox.borrow_mut().push(event);
            crate::web::wake(ctx);
        }
    }
}

/// The connection to the host in the desktop shell.
pub struct TauriLink {
    shared: Rc<Shared>,
    ctx: egui::Context,
}

impl TauriLink {
    /// Connects; wakes `ctx` when something arrives.
    pub fn connect(ctx: &egui::Context, remote: Option<(&str, &str)>) -> Self {
        let shared: Rc<Shared> = Rc::default();
        let (heard, woken) = (shared.clone(), ctx.clone());
        let channel = Channel::hearing(move |message| {
            let event = match message.dyn_into::<js_sys::ArrayBuffer>() {
                Ok(buffer) => LinkEvent::Frame(js_sys::Uint8Array::new(&buffer).to_vec()),
                // The reason why the connection ended is a string.
                Err(other) => LinkEvent::Closed(text_of(&other)),
            };
            heard.say(event, &woken);
        });
        let (opened, woken) = (shared.clone(), ctx.clone());
        let arguments = object("frames", channel.as_ref());
        if let Some((authority, token)) = remote {
            let host = object("authority", &authority.into());
            // Plain objects take any member.
            let _ = js_sys::Reflect::set(&host, &"token".into(), &token.into());
            let _ = js_sys::Reflect::set(&arguments, &"remote".into(), &host);
        }
        wasm_bindgen_futures::spawn_local(async move {
            match invoke("host_connect", arguments, JsValue::UNDEFINED).await {
                Ok(_) => opened.say(LinkEvent::Open, &woken),
                Err(e) => opened.say(LinkEvent::Closed(text_of(&e)), &woken),
            }
        });
        Self {
            shared,
            ctx: ctx.clone(),
        }
    }

    fn post(&self, frame: Vec<u8>) {
        if self.shared.over.get() {
            return;
        }
        self.shared.outbox.borrow_mut().push_back(frame);
        if self.shared.sending.replace(true) {
            return;
        }
        let (shared, ctx) = (self.shared.clone(), self.ctx.clone());
        wasm_bindgen_futures::spawn_local(async move {
            loop {
                // Taken apart from the call, which others may interleave with.
                let next = shared.outbox.borrow_mut().pop_front();
                let Some(frame) = next else { break };
                let bytes = js_sys::Uint8Array::from(frame.as_slice());
                if let Err(e) = invoke("host_send", bytes.into(), JsValue::UNDEFINED).await {
                    shared.say(LinkEvent::Closed(text_of(&e)), &ctx);
                    break;
                }
            }
            shared.sending.set(false);
        });
    }
}

impl Link for TauriLink {
    fn send(&mut self, frame: Vec<u8>) {
        self.post(frame);
    }

    fn poll(&mut self) -> Vec<LinkEvent> {
        let events = std::mem::take(&mut *self.shared.inbox.borrow_mut());
        // Each frame that was read is acknowledged by an empty one, so that the shell sends no more than is read.
        for _ in events.iter().filter(|e| matches!(e, LinkEvent::Frame(_))) {
            self.post(Vec::new());
        }
        events
    }
}

impl Drop for TauriLink {
    fn drop(&mut self) {
        self.shared.over.set(true);
    }
}
