//! Command `instdisc-torch`, which `instdisc` executes for commands that need libtorch.

use std::process::ExitCode;

fn main() -> ExitCode {
    instdisc::cli::main_with_torch()
}
