//! The layers of bcache-core use only those above them (docs/design.md).

use std::fs;
use std::path::{Path, PathBuf};

/// Each layer may use the ones before it.
const LAYERS: [&str; 8] =
    ["units", "checksum", "layout", "device", "cache_set", "allocator", "model", "ops"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// The code without comments and without what is compiled for tests only.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn layer_of(path: &Path, src: &Path) -> Option<usize> {
    let first = path.strip_prefix(src).ok()?.components().next()?;
    let name = first.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
    LAYERS.iter().position(|layer| *layer == name)
}

/// The layers that `code` names, be it as `crate::layer` or inside `crate::{...}`.
fn uses(code: &str) -> Vec<usize> {
    let groups: Vec<&str> =
        code.split("crate::{").skip(1).filter_map(|rest| rest.split(';').next()).collect();
    LAYERS
        .iter()
        .enumerate()
        .filter(|(_, layer)| {
            code.contains(&format!("crate::{layer}"))
                || groups.iter().any(|group| {
                    group
                        .split([',', '{', '}', ' ', '\n'])
                        .any(|word| word == **layer || word.starts_with(&format!("{layer}::")))
                })
        })
        .map(|(index, _)| index)
        .collect()
}

#[test]
fn arrows_point_upwards() {
    let src = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/bcache-core/src"));
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut seen = [false; LAYERS.len()];
    for file in &files {
        let Some(layer) = layer_of(file, &src) else { continue };
        seen[layer] = true;
        // Devices for tests may look at anything.
        if file.components().any(|it| it.as_os_str() == "testkit") {
            continue;
        }
        for used in uses(&code(&fs::read_to_string(file).unwrap())) {
            if used > layer {
                wrong.push(format!("{} ({}) uses {}", file.display(), LAYERS[layer], LAYERS[used]));
            }
        }
    }
    assert!(seen.iter().all(|it| *it), "a layer has no source: {LAYERS:?} {seen:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_arrow_would_be_seen() {
    assert_eq!(uses("use crate::ops::make;"), [7]);
    assert_eq!(uses("use crate::{units::Gen, cache_set::CacheSet};"), [0, 4]);
    assert!(uses(&code("/// see crate::ops\nfn f() {}\n#[cfg(test)]\nuse crate::ops;")).is_empty());
}
