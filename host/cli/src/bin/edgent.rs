//! `edgent`: builds, inspects, verifies and measures bundles, asks devices, shows the demo.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgent_cli::main()
}
