//! The command `instdisc-torch`, which `instdisc` runs for what needs libtorch.

use std::process::ExitCode;

fn main() -> ExitCode {
    instdisc::cli::main_with_torch()
}
