//! Command `instdisc`; see `instdisc --help`. It is not linked to libtorch.

use std::process::ExitCode;

fn main() -> ExitCode {
    instdisc::cli::main()
}
