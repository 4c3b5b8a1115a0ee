//! End-to-end tests of the desktop shell: a virtual display, a session bus, the program, and WebKitWebDriver between.

pub mod desktop;
pub mod webdriver;
