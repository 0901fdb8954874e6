//! The command `instdisc`; see `instdisc --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    instdisc::cli::main()
}
