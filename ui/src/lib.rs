//! The interface of MODEL1 Explorer: the same code in the native window, in Tauri's webview and in browsers.
//!
//! [`app::App`] draws four regions around a [`store::Store`] that mirrors the host. Views ([`views::View`]) read the
//! store and the shared [`selection::Selection`] and answer with [`views::Action`]s; only the store talks to the
//! [`link::Link`].

pub mod app;
pub mod commands;
pub mod fmt;
pub mod icons;
pub mod layout;
pub mod link;
pub mod platform;
pub mod selection;
pub mod store;
pub mod test_bridge;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod theme;
pub mod views;
#[cfg(target_arch = "wasm32")]
pub mod web;
pub mod widgets;

pub use app::App;
