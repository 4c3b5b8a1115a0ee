//! Drives the interface against the scripted host.
#![allow(dead_code, reason = "each test file uses its share")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use egui::accesskit::Role;
use egui_kittest::kittest::{By, NodeT, Queryable};
use egui_kittest::{Harness, Node};
use ui::App;
use ui::platform::NoPlatform;
use ui::testing::Scene;

/// An interface with its scripted host.
pub struct Desk {
    /// The interface.
    pub harness: Harness<'static, Option<App>>,
    /// The host.
    pub scene: Scene,
    /// The window around it.
    pub platform: NoPlatform,
}

/// Size, theme and zoom of a desk.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Size in pixels at zoom 1.
    pub size: [f32; 2],
    /// Dark or light.
    pub dark: bool,
    /// Zoom.
    pub zoom: f32,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            size: [1280.0, 800.0],
            dark: true,
            zoom: 1.0,
        }
    }
}

/// Opens the interface on a scene.
pub fn desk(scene: Scene, look: Look) -> Desk {
    scene.edit(|s| {
        s.settings.theme = if look.dark {
            protocol::ThemeChoice::Dark
        } else {
            protocol::ThemeChoice::Light
        };
        s.settings.zoom = look.zoom;
        s.settings.reduced_motion = true;
    });
    let platform = NoPlatform::default();
    let (host, window) = (scene.clone(), platform.clone());
    let theme = if look.dark {
        egui::Theme::Dark
    } else {
        egui::Theme::Light
    };
    let mut harness = Harness::builder()
        .with_size(look.size)
        .with_theme(theme)
        .with_max_steps(16)
        .with_context_setup(ui::theme::install)
        .wgpu()
        .build_ui_state(
            move |ui, app: &mut Option<App>| {
                let app =
                    app.get_or_insert_with(|| App::new(ui.ctx(), host.dialer(), Box::new(window.clone()), "test"));
                // The harness leaves a margin that the program's own windows do not have.
                let rect = ui.ctx().viewport_rect();
                ui.set_clip_rect(rect);
                ui.scope_builder(egui::UiBuilder::new().max_rect(rect), |ui| app.frame(ui));
            },
            None,
        );
    harness.run_steps(6);
    Desk {
        harness,
        scene,
        platform,
    }
}

impl Desk {
    /// The interface.
    pub fn app(&self) -> &App {
        self.harness.state().as_ref().expect("made in the first frame")
    }

    /// The interface, to be changed.
    pub fn app_mut(&mut self) -> &mut App {
        self.harness.state_mut().as_mut().expect("made in the first frame")
    }

    /// Names and texts of everything that contains a text.
    pub fn said(&self, part: &str) -> Vec<String> {
        let all = self.harness.query_all(By::new().recursive(true));
        let words = all.filter_map(|n| n.accesskit_node().label().or_else(|| n.accesskit_node().value()));
        words.filter(|s| s.contains(part)).collect()
    }

    /// Whether something contains a text.
    pub fn says(&self, part: &str) -> bool {
        !self.said(part).is_empty()
    }

    /// Fails with everything that is said unless something contains the text.
    pub fn must_say(&self, part: &str) {
        assert!(self.says(part), "nothing says {part:?}; said: {:#?}", self.said(""));
    }

    fn named(&self, name: &str) -> Vec<Node<'_>> {
        let all = self.harness.query_all(By::new().recursive(true));
        let named = |n: &Node<'_>| {
            let node = n.accesskit_node();
            node.role() != Role::Label && node.label().as_deref() == Some(name)
        };
        all.filter(named).collect()
    }

    /// Whether there is a widget with this name.
    pub fn has(&self, name: &str) -> bool {
        !self.named(name).is_empty()
    }

    /// The one widget with this name; texts beside it may say the same.
    pub fn node(&self, name: &str) -> Node<'_> {
        let mut found = self.named(name);
        assert_eq!(found.len(), 1, "widgets named {name:?}; said: {:#?}", self.said(""));
        found.remove(0)
    }

    /// Whether the widget with this name can be used.
    pub fn enabled(&self, name: &str) -> bool {
        !self.node(name).accesskit_node().is_disabled()
    }

    /// Clicks the widget with this name.
    pub fn click(&mut self, name: &str) {
        self.node(name).click();
        self.frames(4);
    }

    /// Types into the field with this name.
    pub fn write(&mut self, field: &str, text: &str) {
        self.node(field).focus();
        self.frames(2);
        self.node(field).type_text(text);
        self.frames(3);
    }

    /// Presses a key.
    pub fn key(&mut self, modifiers: egui::Modifiers, key: egui::Key) {
        self.harness.key_press_modifiers(modifiers, key);
        self.frames(4);
    }

    /// Clicks the widget with this name; what that put on the clipboard.
    pub fn copies(&mut self, name: &str) -> String {
        self.node(name).click();
        self.frames(1);
        let commands = &self.harness.output().platform_output.commands;
        let copied = commands.iter().find_map(|c| match c {
            egui::OutputCommand::CopyText(text) => Some(text.clone()),
            _ => None,
        });
        copied.unwrap_or_else(|| panic!("{name} copied nothing"))
    }

    /// Draws a few frames.
    pub fn frames(&mut self, n: usize) {
        self.harness.run_steps(n);
    }

    /// Writes the picture to the folder that `MODEL1_SHOTS` names; nothing without it.
    pub fn shot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("MODEL1_SHOTS") else {
            return;
        };
        let image = self.harness.render().expect("rendering");
        let folder = std::path::PathBuf::from(folder);
        std::fs::create_dir_all(&folder).expect("making the folder");
        image
            .save(folder.join(format!("{name}.png")))
            .expect("writing the picture");
    }
}
