//! Drives the interface against the scripted host.
#![allow(dead_code, reason = "each test file uses its share")]

use egui_kittest::Harness;
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
                app.frame(ui);
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
