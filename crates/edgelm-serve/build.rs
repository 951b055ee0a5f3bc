//! Generates the messages and traits of `proto/`. `protox` is a compiler written in Rust: no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let file = "edgelm/v1/edgelm.proto";
    println!("cargo::rerun-if-changed=proto/{file}");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_file(file)?;
    // For reflection.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("edgelm.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
