//! Pictures of some panels, pixel by pixel, on the renderer they were recorded on. Rasterisers differ in roundings: on
//! another one the comparison is skipped, and says why. `UPDATE_PIXELS=1` records them anew.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;
mod solo;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Desk, Look, desk};
use solo::{alone, click};
use ui::testing::Scene;

/// Small, so that all of them together stay below half a megabyte.
const SIZE: [f32; 2] = [720.0, 450.0];

fn look(dark: bool, zoom: f32) -> Look {
    Look { size: SIZE, dark, zoom }
}

fn view(scene: Scene, view: &str, dark: bool) -> Desk {
    let mut d = desk(scene, look(dark, 1.0));
    alone(&mut d, view);
    d
}

/// The pictures: name and how it is made.
fn pictures() -> Vec<(&'static str, Desk)> {
    let mut plan = view(Scene::finished(), "explorer.plan", true);
    for row in ["layer 2", "attention"] {
        let found = plan.said(row).into_iter().find(|s| s.starts_with(row)).expect("a row");
        click(&mut plan, &found);
    }
    plan.frames(8);
    let mut blocks = view(Scene::finished(), "blocks", false);
    click(&mut blocks, "layer 3 kv_cache: fp8_model1");
    vec![
        ("start-dark", desk(Scene::start(), look(true, 1.0))),
        ("text-light", view(Scene::finished(), "generate", false)),
        ("small-dark", desk(Scene::finished(), look(true, 1.5))),
        ("plan-dark", plan),
        ("blocks-light", blocks),
        ("heat-dark", view(Scene::finished(), "telemetry.heatmap", true)),
    ]
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pixels")
}

/// Name of the renderer with its driver: what the pixels depend on.
fn renderer() -> String {
    let setup = egui_kittest::wgpu::default_wgpu_setup();
    let state = egui_kittest::wgpu::create_render_state(setup, egui_wgpu::RendererOptions::PREDICTABLE);
    let info = state.adapter.get_info();
    format!(
        "{}, {} {}, {:?}",
        info.name, info.driver, info.driver_info, info.backend
    )
}

/// Width, height and RGB.
#[derive(PartialEq)]
struct Picture(u32, u32, Vec<u8>);

fn drawn(d: &mut Desk) -> Picture {
    let image = d.harness.render().expect("rendering");
    let rgb = image.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect();
    Picture(image.width(), image.height(), rgb)
}

fn read(path: &Path) -> Option<Picture> {
    let file = fs::File::open(path).ok()?;
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().ok()?;
    let mut rgb = vec![0; reader.output_buffer_size()?];
    let info = reader.next_frame(&mut rgb).ok()?;
    rgb.truncate(info.buffer_size());
    Some(Picture(info.width, info.height, rgb))
}

fn write(path: &Path, picture: &Picture) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("making the folder");
    let mut encoder = png::Encoder::new(fs::File::create(path).expect("a file"), picture.0, picture.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().expect("writing the picture");
    writer.write_image_data(&picture.2).expect("writing the picture");
}

/// What differs, in words; `None` = nothing.
fn difference(old: &Picture, new: &Picture) -> Option<String> {
    if (old.0, old.1) != (new.0, new.1) {
        return Some(format!("{} x {} became {} x {}", old.0, old.1, new.0, new.1));
    }
    let pixels = old.2.chunks_exact(3).zip(new.2.chunks_exact(3)).enumerate();
    let changed: Vec<(usize, u8)> = pixels
        .filter(|(_, (a, b))| a != b)
        .map(|(i, (a, b))| (i, a.iter().zip(b).map(|(x, y)| x.abs_diff(*y)).max().unwrap_or(0)))
        .collect();
    let (first, _) = changed.first()?;
    let most = changed.iter().map(|c| c.1).max().unwrap_or(0);
    let (x, y) = (first % old.0 as usize, first / old.0 as usize);
    Some(format!(
        "{} pixels differ by up to {most} of 255, the first at ({x}, {y})",
        changed.len()
    ))
}

#[test]
fn pictures_are_as_recorded() {
    let (folder, here) = (folder(), renderer());
    let named = folder.join("renderer.txt");
    let update = std::env::var_os("UPDATE_PIXELS").is_some();
    let recorded = fs::read_to_string(&named).unwrap_or_default();
    if !update && recorded.trim() != here {
        println!(
            "SKIPPED: the pictures were recorded on \"{}\", this is \"{here}\"",
            recorded.trim()
        );
        return;
    }
    let mut wrong = Vec::new();
    for (name, mut d) in pictures() {
        let path = folder.join(format!("{name}.png"));
        let new = drawn(&mut d);
        if update {
            write(&path, &new);
            continue;
        }
        let why = match read(&path) {
            Some(old) => difference(&old, &new),
            None => Some(format!("{} is missing", path.display())),
        };
        if let Some(why) = why {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
            write(&kept, &new);
            wrong.push(format!("{name}: {why}; it is now {}", kept.display()));
        }
    }
    if update {
        fs::write(&named, here + "\n").expect("writing the renderer's name");
    }
    assert!(
        wrong.is_empty(),
        "{wrong:#?}\nUPDATE_PIXELS=1 records them anew, if that is as it should be"
    );
}

#[test]
fn one_pixel_is_a_difference() {
    let white = |w: u32, h: u32| Picture(w, h, vec![255; (3 * w * h) as usize]);
    assert_eq!(difference(&white(4, 3), &white(4, 3)), None);
    assert!(
        difference(&white(4, 3), &white(3, 4))
            .expect("another size")
            .contains("4 x 3 became 3 x 4")
    );
    let mut spot = white(4, 3);
    spot.2[3 * 6 + 1] = 250;
    let said = difference(&white(4, 3), &spot).expect("another pixel");
    assert_eq!(said, "1 pixels differ by up to 5 of 255, the first at (2, 1)");
    // What is recorded comes back as it was.
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("one-pixel.png");
    write(&path, &spot);
    assert!(read(&path).is_some_and(|p| p == spot));
}
