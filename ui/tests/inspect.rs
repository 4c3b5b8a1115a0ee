//! Looking inside: attention, kept rows, router.

mod common;
mod solo;

use common::{Desk, Look};
use egui_kittest::kittest::Queryable;
use protocol::{AttentionSpec, Request};
use solo::{click, solo, solo_as};
use ui::testing::Scene;

const SIZE: [f32; 2] = [1200.0, 800.0];
const VIEWS: [&str; 3] = ["inspect.attention", "inspect.rows", "inspect.router"];

fn has(d: &Desk, part: &str) -> bool {
    d.says(part)
}

fn names(d: &Desk, part: &str) -> Vec<String> {
    d.said(part)
}

fn spec(d: &Desk) -> Vec<AttentionSpec> {
    let all = d.scene.requests().into_iter();
    all.filter_map(|r| match r {
        Request::InspectAttention(spec) => Some(spec),
        _ => None,
    })
    .collect()
}

#[test]
fn empty_loading_and_failed_panels_say_so() {
    let words = [
        "Which tokens each token looks at",
        "Which compressed rows each token keeps",
        "Which experts each token goes to",
    ];
    for (view, empty) in VIEWS.into_iter().zip(words) {
        let mut d = solo(Scene::empty(), view, SIZE, true);
        assert!(has(&d, empty), "{view}");
        d.shot(&format!("{view}-empty-dark"));
        click(&mut d, "Go to the text");
        let mut d = solo(Scene::waiting(), view, SIZE, true);
        assert!(has(&d, "The text is being replayed"), "{view}");
        d.frames(2);
        let mut d = solo(Scene::failing(), view, SIZE, false);
        d.frames(2);
        assert!(has(&d, "The engine process ended while it computed this."), "{view}");
        assert!(has(&d, "Copy details"));
        d.shot(&format!("{view}-failed-light"));
    }
}

#[test]
fn pictures_in_both_themes_and_sizes() {
    for view in VIEWS {
        for (dark, zoom, size, name) in [
            (true, 1.0, SIZE, "dark"),
            (false, 1.0, SIZE, "light"),
            (true, 2.0, SIZE, "dark-zoom2"),
            (false, 2.0, SIZE, "light-zoom2"),
            (true, 1.0, [420.0, 420.0], "small-dark"),
        ] {
            let mut d = solo_as(Scene::finished(), view, Look { size, dark, zoom });
            d.frames(40);
            d.harness.check_accessibility();
            d.shot(&format!("{view}-{name}"));
        }
    }
}

#[test]
fn the_map_shows_a_csa_layer_first_with_its_segments() {
    let mut d = solo(Scene::finished(), "inspect.attention", SIZE, true);
    d.frames(4);
    let position = d.app().store.state.as_ref().unwrap().position;
    let first = spec(&d)[0];
    assert_eq!(
        first,
        AttentionSpec {
            layer: 2,
            head: None,
            from: 0,
            to: position
        }
    );
    // 311 tokens, 77 rows of 4, the sink.
    let columns = position + position / 4 + 1;
    let summary = format!("Attention: layer 2, mean of the heads, {position} queries, {columns} columns");
    assert!(has(&d, &summary), "{:?}", names(&d, "Attention:"));
    assert!(
        has(&d, "Head 3: entropy 4.20 bits, sink mass 17.0%"),
        "{:?}",
        names(&d, "Head")
    );
    assert!(has(&d, "Point at a cell"));
}

#[test]
fn pointing_at_a_cell_says_what_it_is() {
    let mut d = solo(Scene::finished(), "inspect.attention", SIZE, true);
    d.frames(4);
    let rect = d.harness.get_by_label_contains("Attention: layer 2").rect();
    // The last query reads itself at the right end of the window's columns.
    let columns = 311.0 + 77.0 + 1.0;
    let at = |col: f32, row: f32| {
        egui::pos2(
            rect.left() + (col + 0.5) / columns * rect.width(),
            rect.top() + (row + 0.5) / 311.0 * rect.height(),
        )
    };
    d.harness.hover_at(at(310.0, 310.0));
    d.frames(12);
    assert!(has(&d, "Query 310"), "{:?}", names(&d, "Query"));
    assert!(
        names(&d, "Query 310").iter().any(|n| n.contains("reads itself with")),
        "{:?}",
        names(&d, "Query")
    );
    assert!(has(&d, "Mass of query 310"));
    d.shot("inspect.attention-cell-dark");
    d.harness.hover_at(at(388.0, 310.0));
    d.frames(12);
    assert!(
        names(&d, "Query 310")
            .iter()
            .any(|n| n.contains("of its mass to the sink")),
        "{:?}",
        names(&d, "Query")
    );
    d.harness.hover_at(at(320.0, 310.0));
    d.frames(12);
    let said = names(&d, "Query 310");
    assert!(
        said.iter().any(|n| n.contains("compressed row 9 (tokens 32–39:")),
        "{said:?}"
    );
}

#[test]
fn a_clicked_token_colours_the_text() {
    let mut d = solo(Scene::finished(), "inspect.attention", SIZE, false);
    d.frames(4);
    assert!(has(&d, "Click a token to colour the text"));
    let text = d.harness.get_by_label_contains("Text coloured by attention").rect();
    d.harness.hover_at(egui::pos2(text.left() + 120.0, text.top() + 33.0));
    d.frames(2);
    let hovered = d.app().selection.hovered().token;
    assert!(hovered.is_some());
    d.harness.drag_at(egui::pos2(text.left() + 120.0, text.top() + 33.0));
    d.harness.drop_at(egui::pos2(text.left() + 120.0, text.top() + 33.0));
    d.frames(4);
    assert_eq!(d.app().selection.locked().token, hovered);
    assert!(has(&d, "Text, coloured by the attention of"));
    d.shot("inspect.attention-text-light");
}

#[test]
fn thumbnails_come_one_at_a_time_and_choose_the_map() {
    let mut d = solo(Scene::finished(), "inspect.attention", SIZE, true);
    d.frames(60);
    let small: Vec<AttentionSpec> = spec(&d).into_iter().filter(|s| s.from > 0).collect();
    assert_eq!(small.len(), 7 * 5, "seven layers with their mean and four heads");
    assert_eq!(small.iter().filter(|s| s.head.is_none()).count(), 7);
    let name = names(&d, "Layer 4 head 2")[0].clone();
    assert!(name.contains("entropy 3.50 bits, sink mass 14.0%"), "{name}");
    click(&mut d, &name);
    d.frames(4);
    assert!(has(&d, "Attention: layer 4, head 2,"), "{:?}", names(&d, "Attention:"));
    d.shot("inspect.attention-thumbs-dark");
}

#[test]
fn a_running_text_is_not_replayed_at_every_token() {
    let mut d = solo(Scene::live(), "inspect.attention", SIZE, true);
    d.frames(6);
    let before = spec(&d).len();
    for _ in 0..10 {
        d.scene.write(3);
        d.frames(3);
    }
    assert_eq!(spec(&d).len(), before, "{:?}", spec(&d));
    assert!(has(&d, "the text went on by 30 tokens"), "{:?}", names(&d, "went on"));
}

#[test]
fn five_thousand_layers_are_scrolled_not_drawn() {
    let scene = Scene::finished();
    scene.edit(|s| {
        if let protocol::ModelState::Ready(m) = &mut s.state.model {
            let own = m.facts.layers.clone();
            m.facts.layers = own.iter().cycle().take(5000).cloned().collect();
        }
    });
    let mut d = solo(scene, "inspect.attention", SIZE, true);
    d.frames(10);
    assert!(has(&d, "Layer 12 mean of heads"), "{:?}", names(&d, "mean of heads"));
    assert!(names(&d, "mean of heads").len() < 60, "only rows in sight are made");
}

#[test]
fn kept_rows_with_recall_and_their_tokens() {
    let mut d = solo(Scene::finished(), "inspect.rows", SIZE, true);
    d.frames(6);
    assert!(has(&d, "attn_recall: ~0.952"), "{:?}", names(&d, "attn_recall"));
    assert!(has(&d, "smallest: ~0.904"));
    assert!(has(&d, "top1_hit: ~98.1%"));
    assert!(
        has(&d, "Kept rows: layer 2, 311 queries, 77 rows"),
        "{:?}",
        names(&d, "Kept rows")
    );
    assert!(has(&d, "keeps 32 of 77 visible rows"));
    let first = names(&d, "Rank 1:")[0].clone();
    click(&mut d, &first);
    assert!(has(&d, "pools tokens"), "{first}");
    d.shot("inspect.rows-chosen-dark");
}

#[test]
fn a_layer_without_an_indexer_says_so_and_offers_another() {
    let mut d = solo(Scene::finished(), "inspect.rows", SIZE, true);
    d.harness
        .state_mut()
        .as_mut()
        .unwrap()
        .selection
        .lock(ui::selection::Spot::layer(3));
    d.frames(3);
    assert!(has(&d, "Layer 3 has no indexer"));
    click(&mut d, "Show layer 2");
    d.frames(4);
    assert!(has(&d, "Kept rows: layer 2"));
}

#[test]
fn router_choices_of_tokens() {
    let mut d = solo(Scene::finished(), "inspect.router", SIZE, false);
    d.frames(6);
    assert!(
        has(&d, "Router choices: layer 0, 8 experts, 311 tokens"),
        "{:?}",
        names(&d, "Router")
    );
    let rows = names(&d, "Layer 5: experts");
    assert_eq!(rows.len(), 1);
    assert!(rows[0].contains(":0.50") && rows[0].contains(":0.38"), "{rows:?}");
    click(&mut d, &rows[0]);
    d.frames(3);
    assert!(has(&d, "Router choices: layer 5,"));
    let rect = d.harness.get_by_label_contains("Router choices: layer 5").rect();
    let at = egui::pos2(rect.left() + rect.width() * 0.5, rect.top() + rect.height() * 2.5 / 8.0);
    d.harness.drag_at(at);
    d.harness.drop_at(at);
    d.frames(4);
    assert_eq!(d.app().selection.locked().expert, Some(2));
    assert!(has(&d, "coloured by the weight of expert 2 in layer 5"));
    d.shot("inspect.router-expert-light");
}
