//! WebSocket, for browsers.

use std::cell::RefCell;
use std::rc::Rc;

use wasm_bindgen::JsCast;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::prelude::JsValue;
use web_sys::{BinaryType, CloseEvent, Event, MessageEvent, WebSocket};

use super::{Link, LinkEvent};

type Inbox = Rc<RefCell<Vec<LinkEvent>>>;

/// A WebSocket to the host that served the page.
pub struct WebLink {
    socket: Option<WebSocket>,
    inbox: Inbox,
    // The browser calls these for as long as the socket lives.
    _open: Closure<dyn FnMut(Event)>,
    _message: Closure<dyn FnMut(MessageEvent)>,
    _close: Closure<dyn FnMut(CloseEvent)>,
}

impl WebLink {
    /// Connects to `url`; wakes `ctx` when something arrives.
    pub fn connect(url: &str, ctx: &egui::Context) -> Self {
        let inbox: Inbox = Rc::default();
        let put = |inbox: &Inbox, ctx: &egui::Context| {
            let (inbox, ctx) = (inbox.clone(), ctx.clone());
            move |event: LinkEvent| {
                inbox.borrow_mut().push(event);
                crate::web::wake(&ctx);
            }
        };
        let opened = put(&inbox, ctx);
        let open = Closure::<dyn FnMut(Event)>::new(move |_| opened(LinkEvent::Open));
        let arrived = put(&inbox, ctx);
        let message = Closure::<dyn FnMut(MessageEvent)>::new(move |e: MessageEvent| {
            if let Ok(buffer) = e.data().dyn_into::<js_sys::ArrayBuffer>() {
                arrived(LinkEvent::Frame(js_sys::Uint8Array::new(&buffer).to_vec()));
            }
        });
        let closed = put(&inbox, ctx);
        let close = Closure::<dyn FnMut(CloseEvent)>::new(move |e: CloseEvent| {
            closed(LinkEvent::Closed(reason_of(e.code(), &e.reason())));
        });
        let socket = match WebSocket::new(url) {
            Ok(s) => {
                s.set_binary_type(BinaryType::Arraybuffer);
                s.set_onopen(Some(open.as_ref().unchecked_ref()));
                s.set_onmessage(Some(message.as_ref().unchecked_ref()));
                s.set_onclose(Some(close.as_ref().unchecked_ref()));
                Some(s)
            }
            Err(e) => {
                inbox.borrow_mut().push(LinkEvent::Closed(text_of(&e)));
                None
            }
        };
        Self {
            socket,
            inbox,
            _open: open,
            _message: message,
            _close: close,
        }
    }
}

fn reason_of(code: u16, reason: &str) -> String {
    if !reason.is_empty() {
        return reason.to_string();
    }
    match code {
        1000 | 1001 => "the host ended".into(),
        1006 => "the host cannot be reached".into(),
        1008 => "the host refused this page; open the address it printed once more".into(),
        1009 => "a message was larger than the host accepts".into(),
        code => format!("the connection ended with code {code}"),
    }
}

/// An exception as a sentence.
pub(crate) fn text_of(error: &JsValue) -> String {
    error
        .dyn_ref::<js_sys::Error>()
        .map(|e| String::from(e.message()))
        .or_else(|| error.as_string())
        .unwrap_or_else(|| format!("{error:?}"))
}

impl Link for WebLink {
    fn send(&mut self, frame: Vec<u8>) {
        if let Some(s) = &self.socket
            && s.ready_state() == WebSocket::OPEN
            && let Err(e) = s.send_with_u8_array(&frame)
        {
            self.inbox.borrow_mut().push(LinkEvent::Closed(text_of(&e)));
        }
    }

    fn poll(&mut self) -> Vec<LinkEvent> {
        std::mem::take(&mut *self.inbox.borrow_mut())
    }
}

impl Drop for WebLink {
    fn drop(&mut self) {
        if let Some(s) = &self.socket {
            s.set_onopen(None);
            s.set_onmessage(None);
            s.set_onclose(None);
            let _ = s.close();
        }
    }
}
