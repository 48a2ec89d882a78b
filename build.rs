//! Builds the object that is loaded into programs which are started ahead of their connection, see `src/sys/warm/mod.rs`.
//!
//! It has no dependencies, so the compiler that cargo uses is asked for it directly. What flags there are for
//! preforkd itself are not for it: it is loaded into programs that are linked dynamically.

use std::path::Path;
use std::process::Command;

const SOURCE: &str = "src/sys/warm/object/main.rs";

fn main() {
    println!("cargo::rerun-if-changed=src/sys/warm/object");
    println!("cargo::rerun-if-changed=build.rs");
    let of_cargo = |name: &str| std::env::var(name).unwrap_or_default();
    let object = Path::new(&of_cargo("OUT_DIR")).join("warm.so");
    let is_here = of_cargo("CARGO_CFG_TARGET_ARCH") == "x86_64" && of_cargo("CARGO_CFG_TARGET_OS") == "linux";
    // Miri runs no other programs.
    if !is_here || std::env::var_os("CARGO_CFG_MIRI").is_some() {
        return std::fs::write(&object, [])
            .unwrap_or_else(|error| fail(&format!("cannot write the object: {error}")));
    }
    let mut rustc = Command::new(of_cargo("RUSTC"));
    rustc.args(["--crate-name=preforkd_warm", "--crate-type=cdylib", "--edition=2024"]);
    rustc.arg(format!("--target={}", of_cargo("TARGET")));
    // No unwinding, nothing that others have to define or that is looked up when it is called, no stack that can be executed. Not static: musl's default.
    for codegen in [
        "panic=abort",
        "opt-level=2",
        "codegen-units=1",
        "lto=fat",
        "embed-bitcode=yes",
        "debug-assertions=no",
        "overflow-checks=no",
        "strip=symbols",
        "target-feature=-crt-static",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-Wl,-z,defs,-z,now,-z,relro,-z,noexecstack,--gc-sections,--build-id=none,--hash-style=both",
    ] {
        rustc.args(["-C", codegen]);
    }
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    // What comes out does not depend on where it was built.
    rustc.arg(format!("--remap-path-prefix={}=/usr/src/preforkd", of_cargo("CARGO_MANIFEST_DIR")));
    rustc.arg("-o").arg(&object).arg(SOURCE);
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("{SOURCE} could not be compiled: {status}")),
        Err(error) => fail(&format!("cannot start {}: {error}", of_cargo("RUSTC"))),
    }
}

fn fail(why: &str) -> ! {
    println!("cargo::error={why}");
    std::process::exit(1)
}
