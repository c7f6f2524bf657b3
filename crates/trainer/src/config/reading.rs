//! Settings in TOML, and how those of one place go before those of another.

use super::TrainConfig;
use crate::{Error, Result, fine_tuning, recipes};
use std::path::Path;

/// Settings that another one leaves without meaning where it is given later: weights come from one place, and a
/// size before the crop belongs to a size of the crop.
const REPLACES: [(&str, &str); 3] =
    [("weights", "pretrained"), ("pretrained", "weights"), ("image_size", "resize")];

impl TrainConfig {
    /// The settings of a new run: `flags` before `recipe` before the recipe that comes with the model and data
    /// set before the defaults. Keys are the fields of this type; `flags` needs `model` unless `recipe` has it.
    ///
    /// Where the run starts from weights, how it is optimised comes from `flags` and `recipe` alone: what suits random
    /// initial values ruins trained ones. What they leave out is in [`TrainConfig::undecided`].
    ///
    /// # Errors
    /// Names the key that is unknown, missing, of the wrong type or out of range.
    pub fn resolve(recipe: Option<&Path>, flags: &toml::Table) -> Result<Self> {
        let recipe = recipe.map(read_table).transpose()?.unwrap_or_default();
        check_keys(flags, "the command line")?;
        let text = |key: &str| flags.get(key).or_else(|| recipe.get(key)).and_then(toml::Value::as_str);
        let Some(model) = text("model") else {
            return Err(Error::config("model", "not given; `zoo list` shows all models"));
        };
        let family = zoo::find(model)?.family;
        let default_dataset = Self::default().dataset;
        let dataset = text("dataset").unwrap_or(&default_dataset);
        let mut table = recipes::defaults(family, model, dataset)?;
        let given = |key: &str| flags.contains_key(key) || recipe.contains_key(key);
        let mut undecided = Vec::new();
        if given("weights") || given("pretrained") {
            undecided.extend(fine_tuning::KEYS.into_iter().filter(|key| !given(key)));
            table.retain(|key, _| !fine_tuning::KEYS.contains(&key));
        }
        for upper in [&recipe, flags] {
            scale_warmup(&mut table, upper);
            for (given, replaced) in REPLACES {
                if upper.contains_key(given) {
                    table.remove(replaced);
                }
            }
            table.extend(upper.clone());
        }
        Ok(Self { undecided, ..Self::from_table(table, "settings")? })
    }

    /// Reads settings in TOML; `origin` names the text in errors.
    ///
    /// # Errors
    /// Names the key that is unknown, of the wrong type or out of range.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        Self::from_table(parse_table(text, origin)?, origin)
    }

    fn from_table(table: toml::Table, origin: &str) -> Result<Self> {
        let config = unchecked(table, origin)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads a `config.toml` or a whole recipe.
    ///
    /// # Errors
    /// If the file cannot be read, and as [`TrainConfig::from_toml`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_table(read_table(path)?, &path.display().to_string())
    }

    /// The settings in TOML, from which [`TrainConfig::from_toml`] makes the same settings.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("scalars and arrays of scalars always have a TOML form")
    }
}

/// Keeps the share of the run that is warm-up where `upper` changes the number of epochs only.
fn scale_warmup(table: &mut toml::Table, upper: &toml::Table) {
    let number = |value: &toml::Value| value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
    let in_upper = |key: &str| upper.get(key).and_then(number);
    let (Some(epochs), None) = (in_upper("epochs"), in_upper("warmup_epochs")) else { return };
    let defaults = TrainConfig::default();
    let below = |key: &str, default: f64| table.get(key).and_then(number).unwrap_or(default);
    let (of, warmup) =
        (below("epochs", defaults.epochs as f64), below("warmup_epochs", defaults.warmup_epochs));
    if of > 0.0 {
        table.insert("warmup_epochs".into(), (warmup * epochs / of).into());
    }
}

/// Parses TOML; an error is one line with the place.
pub(crate) fn parse_table(text: &str, origin: &str) -> Result<toml::Table> {
    text.parse::<toml::Table>().map_err(|error| {
        let line =
            error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Error::Recipe {
            origin: origin.into(),
            problem: format!("line {line}: {}", one_line(error.message())),
        }
    })
}

fn read_table(path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let origin = path.display().to_string();
    let table = parse_table(&text, &origin)?;
    check_keys(&table, &origin)?;
    Ok(table)
}

/// That a part of the settings has known keys with values of the right types.
fn check_keys(table: &toml::Table, origin: &str) -> Result<()> {
    unchecked(table.clone(), origin).map(drop)
}

fn unchecked(table: toml::Table, origin: &str) -> Result<TrainConfig> {
    // One key at a time, because the error of a whole table does not say which key has the wrong type.
    for (key, value) in &table {
        let single = toml::Table::from_iter([(key.clone(), value.clone())]);
        if let Err(error) = single.try_into::<TrainConfig>() {
            let message = one_line(error.message());
            let problem =
                if message.contains(&format!("`{key}`")) { message } else { format!("{key}: {message}") };
            return Err(Error::Recipe { origin: origin.into(), problem });
        }
    }
    table.try_into().map_err(|error: toml::de::Error| Error::Recipe {
        origin: origin.into(),
        problem: one_line(error.message()),
    })
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
