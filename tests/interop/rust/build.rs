//! Generates the client from the public .proto files; no protoc is needed.
//!
//! Fields that carry a `Batch` are generated as bytes, which is the same on the wire: so the client checks the checksum
//! of the bytes that came, not of what it would encode itself.
use std::{error::Error, fs, path::Path};

use prost_types::field_descriptor_proto::Type;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../proto");
    let public = root.join("ringpost/v1");
    println!("cargo:rerun-if-changed={}", public.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(&public)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "proto") {
            files.push(path.strip_prefix(&root)?.to_owned());
        }
    }
    files.sort();
    let mut descriptors = protox::compile(&files, [&root])?;
    let messages = descriptors.file.iter_mut().flat_map(|file| &mut file.message_type);
    for field in messages.flat_map(|message| &mut message.field) {
        if field.type_name() == ".ringpost.v1.Batch" {
            field.set_type(Type::Bytes);
            field.type_name = None;
        }
    }
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
