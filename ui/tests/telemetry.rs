//! The charts of telemetry.

mod common;
use common::{Look, desk};
use ui::testing::Scene;

#[test]
fn charts_of_a_live_text_stand_in_the_workspace() {
    let mut d = desk(Scene::live(), Look::default());
    d.frames(3);
    d.shot("telemetry-live-dark");
    let mut d = desk(
        Scene::live(),
        Look {
            dark: false,
            ..Look::default()
        },
    );
    d.frames(3);
    d.shot("telemetry-live-light");
}
