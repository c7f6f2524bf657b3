//! The invariants of ARCHITECTURE.md that the compiler does not hold: which way dependencies point, and what
//! is absent where.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each package of the workspace, and the packages of the workspace that it may depend on.
const MAY_DEPEND_ON: [(&str, &[&str]); 5] = [
    ("zoo-cli", &["zoo-trainer", "zoo-data", "zoo", "zoo-ops"]),
    ("zoo-trainer", &["zoo-data", "zoo", "zoo-ops"]),
    ("zoo-data", &["zoo-ops"]),
    ("zoo", &["zoo-ops"]),
    ("zoo-ops", &[]),
];

/// Crates that one package alone may use: arguments, untyped errors and bars are the command's business,
/// kernels that of the operators.
const ONLY_IN: [(&str, &str); 3] = [("clap", "zoo-cli"), ("anyhow", "zoo-cli"), ("indicatif", "zoo-cli")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The manifest of each package by its name.
fn manifests() -> BTreeMap<String, toml::Table> {
    let folders = fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let manifest = |folder: PathBuf| -> Option<(String, toml::Table)> {
        let table: toml::Table = fs::read_to_string(folder.join("Cargo.toml")).ok()?.parse().unwrap();
        Some((table["package"]["name"].as_str()?.to_string(), table))
    };
    folders.chain([root()]).filter_map(manifest).collect()
}

/// Names of the dependencies of a package on any platform, those of its tests only if asked for.
fn dependencies(manifest: &toml::Table, with_tests: bool) -> Vec<String> {
    let platforms = manifest.get("target").and_then(toml::Value::as_table);
    let platforms = platforms.into_iter().flat_map(|all| all.values().filter_map(toml::Value::as_table));
    let counts = |key: &str| match key {
        "dependencies" | "build-dependencies" => true,
        "dev-dependencies" => with_tests,
        _ => false,
    };
    let mut names = Vec::new();
    for table in platforms.chain([manifest]) {
        for (_, dependencies) in table.iter().filter(|(key, _)| counts(key)) {
            names.extend(dependencies.as_table().unwrap().keys().cloned());
        }
    }
    names
}

/// Every Rust source below a folder, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn collect(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// Whether a line has a word outside of comments and strings that end on it.
fn uses(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let code: String = code.split('"').step_by(2).collect();
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(in_word) && !code[at + word.len()..].starts_with(in_word))
}

#[test]
fn dependencies_point_one_way() {
    let manifests = manifests();
    assert_eq!(manifests.len(), MAY_DEPEND_ON.len(), "{:?}", manifests.keys());
    for (name, allowed) in MAY_DEPEND_ON {
        for dependency in dependencies(&manifests[name], true) {
            let inside = manifests.contains_key(&dependency);
            assert!(
                !inside || allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn some_crates_are_used_in_one_place_only() {
    let mut seen = 0;
    for (name, manifest) in manifests() {
        for dependency in dependencies(&manifest, false) {
            if let Some((_, owner)) = ONLY_IN.iter().find(|(only, _)| *only == dependency) {
                assert_eq!(&name, owner, "{dependency} belongs to {owner}, not to {name}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, ONLY_IN.len());
}

/// The crates that talk to a network are there with the feature `hub` only, and each in one file. What connects the
/// processes of a run is in files of its own.
#[test]
fn network_code_is_behind_the_feature_hub() {
    let manifests = manifests();
    for (crate_name, package) in [("hf-hub", "zoo-data"), ("reqwest", "zoo")] {
        for (name, manifest) in &manifests {
            let dependency = manifest["dependencies"].get(crate_name);
            assert_eq!(
                dependency.is_some(),
                name == package,
                "{crate_name} belongs to {package}, not to {name}"
            );
            if let Some(dependency) = dependency {
                assert_eq!(dependency["optional"].as_bool(), Some(true), "{crate_name} must be optional");
                let feature = manifest["features"]["hub"].as_array().unwrap();
                assert!(feature.iter().any(|part| part.as_str() == Some(&format!("dep:{crate_name}"))));
            }
        }
    }
    let mut seen = 0;
    for (path, text) in sources("crates") {
        if path.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        let talks = |line: &&str| {
            ["hf_hub", "reqwest", "TcpStream", "TcpListener", "UdpSocket"].iter().any(|word| uses(line, word))
        };
        let count = text.lines().filter(talks).count();
        if path.ends_with("data/src/hub.rs") || path.ends_with("weights/published/download.rs") {
            seen += count;
        } else if path.ancestors().any(|folder| folder.ends_with("trainer/src/ranks"))
            || path.ends_with("cli/launch.rs")
        {
            // Between the processes of a run.
        } else {
            assert_eq!(count, 0, "{} has network code", path.display());
        }
    }
    assert!(seen > 1, "the search finds nothing where there is something");
}

#[test]
fn unsafe_code_is_in_the_operators_only() {
    let mut in_operators = 0;
    for (path, text) in sources("crates").into_iter().chain(sources("tests")) {
        let count = text.lines().filter(|line| uses(line, "unsafe")).count();
        if path.starts_with(root().join("crates/ops")) {
            in_operators += count;
        } else {
            assert_eq!(count, 0, "{} has unsafe code", path.display());
        }
    }
    assert!(in_operators > 0, "the search finds nothing where there is something");
    for (name, manifest) in manifests() {
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{name} does not use the lints");
        if name == "zoo-cli" {
            assert_eq!(manifest["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("deny"));
        }
    }
}

/// A network is a table of layers: where it is computed, and how maps are stored, is decided below it.
#[test]
fn models_know_neither_devices_nor_layout() {
    for (path, text) in sources("crates/zoo/src/models") {
        for line in text.lines() {
            // What has no arguments is an option's, and no tensor's.
            let line = line.replace(".transpose()", "");
            for word in ["Device", "permute", "transpose"] {
                assert!(!uses(&line, word), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn only_the_printer_writes_to_stdout() {
    let mut seen = 0;
    for (path, text) in sources("crates") {
        // Tests, examples and build scripts are programs of their own.
        if path
            .components()
            .any(|part| ["tests", "examples", "build.rs"].iter().any(|of| part.as_os_str() == *of))
        {
            continue;
        }
        // Where the output of another process goes is not a way to write.
        let writes = |line: &&str| {
            !line.contains("Stdio::") && ["println", "print", "stdout"].iter().any(|word| uses(line, word))
        };
        // A doc comment's example is the reader's program.
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let count = lines.filter(writes).count();
        if path.ends_with("crates/cli/printer.rs") {
            seen += count;
        } else {
            assert_eq!(count, 0, "{} writes to stdout", path.display());
        }
    }
    assert!(seen > 0, "the search finds nothing where there is something");
}
