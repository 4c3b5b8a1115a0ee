//! The wire to the host: frames out, frames in. What carries them differs (in-process, WebSocket, Tauri).

/// What happened on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Frames can be sent.
    Open,
    /// A frame of the host.
    Frame(Vec<u8>),
    /// It is over, with the reason; nothing follows.
    Closed(String),
}

/// One connection. It wakes the interface when something arrives; it never blocks.
pub trait Link {
    /// Sends a frame. Before `Open` and after `Closed` it is dropped.
    fn send(&mut self, frame: Vec<u8>);
    /// What happened since the last call, in order.
    fn poll(&mut self) -> Vec<LinkEvent>;
}

/// Makes a connection; called again after one was lost.
pub type Dialer = Box<dyn FnMut(&egui::Context) -> Box<dyn Link>>;

#[cfg(target_arch = "wasm32")]
pub mod tauri;
#[cfg(target_arch = "wasm32")]
pub mod web;
