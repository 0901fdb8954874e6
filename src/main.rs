//! The command `instdisc`.

fn main() {}
