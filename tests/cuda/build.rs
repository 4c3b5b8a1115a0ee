//! Compiles the CUDA kernels for the CPU: the same `.cu` files with the emulator's header in place of CUDA's built-ins.

use std::path::Path;

fn main() {
    let cuda = Path::new("../../kernels/cuda");
    let (src, emulate) = (cuda.join("src"), cuda.join("emulate"));
    println!("cargo:rerun-if-changed={}", src.display());
    println!("cargo:rerun-if-changed={}", emulate.display());
    let mut build = cc::Build::new();
    // -ffp-contract=off: where a kernel asks for a rounding it gets one. -O2 whatever the profile: tests run whole models.
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .define("MODEL1_EMULATE", None)
        .flag("-ffp-contract=off")
        .flag("-include")
        .flag(emulate.join("simt.h").display().to_string())
        .flag("-x")
        .flag("c++")
        .flag_if_supported("-Wno-unknown-pragmas")
        .link_lib_modifier("+whole-archive");
    let files = std::fs::read_dir(&src).unwrap_or_else(|e| panic!("{}: {e}", src.display()));
    let mut kernels: Vec<_> = files
        .map(|f| f.unwrap_or_else(|e| panic!("{}: {e}", src.display())).path())
        .filter(|p| p.extension().is_some_and(|e| e == "cu"))
        .collect();
    kernels.sort();
    build
        .files(kernels)
        .file(emulate.join("simt.cpp"))
        .compile("model1_emulated");
}
