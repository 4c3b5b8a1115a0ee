//! The window as a whole.

mod common;

use common::{Look, desk};
use egui_kittest::kittest::Queryable;
use ui::testing::Scene;

#[test]
fn a_live_text_stands_in_four_regions() {
    let mut d = desk(Scene::live(), Look::default());
    d.harness.get_by_label("Generate");
    d.harness.get_by_label_contains("MODEL1-mini");
    assert!(
        d.harness
            .query_all_by_label_contains("Once upon a time")
            .next()
            .is_some()
    );
    d.scene.write(5);
    d.frames(2);
    assert_eq!(d.app().store.text.as_ref().unwrap().tokens().count(), 305);
    d.shot("shell-live-dark");
}
