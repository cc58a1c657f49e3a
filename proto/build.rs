//! Compiles the .proto files with protox, so that a fresh machine needs no protoc.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let files = [
        "weft/v1/errors.proto",
        "weft/v1/events.proto",
        "weft/v1/cluster.proto",
        "weft/v1/services.proto",
        "weft/demo/v1/greeter.proto",
        "weft/internal/v1/caller.proto",
        "weft/internal/v1/raft.proto",
        "weft/internal/v1/registry.proto",
        "weft/internal/v1/shard.proto",
        "weft/internal/v1/call.proto",
        "weft/internal/v1/link.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, [root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    for (package, name) in [("weft.v1", "weft_v1.bin"), ("weft.demo.v1", "weft_demo_v1.bin")] {
        let file = descriptors.file.iter().filter(|file| file.package() == package).cloned().collect();
        let set = prost_types::FileDescriptorSet { file };
        std::fs::write(out.join(name), prost::Message::encode_to_vec(&set))?;
    }

    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_server(grpc)
        .build_client(grpc)
        .bytes(".")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
