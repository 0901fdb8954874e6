//! Checks that the program accepts every command in job scripts, manifests and guides.

use std::path::Path;

use walkdir::WalkDir;

use super::check_command_line;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Replacement for the value of a variable; valid as a path, a number and a name.
const VALUE: &str = "1";

/// Splits a shell's command line into words, up to its end or a redirection. Variables become values.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut begun, mut quote) = (String::new(), false, None);
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\'' | '"', None) => (quote, begun) = (Some(character), true),
            (character, Some(open)) if character == open => quote = None,
            ('$', None | Some('"')) => {
                let mut name = String::new();
                if matches!(characters.peek(), Some('{' | '(')) {
                    let mut depth = 0;
                    name.extend(characters.by_ref().take_while(|character| {
                        depth += i32::from("{(".contains(*character)) - i32::from("})".contains(*character));
                        depth > 0
                    }));
                } else if let Some(all) = characters.next_if_eq(&'@') {
                    name.push(all);
                } else {
                    while let Some(next) = characters.next_if(|next| next.is_alphanumeric() || *next == '_') {
                        name.push(next);
                    }
                }
                // Words that exist if the variable is set.
                if let Some((_, more)) = name.split_once(":+").filter(|_| quote.is_none() && !begun) {
                    words.extend(self::words(more));
                    continue;
                }
                // An empty array of options gives no words.
                match name.contains('@') {
                    true => begun = !word.is_empty(),
                    false => (word, begun) = (word + VALUE, true),
                }
            }
            (' ', None) => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            ('|' | ';' | '&' | '<' | '>' | '#', None) if !begun => return words,
            ('>' | ';' | ')', None) => break,
            (character, _) => {
                word.push(character);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// Joins continued lines.
fn lines(text: &str) -> Vec<String> {
    text.replace("\\\n", " ").lines().map(|line| line.trim().to_owned()).collect()
}

/// Returns the commands of a shell script or of the indented lines of a guide.
fn shell_commands(text: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    // Loop variables, each with its first value, as an option may accept no other.
    let mut loops: Vec<(String, String)> = Vec::new();
    for line in lines(text) {
        let mut words_of_loop = line.trim_end_matches("; do").split_whitespace();
        if let (Some("for"), Some(name), Some("in"), Some(value)) =
            (words_of_loop.next(), words_of_loop.next(), words_of_loop.next(), words_of_loop.next())
        {
            loops.push((format!("${name}"), value.to_owned()));
        }
        let line = loops.iter().rev().fold(line, |line, (name, value)| line.replace(name, value));
        for name in ["instdisc ", "$instdisc "] {
            let starts =
                |at: usize| line[..at].chars().next_back().is_none_or(|before| " (".contains(before));
            let at = line.match_indices(name).map(|(at, _)| at).find(|&at| starts(at));
            let Some(at) = at.filter(|_| !line.starts_with('#')) else { continue };
            let mut found = words(&line[at + name.len()..]);
            if found.first().is_some_and(|word| word.chars().all(|letter| letter.is_ascii_lowercase())) {
                found.insert(0, "instdisc".into());
                commands.push(found);
            }
        }
    }
    commands
}

/// Returns the arguments of the containers in a manifest.
fn manifest_commands(text: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(rest) = line.trim_start().strip_prefix("args:") else { continue };
        let mut found = vec!["instdisc".to_owned()];
        if let Some(list) = rest.trim().strip_prefix('[') {
            found.extend(list.trim_end_matches(']').split(", ").map(with_values));
        }
        while let Some(item) = lines.peek().and_then(|line| line.trim_start().strip_prefix("- ")) {
            found.push(with_values(item));
            lines.next();
        }
        commands.push(found);
    }
    commands
}

/// Replaces `$(NAME)` by a value.
fn with_values(item: &str) -> String {
    match (item.find("$("), item.find(')')) {
        (Some(start), Some(end)) if start < end => format!("{}{VALUE}{}", &item[..start], &item[end + 1..]),
        _ => item.trim_matches('"').to_owned(),
    }
}

fn check(file: &Path, commands: &[Vec<String>]) {
    for command in commands {
        if let Err(error) = check_command_line(command) {
            panic!("{}: {command:?}: {error}", file.display());
        }
    }
}

#[test]
fn every_command_of_the_jobs_is_one_that_the_program_takes() {
    let mut count = 0;
    for entry in WalkDir::new(root().join("jobs")).into_iter().filter_map(Result::ok) {
        let path = entry.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        let read = || std::fs::read_to_string(path).expect("a text");
        let commands = match ending {
            Some("sbatch" | "sh") => shell_commands(&read()),
            Some("yaml") => manifest_commands(&read()),
            _ => continue,
        };
        check(path, &commands);
        count += commands.len();
    }
    // Three commands for SLURM, four and three for Kubernetes, and those of the demo.
    assert!(count >= 15, "only {count} commands were found");
}

#[test]
fn every_command_of_the_guide_to_operations_is_one_that_the_program_takes() {
    let file = root().join("docs/operations.md");
    let text = std::fs::read_to_string(&file).expect("the guide");
    let indented: String =
        text.lines().filter(|line| line.starts_with("    ")).map(|line| line.to_owned() + "\n").collect();
    let commands = shell_commands(&indented);
    assert!(commands.len() >= 5, "only {} commands were found", commands.len());
    check(&file, &commands);
}

#[test]
fn a_command_that_the_program_does_not_take_is_found() {
    let script = "srun --kill-on-bad-exit=1 \\\n  \
                  instdisc ingest --sauce \"$SOURCE\" --dest ${DEST:-x} \"$@\" >out.json\n";
    let commands = shell_commands(script);
    assert_eq!(commands, [["instdisc", "ingest", "--sauce", "1", "--dest", "1"]]);
    assert!(check_command_line(&commands[0]).expect_err("unknown").contains("--sauce"));
    let script =
        "for kind in nce softmax; do\n  instdisc bench --objective $kind \"${more[@]}\" >out\ndone\n";
    assert_eq!(shell_commands(script), [["instdisc", "bench", "--objective", "nce"]]);
    let script = "instdisc train --run x \\\n  ${CACHE:+--cash \"$CACHE\" --cache-size \"${SIZE:-9GiB}\"}\n";
    let commands = shell_commands(script);
    assert_eq!(commands, [["instdisc", "train", "--run", "x", "--cash", "1", "--cache-size", "1"]]);
    let manifest = "  args:\n    - ingest\n    - --dest=$(DATASET)\n  env: []\n";
    let commands = manifest_commands(manifest);
    assert_eq!(commands, [["instdisc", "ingest", "--dest=1"]]);
    assert!(check_command_line(&commands[0]).expect_err("incomplete").contains("--source"));
}
