//! Serves the interface: owns the engine worker, the texts and the jobs, and speaks `protocol` over WebSocket and
//! in-process.
//!
//! ```no_run
//! # fn main() -> Result<(), host::StartError> {
//! let host = host::Host::start(host::HostOptions::default())?;
//! let link = host.connect("window", || { /* something can be polled */ })?;
//! # let hello = Vec::new();
//! link.send(&hello); // a `protocol::ClientFrame`
//! for event in link.poll() {
//!     match event {
//!         host::LinkEvent::Frame(bytes) => drop(bytes), // a `protocol::HostFrame`
//!         host::LinkEvent::Closed(why) => eprintln!("{why}"),
//!     }
//! }
//! host.stop();
//! # Ok(()) }
//! ```
//!
//! How it is cut: [`Host`] ties together the *hub* (everything clients can see, behind one lock that is held for
//! microseconds), the *worker* (one thread that owns the engine and its session and is fed by commands), a small
//! *pool* for disk and network, and the *saver* that writes texts. Connections know none of these: they hand frames
//! to the dispatcher and pull frames out of the hub.

mod about;
mod connection;
mod dispatch;
mod docs;
mod errors;
mod fonts;
mod host;
mod hub;
mod memory;
mod models;
mod paths;
mod pool;
pub mod recorded;
pub mod remote;
mod saver;
mod settings;
mod views;
pub mod web;
mod worker;

pub use connection::{Connection, LinkEvent};
pub use engine::worker::enter as engine_process;
pub use host::{Host, HostOptions, StartError};
pub use paths::{bundled_model, default_data_dir};
