//! Finds the families of models, so that adding one is adding its two files: each `src/models/<family>.rs`, with
//! the facts in `models/<family>.toml` at the root of the repository, becomes a module and a row of the registry.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let (sources, facts) = (package.join("src/models"), package.join("../../models"));
    let (mut modules, mut rows) = (String::new(), String::new());
    let mut families: Vec<_> =
        fs::read_dir(&sources)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    families.sort();
    for source in families {
        let Some(family) = source.file_stem().and_then(|stem| stem.to_str()).filter(|stem| *stem != "mod")
        else {
            continue;
        };
        let facts = facts.join(format!("{family}.toml"));
        if !facts.is_file() {
            let missing = format!("the facts of {} are missing: {}", source.display(), facts.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, missing));
        }
        let (source, facts) = (literal(&source), literal(&facts));
        let _ = writeln!(modules, "#[path = {source}]\npub(crate) mod {family};");
        let _ = writeln!(
            rows,
            "    Family {{ name: {family:?}, specs: crate::models::{family}::specs, facts: include_str!({facts}) }},"
        );
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(out.join("modules.rs"), modules)?;
    fs::write(out.join("families.rs"), format!("&[\n{rows}]\n"))?;
    // A folder counts as changed when a file in it comes or goes.
    for watched in [sources.as_path(), Path::new("../../models"), Path::new("build.rs")] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    Ok(())
}

/// A path as a Rust string.
fn literal(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
