//! The page about a fault: what happened, the report to copy, and a way to start again.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::window::{explained, options};

/// Shows the report in this file.
pub fn show(file: &Path) -> Result<()> {
    let report = std::fs::read_to_string(file).unwrap_or_else(|e| format!("{}: {e}", file.display()));
    let place = file.display().to_string();
    let viewport = egui::ViewportBuilder::default()
        .with_title("MODEL1 Explorer: a fault")
        .with_app_id(desktop::APP)
        .with_inner_size([760.0, 480.0])
        .with_min_inner_size([400.0, 300.0]);
    eframe::run_native(
        desktop::APP,
        options(viewport),
        Box::new(move |cc| {
            ui::theme::install(&cc.egui_ctx);
            Ok(Box::new(Page {
                report,
                place,
                problem: None,
            }))
        }),
    )
    .map_err(explained)
}

struct Page {
    report: String,
    place: String,
    problem: Option<String>,
}

impl eframe::App for Page {
    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        egui::CentralPanel::default().show(ui, |ui| {
            ui.heading("The interface stopped working");
            ui.add_space(8.0);
            ui.label("A fault in MODEL1 Explorer. Your texts are saved. The report below helps whoever mends it.");
            ui.add_space(8.0);
            ui.horizontal(|ui| {
                if ui.button("Start again").clicked() {
                    self.restart(ui.ctx());
                }
                if ui.button("Copy report").clicked() {
                    ui.ctx().copy_text(self.report.clone());
                }
                ui.label(&self.place);
            });
            if let Some(problem) = &self.problem {
                ui.label(problem);
            }
            ui.add_space(8.0);
            egui::ScrollArea::both().auto_shrink(false).show(ui, |ui| {
                // Read-only, and selectable.
                let mut text = self.report.as_str();
                let edit = egui::TextEdit::multiline(&mut text).font(egui::TextStyle::Monospace);
                ui.add(edit.desired_width(f32::INFINITY));
            });
        });
    }
}

impl Page {
    fn restart(&mut self, ctx: &egui::Context) {
        let started = std::env::current_exe().and_then(|own| Command::new(own).spawn());
        match started {
            Ok(_) => ctx.send_viewport_cmd(egui::ViewportCommand::Close),
            Err(e) => self.problem = Some(format!("It could not be started: {e}. Start ./run --native.")),
        }
    }
}
