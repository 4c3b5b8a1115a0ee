//! Lists the commands that the page may be permitted to call; each gets a permission of its own.

/// The same list as in `src/commands.rs`.
const COMMANDS: &[&str] = &[
    "host_connect",
    "host_send",
    "shell_events",
    "pick_folder",
    "pick_model",
    "save_file",
    "set_theme",
    "toggle_fullscreen",
    "open_native",
];

fn main() {
    // The page is compiled in: a new one needs a new program.
    println!("cargo:rerun-if-changed=../ui/dist");
    let manifest = tauri_build::AppManifest::new().commands(COMMANDS);
    if let Err(e) = tauri_build::try_build(tauri_build::Attributes::new().app_manifest(manifest)) {
        // What cargo shows of a failed build script is its standard error.
        eprintln!("error: {e:#}");
        if !std::path::Path::new("../ui/dist/index.html").exists() {
            eprintln!("ui/dist is missing: .ci/wasm.sh makes it");
        }
        std::process::exit(1);
    }
}
