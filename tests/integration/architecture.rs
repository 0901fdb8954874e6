//! The promises of docs/architecture.md that the compiler does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use instdisc::run_config::{Given, TrainConfig};

use super::support::root;

/// The layers from the foundation up.
const FOUNDATION: &[&str] = &["ids", "units", "rng", "simd", "failure", "guard", "progress", "storage"];
const FORMATS: &[&str] = &["image", "dataset", "feature_table", "checkpoint"];
const LEARNING: &[&str] = &["model", "bank", "objective", "distributed"];
const PARTS: &[&str] = &["augment", "search"];
const STAGES: &[&str] = &["ingest", "loader", "train", "eval", "page"];

/// What a module may import; nothing where it has no place in the layers.
fn may_import(module: &str) -> Option<Vec<&'static str>> {
    Some(match module {
        "storage" | "distributed" => vec!["failure"],
        "run_config" => [FOUNDATION, &["dataset"]].concat(),
        "checkpoint" => [FOUNDATION, &["run_config"]].concat(),
        name if FOUNDATION.contains(&name) => Vec::new(),
        name if FORMATS.contains(&name) => FOUNDATION.to_vec(),
        "bank" => [FOUNDATION, &["run_config"]].concat(),
        "model" => [FOUNDATION, &["augment", "run_config"]].concat(),
        "objective" => [FOUNDATION, &["bank", "distributed", "run_config"]].concat(),
        "augment" => [FOUNDATION, &["image", "run_config"]].concat(),
        "search" => [FOUNDATION, &["feature_table"]].concat(),
        "ingest" => [FOUNDATION, FORMATS].concat(),
        "loader" => [FOUNDATION, FORMATS, &["augment", "run_config"]].concat(),
        "train" | "eval" => [FOUNDATION, FORMATS, PARTS, LEARNING, &["loader", "run_config"]].concat(),
        "page" => [FOUNDATION, FORMATS, &["search", "eval"]].concat(),
        "commands" => [FOUNDATION, FORMATS, PARTS, LEARNING, STAGES, &["run_config"]].concat(),
        "cli" => [FOUNDATION, FORMATS, PARTS, LEARNING, STAGES, &["run_config", "commands"]].concat(),
        _ => return None,
    })
}

/// Places that may name tensors.
const TENSORS: [&str; 9] = [
    "src/model/",
    "src/distributed/",
    "src/objective/",
    "src/bank/",
    "src/train/",
    "src/eval/embed.rs",
    "src/eval/embed/",
    "src/eval/linear/",
    "src/cli/replay.rs",
];
/// Lines of a file without its tests; above, ask whether it is two things.
const LONGEST_FILE: usize = 600;
/// Columns of a line of Rust. rustfmt breaks code at its `max_width`, but neither comments nor strings.
const WIDEST_LINE: usize = 120;

/// Every source file: path from the root, text.
fn sources() -> Vec<(String, String)> {
    let files = walkdir::WalkDir::new(root().join("src")).sort_by_file_name();
    let files = files.into_iter().map(|entry| entry.expect("readable"));
    let sources: Vec<_> = files
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"))
        .map(|entry| {
            let path = entry.path().strip_prefix(root()).expect("below").to_string_lossy().into_owned();
            (path, std::fs::read_to_string(entry.path()).expect("text"))
        })
        .collect();
    assert!(sources.len() > 50, "the sources are found");
    sources
}

/// The module of a file: the first part of its path below src.
fn module(path: &str) -> &str {
    let below = path.strip_prefix("src/").expect("a source");
    below.split('/').next().expect("a part").trim_end_matches(".rs")
}

/// Names after `crate::` in the lines of code.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| {
        line.split("crate::").skip(1).map(|rest| {
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>()
        })
    })
    .collect()
}

#[test]
fn imports_go_down_the_layers() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let own = module(&path);
        if ["lib", "main", "main_torch"].contains(&own) {
            continue;
        }
        let Some(allowed) = may_import(own) else {
            wrong.push(format!("{path}: module {own} has no place in the layers"));
            continue;
        };
        let foreign =
            imports(&text).into_iter().filter(|name| name != own && !allowed.contains(&name.as_str()));
        wrong.extend(foreign.map(|name| format!("{path}: imports {name}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_learning_side_names_tensors() {
    let is_allowed = |path: &str| TENSORS.iter().any(|allowed| path.starts_with(allowed));
    let is_use = |line: &str| {
        let mut parts = line.split("tch::");
        let before = parts.next().unwrap_or_default();
        parts.next().is_some() && !before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
    };
    let names = |text: &str| text.lines().any(|line| is_use(line) && !line.trim_start().starts_with("//"));
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| names(text) && !is_allowed(path))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn only_the_shell_names_anyhow_and_clap() {
    let is_use = |line: &str| {
        !line.trim_start().starts_with("//") && ["anyhow", "clap"].iter().any(|name| line.contains(name))
    };
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| !["cli", "main"].contains(&module(path)) && text.lines().any(is_use))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn files_are_short() {
    let is_test = |path: &str| path.ends_with("tests.rs") || path.contains("/tests/");
    let lines = |text: &str| text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| !is_test(path) && lines(text) > LONGEST_FILE)
        .map(|(path, text)| format!("{path}: {}", lines(&text)))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn lines_are_narrow() {
    let folders = ["src", "tests", "fuzz/fuzz_targets", "build.rs"].map(|folder| root().join(folder));
    let files =
        folders.iter().flat_map(walkdir::WalkDir::new).map(|entry| entry.expect("readable").into_path());
    let (mut wide, mut found) = (Vec::new(), 0);
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let text = std::fs::read_to_string(&path).expect("text");
        found += 1;
        for (number, line) in (1..).zip(text.lines()) {
            let columns = line.chars().count();
            wide.extend((columns > WIDEST_LINE).then(|| format!("{}:{number}: {columns}", path.display())));
        }
    }
    assert!(found > 200 && wide.is_empty(), "{found} {wide:#?}");
}

/// Paths in code spans and links of our documents, from the root, from src or from the document's folder.
#[test]
fn documents_name_files_that_exist() {
    let documents = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/numerics.md"];
    let mut missing = Vec::new();
    let mut found = 0;
    for document in documents {
        let text = std::fs::read_to_string(root().join(document)).expect("the document");
        let folder = Path::new(document).parent().expect("a folder");
        for name in code_spans(&text).into_iter().chain(links(&text)) {
            let places: [PathBuf; 3] =
                [root().join(&name), root().join("src").join(&name), root().join(folder).join(&name)];
            found += 1;
            if !places.iter().any(|place| place.exists()) {
                missing.push(format!("{document}: {name}"));
            }
        }
    }
    assert!(found > 20 && missing.is_empty(), "{found} {missing:#?}");
}

/// Code spans that look like a source file, or a folder of the sources.
fn code_spans(text: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2);
    let is_path = |span: &str| {
        let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        plain
            && (span.ends_with(".rs") || span.ends_with(".py"))
            && span != "x/tests.rs"
            && !span.starts_with("main.py")
            && !["NCEAverage.py", "NCECriterion.py"].contains(&span)
    };
    spans.filter(|span| is_path(span)).map(ToOwned::to_owned).collect()
}

fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains("://")).map(ToOwned::to_owned).collect()
}

/// Functions in code spans of our documents: tests, and methods with their type.
#[test]
fn documents_name_functions_that_exist() {
    let tests = walkdir::WalkDir::new(root().join("tests/integration")).into_iter();
    let tests = tests.map(|entry| entry.expect("readable").into_path()).filter(|path| path.is_file());
    let tests = tests.map(|path| std::fs::read_to_string(path).expect("text"));
    let code: Vec<String> = sources().into_iter().map(|(_, text)| text).chain(tests).collect();
    let functions: BTreeSet<&str> = code
        .iter()
        .flat_map(|text| text.split("fn ").skip(1))
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .collect();
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c))
    };
    let (mut missing, mut found) = (Vec::new(), 0);
    for document in ["CONTRIBUTING.md", "docs/architecture.md", "docs/glossary.md"] {
        let text = std::fs::read_to_string(root().join(document)).expect("the document");
        for span in text.split('`').skip(1).step_by(2) {
            let name = match span.split_once("::") {
                Some((owner, name)) if owner.starts_with(|c: char| c.is_ascii_uppercase()) => name,
                None if span.matches('_').count() > 2 => span,
                _ => continue,
            };
            if is_name(name) {
                found += 1;
                missing.extend((!functions.contains(name)).then(|| format!("{document}: {span}")));
            }
        }
    }
    assert!(found > 80 && missing.is_empty(), "{found} {missing:#?}");
}

#[test]
fn every_run_file_is_a_valid_configuration() {
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("jobs/runs")).expect("the folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let name = path.display().to_string();
        let given = Given { file: Some((&name, &text)), flags: &toml::Table::new() };
        let config = given.over(&TrainConfig::default()).expect("a configuration");
        config.validate().expect("valid");
        for word in ["command:", "expected:", "hours:", "source:"] {
            assert!(
                text.lines().any(|line| line.starts_with('#') && line.contains(word)),
                "{name}: no {word}"
            );
        }
        seen += 1;
    }
    assert!(seen >= 4, "{seen} files");
}

#[test]
fn folders_are_small_enough_to_be_seen_at_once() {
    const MOST: usize = 16;
    let mut files = BTreeMap::<String, usize>::new();
    for (path, _) in sources() {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        *files.entry(folder.to_owned()).or_default() += 1;
    }
    files.retain(|_, count| *count > MOST);
    assert!(files.is_empty(), "{files:#?}");
}

/// Types by name that this file defines, or has methods of, by the words before the name at the beginning of a line.
fn names_after<'a>(text: &'a str, beginnings: &[&str]) -> Vec<&'a str> {
    let name = |line: &'a str| {
        let rest = beginnings.iter().find_map(|beginning| line.strip_prefix(beginning))?;
        let rest = match rest.strip_prefix('<') {
            // An impl's parameters.
            Some(parameters) => parameters.split_once("> ")?.1,
            None => rest.trim_start(),
        };
        let is_of_trait = line.starts_with("impl") && rest.contains(" for ");
        let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
        (!is_of_trait && end > 0).then_some(&rest[..end])
    };
    text.lines().filter_map(name).collect()
}

#[test]
fn a_types_methods_are_in_at_most_two_files() {
    const DEFINITIONS: [&str; 6] =
        ["struct ", "enum ", "pub struct ", "pub enum ", "pub(super) struct ", "pub(super) enum "];
    let (mut of_files, mut definitions) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeMap::<_, usize>::new());
    let sources = sources();
    for (path, text) in &sources {
        for name in names_after(text, &["impl"]) {
            of_files.entry((module(path), name)).or_default().insert(path);
        }
        for name in names_after(text, &DEFINITIONS) {
            *definitions.entry((module(path), name)).or_default() += 1;
        }
    }
    assert!(of_files.len() > 300, "the methods are found: {}", of_files.len());
    // Several types of a module may have one name, each with methods beside it.
    of_files.retain(|name, files| files.len() > 1 + definitions.get(name).copied().unwrap_or(1));
    assert!(of_files.is_empty(), "{of_files:#?}");
}

/// An error that the shell does not know would end as exit code 1 in silence.
#[test]
fn every_error_with_a_kind_of_failure_reaches_its_exit_code() {
    let exit = std::fs::read_to_string(root().join("src/cli/exit.rs")).expect("text");
    let mut seen = 0;
    for (path, text) in sources() {
        for part in text.split("\nimpl ").skip(1) {
            let is_of_failure =
                part.split("\n}\n").next().is_some_and(|body| body.contains("pub fn failure(&self)"));
            let Some((name, _)) = part.split_once(" {").filter(|_| is_of_failure) else { continue };
            seen += 1;
            assert!(exit.contains(name), "{path}: src/cli/exit.rs does not know {name}");
        }
    }
    assert!(seen > 10, "the errors are found: {seen}");
}

/// docs/glossary.md has the words that took their place.
#[test]
fn words_that_went_do_not_come_back() {
    let gone = ["picture", "judge", "twin"];
    // What users' own files call an image, and what is in published files.
    let stays = ["\"picture", "\"pictures\"", "Barlow", "\"a twin of \""];
    let mut wrong = Vec::new();
    for folder in ["src", "docs", "jobs", "tests/integration", "tests/cluster", "benches"] {
        for entry in walkdir::WalkDir::new(root().join(folder)) {
            let path = entry.expect("readable").into_path();
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            if path.ends_with("architecture.rs") {
                continue;
            }
            for (number, line) in (1..).zip(text.lines()) {
                let lower = line.to_lowercase();
                let is_gone = gone.iter().any(|word| lower.contains(word));
                if is_gone && !stays.iter().any(|word| line.contains(word)) {
                    wrong.push(format!("{}:{number}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A child's imports from the modules above it are left out: Rust's modules have their common types there.
#[test]
fn no_circle_of_imports_has_more_than_three_files() {
    const LARGEST: usize = 3;
    let made_up = [
        ("src/a.rs", "use crate::b::{\n    c::{C, X as Y},\n    D,\n};"),
        ("src/b/mod.rs", "mod c;\npub use d::D;\n#[cfg(test)]\nmod tests {}"),
        ("src/b/c.rs", "use super::d;\nuse super::A;"),
        ("src/b/d.rs", "// use crate::e;\nfn d() -> crate::a::A { e() }"),
        ("src/e.rs", "use crate::a;"),
    ];
    let made_up: Vec<_> = made_up.map(|(path, text)| (path.to_owned(), text.to_owned())).into();
    let circle = BTreeSet::from(["a", "b::c", "b::d"].map(ToOwned::to_owned));
    assert_eq!(circles(&made_up), BTreeSet::from([circle]));
    let large: Vec<_> = circles(&sources()).into_iter().filter(|circle| circle.len() > LARGEST).collect();
    assert!(large.is_empty(), "{large:#?}");
}

/// The modules that import each other, directly or by way of others.
fn circles(sources: &[(String, String)]) -> BTreeSet<BTreeSet<String>> {
    let is_test = |path: &str| path.ends_with("tests.rs") || path.contains("/tests/");
    let sources = sources.iter().filter(|(path, _)| !is_test(path));
    let modules = Modules(sources.map(|(path, text)| (module_path(path), named_paths(text))).collect());
    let imports = modules.imports();
    let reached = |from: &String| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(module) = open.pop() {
            open.extend(imports[module].iter().filter(|imported| reached.insert((*imported).clone())));
        }
        reached
    };
    let reached: BTreeMap<_, BTreeSet<String>> =
        imports.keys().map(|module| (module, reached(module))).collect();
    let circle = |(module, others): (&&String, &BTreeSet<String>)| {
        others.iter().filter(|other| reached[other].contains(*module)).cloned().collect()
    };
    reached.iter().map(circle).filter(|circle: &BTreeSet<String>| !circle.is_empty()).collect()
}

/// `image::baseline` for `src/image/baseline/mod.rs`; nothing for `src/lib.rs`.
fn module_path(path: &str) -> String {
    let below = path.strip_prefix("src/").expect("a source").trim_end_matches(".rs");
    if below == "lib" { String::new() } else { below.trim_end_matches("/mod").replace('/', "::") }
}

/// A path that a module names, and whether `pub use` makes it the module's own.
type NamedPath = (String, bool);

/// The paths that code names, but for its tests.
fn named_paths(text: &str) -> Vec<NamedPath> {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let (mut paths, mut body, mut rest) = (Vec::new(), String::new(), code.as_str());
    while let Some((before, after)) = rest.split_once("use ") {
        let (tree, next) = after.split_once(';').unwrap_or((after, ""));
        let is_own = before.rsplit('\n').next().is_some_and(|line| line.trim_start().starts_with("pub"));
        let tree = tree.replace(" as ", "@").split_whitespace().collect::<String>();
        paths.extend(expanded(&tree).into_iter().map(|path| (path, is_own)));
        body += before;
        rest = next;
    }
    body += rest;
    let is_of_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    for (at, _) in body.match_indices("crate::").chain(body.match_indices("super::")) {
        if !body[..at].ends_with(is_of_path) {
            let path = body[at..].split(|c| !is_of_path(c)).next().unwrap_or_default();
            paths.push((path.trim_end_matches(':').to_owned(), false));
        }
    }
    paths
}

/// The paths of `a::{b, c::{d, e}}`, without the names that `@` gives them.
fn expanded(tree: &str) -> Vec<String> {
    let Some((prefix, inner)) = tree.split_once('{') else {
        return vec![tree.split('@').next().unwrap_or_default().to_owned()];
    };
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    for (at, letter) in inner.char_indices().chain([(inner.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                // Of a comma before a bracket, nothing.
                let paths_of_item = if start < at { expanded(&inner[start..at]) } else { Vec::new() };
                paths.extend(paths_of_item.iter().map(|path| format!("{prefix}{path}")));
                start = at + 1;
            }
            _ => {}
        }
    }
    paths
}

/// The modules of the library by their paths, with the paths that each names.
struct Modules(BTreeMap<String, Vec<NamedPath>>);

impl Modules {
    /// The modules that each imports from, but for those above it.
    fn imports(&self) -> BTreeMap<String, BTreeSet<String>> {
        let of_module = |module: &String, paths: &[NamedPath]| {
            let targets = paths.iter().filter_map(|(path, _)| self.find(module, path));
            let is_above = |target: &str| {
                target.is_empty() || target == module || module.starts_with(&format!("{target}::"))
            };
            targets.filter(|target| !is_above(target)).collect()
        };
        self.0.iter().map(|(module, paths)| (module.clone(), of_module(module, paths))).collect()
    }

    /// The module that has what a path names in `module`, also by way of `pub use`.
    fn find(&self, module: &str, path: &str) -> Option<String> {
        let mut words = path.split("::").peekable();
        let mut at = module.to_owned();
        let is_from_here = !["crate", "self", "super"].contains(words.peek()?);
        if words.next_if_eq(&"crate").is_some() {
            at.clear();
        }
        words.next_if_eq(&"self");
        while words.next_if_eq(&"super").is_some() {
            at = at.rsplit_once("::").map_or_else(String::new, |(above, _)| above.to_owned());
        }
        let child =
            |at: &str, word: &str| if at.is_empty() { word.to_owned() } else { format!("{at}::{word}") };
        while let Some(word) = words.next_if(|word| self.0.contains_key(&child(&at, word))) {
            at = child(&at, word);
        }
        if is_from_here && at == module {
            return None;
        }
        let name = words.next();
        let has_name = |(path, is_own): &&NamedPath| *is_own && path.rsplit("::").next() == name;
        let reexport = name.and_then(|_| self.0.get(&at)?.iter().find(has_name));
        let further = reexport.and_then(|(path, _)| self.find(&at, path));
        further.or_else(|| self.0.contains_key(&at).then_some(at))
    }
}
