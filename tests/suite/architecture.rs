//! What holds the shape of the source together (docs/design.md): the layers of bcache-core use only
//! those above them, its modules do not import one another in circles, and nothing cites a document
//! that does not ship.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer may use the ones before it.
const LAYERS: [&str; 11] = [
    "units",
    "checksum",
    "layout",
    "device",
    "cache_set",
    "inspect",
    "allocator",
    "running",
    "model",
    "ops",
    "fuzz",
];

/// Layers that are there from the beginning.
const LAYERS_SURE: [&str; 8] =
    ["units", "checksum", "layout", "device", "cache_set", "allocator", "running", "ops"];

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn core() -> PathBuf {
    root().join("crates/bcache-core/src")
}

/// All files below `folder`, without what is built or downloaded.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && !path.is_symlink() {
            if !name.starts_with("target") && (!name.starts_with('.') || name == ".ci") {
                files(&path, found);
            }
        } else if path.is_file() {
            found.push(path);
        }
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(folder, &mut found);
    found.retain(|path| path.extension().is_some_and(|it| it == "rs"));
    found.sort();
    found
}

/// The code without comments and without the items that are compiled for tests only. What stands
/// behind those items counts.
fn code(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    while let Some(line) = lines.next() {
        let start = line.trim_start();
        if !start.starts_with("#[cfg(test)]") && !start.starts_with("#[cfg(all(test") {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let (_, rest) = line.split_once(']').unwrap_or_default();
        let mut depth = 0usize;
        let mut ended = ends(rest, &mut depth);
        while !ended {
            let Some(line) = lines.next() else { break };
            ended = ends(line, &mut depth);
        }
    }
    kept
}

/// Whether an item that is open by `depth` braces ends in this line.
fn ends(line: &str, depth: &mut usize) -> bool {
    for character in line.chars() {
        match character {
            '{' => *depth += 1,
            '}' => {
                *depth = depth.saturating_sub(1);
                if *depth == 0 {
                    return true;
                }
            }
            ';' if *depth == 0 => return true,
            _ => {}
        }
    }
    false
}

/// The paths that `code` uses from this crate, written from its root, for code in `module`.
fn paths(code: &str, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (index, _) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        let before = code[..index].chars().next_back();
        if before.is_some_and(|it| it.is_alphanumeric() || it == '_' || it == ':' || it == '$') {
            continue;
        }
        let mut rest = &code[index..];
        let mut base: Vec<String> = Vec::new();
        if let Some(after) = rest.strip_prefix("crate::") {
            rest = after;
        } else {
            base = module.to_vec();
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
        }
        expand(rest, base, &mut found);
    }
    found
}

/// Adds all paths of a tree such as `a::{b, c::D}`; returns what stands behind it.
fn expand<'t>(tree: &'t str, mut base: Vec<String>, found: &mut BTreeSet<Vec<String>>) -> &'t str {
    let mut rest = tree.trim_start();
    loop {
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                rest = expand(rest, base.clone(), found).trim_start();
                match rest.chars().next() {
                    Some(',') => rest = rest[1..].trim_start(),
                    Some('}') => return &rest[1..],
                    _ => return rest,
                }
                if let Some(behind) = rest.strip_prefix('}') {
                    return behind;
                }
            }
        }
        let end = rest.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        if !name.is_empty() && name != "self" {
            base.push(name.to_owned());
        }
        let Some(after) = behind.strip_prefix("::") else {
            found.insert(base);
            return behind;
        };
        rest = after;
    }
}

/// A module by the names that lead to it.
fn module_of(file: &Path, src: &Path) -> Vec<String> {
    let relative = file.strip_prefix(src).unwrap().with_extension("");
    let mut names: Vec<String> =
        relative.components().map(|it| it.as_os_str().to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|last| last == "mod" || last == "lib") {
        names.pop();
    }
    names
}

/// The modules of a crate: what each one is, and the code in it.
struct Modules(BTreeMap<Vec<String>, String>);

impl Modules {
    fn read(src: &Path) -> Self {
        let read =
            |file: &PathBuf| (module_of(file, src), code(&fs::read_to_string(file).unwrap()));
        Self(sources(src).iter().map(read).collect())
    }

    /// The module that a path leads to, through the names that a module passes on from others.
    fn target(&self, path: &[String]) -> Option<Vec<String>> {
        let mut known = path.to_vec();
        while !self.0.contains_key(&known) {
            known.pop()?;
        }
        let name = path.get(known.len())?;
        let passed = paths_of_uses(&self.0[&known], &known);
        let from = passed.into_iter().find(|it| it.last() == Some(name) && it.len() > known.len());
        match from {
            Some(from) if from != path => self.target(&from).or(Some(known)),
            _ => Some(known),
        }
    }

    /// What each module imports: not what is in it, and not what it is in, for a module's file that
    /// declares its parts belongs to them.
    fn imports(&self) -> BTreeMap<&[String], BTreeSet<Vec<String>>> {
        let imports = |module: &Vec<String>, code: &str| {
            let targets = paths(code, module).into_iter().filter_map(|path| self.target(&path));
            targets.filter(|to| !to.starts_with(module) && !module.starts_with(to)).collect()
        };
        self.0.iter().map(|(module, code)| (module.as_slice(), imports(module, code))).collect()
    }

    /// Groups of modules each of which imports all others, directly or through them.
    fn circles(&self) -> BTreeSet<Vec<String>> {
        let imports = self.imports();
        let reach = |from: &[String]| {
            let mut reached: BTreeSet<Vec<String>> = BTreeSet::new();
            let mut next: Vec<Vec<String>> = imports[from].iter().cloned().collect();
            while let Some(module) = next.pop() {
                if reached.insert(module.clone()) {
                    next.extend(imports[module.as_slice()].iter().cloned());
                }
            }
            reached
        };
        let reached: BTreeMap<&[String], BTreeSet<Vec<String>>> =
            imports.keys().map(|module| (*module, reach(module))).collect();
        let circle = |module: &[String]| {
            let back = |other: &&Vec<String>| reached[other.as_slice()].contains(module);
            let mut circle: Vec<String> =
                reached[module].iter().filter(back).map(|it| it.join("::")).collect();
            circle.sort();
            circle
        };
        reached.keys().map(|module| circle(module)).filter(|circle| circle.len() > 1).collect()
    }
}

/// The paths of `use` declarations that other modules may use, relative ones made absolute.
fn paths_of_uses(code: &str, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (index, _) in code.match_indices("pub") {
        let Some((declaration, _)) = code[index..].split_once(';') else { continue };
        let Some((head, tree)) = declaration.split_once("use ") else { continue };
        if head.contains(['{', '=', '\n']) {
            continue;
        }
        for (prefix, base) in [("crate::", &[][..]), ("self::", module), ("", module)] {
            if let Some(tree) = tree.strip_prefix(prefix) {
                expand(tree, base.to_vec(), &mut found);
                break;
            }
        }
    }
    found
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == name)
}

/// The layers that `code` names.
fn uses(code: &str) -> BTreeSet<usize> {
    let inside = ["layer".to_owned(), "module".to_owned(), "part".to_owned()];
    paths(code, &inside).iter().filter_map(|path| layer(path.first()?)).collect()
}

#[test]
fn arrows_point_upwards() {
    let modules = Modules::read(&core());
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (module, code) in &modules.0 {
        let Some(of) = module.first().and_then(|first| layer(first)) else { continue };
        seen.insert(of);
        // Devices and sets for tests may look at anything.
        if module.iter().any(|name| name == "testkit") {
            continue;
        }
        for used in uses(code).into_iter().filter(|used| *used > of) {
            wrong.push(format!("{} uses {}", module.join("::"), LAYERS[used]));
        }
    }
    let missing: Vec<&str> = LAYERS_SURE
        .into_iter()
        .filter(|name| layer(name).is_none_or(|layer| !seen.contains(&layer)))
        .collect();
    assert!(missing.is_empty(), "layers without a source: {missing:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_do_not_import_one_another_in_circles() {
    let modules = Modules::read(&core());
    let found = modules.circles();
    assert!(found.is_empty(), "these import one another: {found:#?}");
}

#[test]
fn nothing_cites_a_document_that_does_not_ship() {
    // Spelled apart, so that this file does not name them.
    let names: Vec<String> = ["FORMAT", "REBUILD", "ONLINE", "TRACES", "REVIEW", "PEERS", "STYLE"]
        .iter()
        .map(|name| format!("{name}.md"))
        .collect();
    let mut all = Vec::new();
    files(&root(), &mut all);
    let mut cited = Vec::new();
    for file in &all {
        let Ok(text) = fs::read_to_string(file) else { continue };
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(name) = names.iter().find(|name| line.contains(name.as_str())) {
                cited.push(format!("{}:{number}: {name}", file.display()));
            }
        }
    }
    assert!(cited.is_empty(), "cite docs/on-disk-format.md instead:\n{}", cited.join("\n"));
}

#[test]
fn a_wrong_arrow_would_be_seen() {
    let named = |text: &str| -> Vec<&str> {
        uses(&code(text)).into_iter().map(|layer| LAYERS[layer]).collect()
    };
    assert_eq!(named("use crate::ops::make;"), ["ops"]);
    assert_eq!(
        named("use crate::{units::Gen, cache_set::{self, CacheSet}};"),
        ["units", "cache_set"]
    );
    assert_eq!(named("fn f() { crate::device::open() }"), ["device"]);
    assert!(named("/// see crate::ops\nfn f() {}\n#[cfg(test)]\nuse crate::ops;").is_empty());
    assert!(
        named("#[cfg(test)]\nmod tests {\n    fn f() { {} }\n    use crate::ops;\n}\n").is_empty()
    );
    assert_eq!(named("#[cfg(test)]\nmod tests {\n}\nuse crate::ops;\n"), ["ops"]);
    assert_eq!(named("#[cfg(test)]\nmod tests;\nuse crate::ops;\n"), ["ops"]);
}

#[test]
fn a_circle_would_be_seen() {
    let modules = |files: &[(&str, &str)]| {
        let module = |name: &str| -> Vec<String> {
            name.split("::").filter(|it| !it.is_empty()).map(str::to_owned).collect()
        };
        Modules(files.iter().map(|(name, text)| (module(name), code(text))).collect())
    };
    let circles = |files: &[(&str, &str)]| modules(files).circles();
    let circle = BTreeSet::from([vec!["a::b".to_owned(), "a::c".to_owned()]]);
    let outside = [("", ""), ("a", "mod b;\nmod c;\npub use b::B;\npub use c::{C, D};")];
    let with = |b, c| [outside[0], outside[1], ("a::b", b), ("a::c", c)];
    assert_eq!(circles(&with("use super::c::C;", "use crate::a::b::B;")), circle);
    // Through what the module that holds both passes on.
    assert_eq!(circles(&with("use super::{C, D};", "use crate::a::B;")), circle);
    assert!(circles(&with("use super::c::C;", "fn f() {}")).is_empty());
    assert!(circles(&with("use super::c::C;", "#[cfg(test)]\nuse super::b::B;")).is_empty());
}

/// The library says what is; the commands and their options are the binaries' to name.
#[test]
fn core_names_no_command() {
    let mut all = Vec::new();
    files(&core(), &mut all);
    let mut named = Vec::new();
    for file in all.iter().filter(|file| file.extension().is_some_and(|it| it == "rs")) {
        let text = fs::read_to_string(file).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            let words = line.trim_start();
            if !words.starts_with("//") && (words.contains("bcachectl") || words.contains(" --")) {
                named.push(format!("{}:{number}: {words}", file.display()));
            }
        }
    }
    assert!(named.is_empty(), "{}", named.join("\n"));
}
