//! `edgent-host`: the daemon, as device or as edge.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgent_cli::host_main()
}
