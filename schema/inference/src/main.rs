//! Turns a .proto file into Rust: messages for prost, client and server for tonic. No `protoc`: protox reads the file.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [proto, out] = arguments.as_slice() else {
        return Err("usage: generate-grpc FILE.proto FOLDER".into());
    };
    let folder = Path::new(proto).parent().ok_or("the file is in no folder")?;
    let files = protox::compile([proto], [folder])?;
    tonic_prost_build::configure()
        // Whoever uses the code has a transport: the host hyper's server, its test a client of its own.
        .build_transport(false)
        // Bytes of tensors stay where they came in.
        .bytes(".")
        .out_dir(out)
        .compile_fds(files)?;
    Ok(())
}
