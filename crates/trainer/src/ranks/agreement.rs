//! What must be the same on all ranks, and which of it is not.
//!
//! Ranks add up whatever the others send. If one has other settings, data or weights than the rest, a run would go on
//! and come to something that nobody asked for. So before the first step all compare themselves with the first rank,
//! by sums alone, whatever these travel over; and all fail, with the same words, if one of them differs.

use super::Place;
use crate::data::TrainData;
use crate::state::Progress;
use crate::{Error, Result, TrainConfig};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use zoo_ops::ranks::{Communicator, gather};

/// Hexadecimal digits of a digest that are shown.
const SHOWN: usize = 12;
/// Settings that are named in one message.
const NAMED: usize = 4;

/// What a fact is about, in the order in which the first difference is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum About {
    Version,
    Device,
    /// Whether the run is new.
    Start,
    /// The model and the data set, on which other settings depend.
    Subject,
    /// On which settings depend, too, that nobody has given.
    Weights,
    Setting,
    Data,
    /// Of a run that goes on.
    State,
}

impl About {
    /// What a rank does with it, twice if the second rank is to be said differently, and what all need.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Version => ("runs ", "", "the same version"),
            Self::Device => ("computes on ", "on ", "devices of one kind"),
            Self::Start => ("", "", "to do the same"),
            Self::Subject | Self::Setting => ("trains with ", "with ", "the same settings"),
            Self::Data => ("has ", "", "the same data"),
            Self::Weights => ("starts from ", "from ", "the same weights"),
            Self::State => ("goes on ", "", "the same state of the same run"),
        }
    }
}

/// Something that must be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fact {
    about: About,
    /// By which it is found among the other rank's.
    name: String,
    /// What is compared.
    value: String,
    /// How that is said.
    shown: String,
}

/// All of one rank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts(Vec<Fact>);

impl Facts {
    fn add(&mut self, about: About, name: &str, value: impl Into<String>, shown: impl Into<String>) {
        self.0.push(Fact { about, name: name.into(), value: value.into(), shown: shown.into() });
    }

    /// Of this program, and where it computes.
    pub(super) fn of_program(device: &Device) -> Self {
        let mut facts = Self::default();
        let version = concat!("zoo version ", env!("CARGO_PKG_VERSION"));
        facts.add(About::Version, "version", version, version);
        let kind = match device {
            Device::Cpu => "the CPU",
            Device::Cuda(_) => "a GPU of NVIDIA",
            Device::Metal(_) => "a GPU of Apple",
        };
        facts.add(About::Device, "device", kind, kind);
        facts
    }

    /// Of the settings, and of whether they are those of a run that goes on.
    pub(crate) fn of_settings(config: &TrainConfig, goes_on: bool) -> Self {
        let mut facts = Self::default();
        let start = if goes_on { "goes on with a run" } else { "starts a new run" };
        facts.add(About::Start, "start", start, start);
        for (key, value) in config.shared() {
            let about = match key.as_str() {
                "model" | "dataset" => About::Subject,
                _ => About::Setting,
            };
            facts.add(about, &key, &value, format!("{key} = {value}"));
        }
        facts
    }

    /// Adds those of the data.
    pub(crate) fn add_data(&mut self, data: &TrainData) {
        for (what, set) in [("training", &data.train), ("validation", &data.val)] {
            let images = format!("{} {what} images", set.len());
            self.add(About::Data, &format!("number of {what} images"), &images, &images);
        }
        for (i, class) in data.train.meta().classes.iter().enumerate() {
            self.add(About::Data, &format!("class {i}"), class, format!("{class:?} as class {i}"));
        }
        for (what, set) in [("training", &data.train), ("validation", &data.val)] {
            let digest = set.fingerprint();
            let shown = format!("{what} images of MD5 {}", shown(&digest));
            self.add(About::Data, &format!("MD5 of {what}"), digest, shown);
        }
    }

    /// Adds the weights that the run starts from, by their digest, if it does not start at random.
    pub(crate) fn add_weights(&mut self, digest: Option<&str>) {
        let said = match digest {
            Some(digest) => format!("weights of SHA-256 {}", shown(digest)),
            None => "random weights".into(),
        };
        self.add(About::Weights, "weights", digest.unwrap_or_default(), said);
    }

    /// Of a saved state, with a digest of its tensors; `None` if nothing has been saved.
    pub(crate) fn of_state(state: Option<(&Progress, &str)>) -> Self {
        let mut facts = Self::default();
        let step =
            state.map_or("from the start".into(), |(progress, _)| format!("after step {}", progress.step));
        facts.add(About::State, "step", &step, &step);
        if let Some((progress, digest)) = state {
            facts.add(About::State, "digest", digest, format!("with a state of SHA-256 {}", shown(digest)));
            // No other run has taken exactly as long.
            let shown = format!("after {} s of training", progress.elapsed_s);
            facts.add(About::State, "progress", progress.to_toml(), shown);
        }
        facts
    }

    /// How this rank differs from the first, if it does. Where only one of them has a fact, that is a difference if
    /// both have `all` of theirs.
    fn difference(&self, rank: usize, first: &Self, all: bool) -> Option<String> {
        let find = |facts: &Self, name: &str| facts.0.iter().find(|fact| fact.name == name).cloned();
        let absent = |fact: &Fact| Fact {
            value: String::new(),
            shown: match fact.about {
                About::Data => format!("no {}", fact.name),
                _ => format!("{} not set", fact.name),
            },
            ..fact.clone()
        };
        let mut differ: Vec<(Fact, Fact)> = Vec::new();
        for own in &self.0 {
            match find(first, &own.name) {
                Some(theirs) if own.value != theirs.value => differ.push((own.clone(), theirs)),
                None if all => differ.push((own.clone(), absent(own))),
                _ => {}
            }
        }
        let only_first = first.0.iter().filter(|theirs| all && find(self, &theirs.name).is_none());
        differ.extend(only_first.map(|theirs| (absent(theirs), theirs.clone())));
        let about = differ.iter().map(|(own, _)| own.about).min_by_key(|about| *about as usize)?;
        differ.retain(|(own, _)| own.about == about);
        differ.truncate(if about == About::Setting { NAMED } else { 1 });
        let (own, theirs): (Vec<_>, Vec<_>) =
            differ.into_iter().map(|(own, theirs)| (own.shown, theirs.shown)).unzip();
        let (verb, again, needed) = about.words();
        let (own, theirs) = (own.join(" and "), theirs.join(" and "));
        Some(format!("rank {rank} {verb}{own}, rank 0 {again}{theirs}; all ranks need {needed}"))
    }
}

fn shown(digest: &str) -> &str {
    digest.get(..SHOWN).unwrap_or(digest)
}

impl Place {
    /// Compares settings with those of the other ranks, as far as each has them: what depends on the data is filled in
    /// later. [`crate::Trainer`] compares all settings, and the data; this says what is wrong before data are read,
    /// which may take long. `goes_on` is whether they are those of a run that goes on.
    ///
    /// # Errors
    /// On all ranks, if one of them differs; it is named.
    pub fn compare_settings(&self, config: &TrainConfig, goes_on: bool) -> Result<()> {
        agree(&*self.ranks, &Facts::of_settings(config, goes_on), false)
    }

    /// Compares facts with those of the other ranks.
    pub(crate) fn agree(&self, facts: &Facts) -> Result<()> {
        agree(&*self.ranks, facts, true)
    }
}

/// Compares facts with those of the first rank, on all ranks at once.
///
/// # Errors
/// On all ranks, with the same words, if one of them differs.
pub(super) fn agree(ranks: &dyn Communicator, facts: &Facts, all: bool) -> Result<()> {
    let (rank, size) = (ranks.rank(), ranks.size());
    if size == 1 {
        return Ok(());
    }
    let own = serde_json::to_vec(facts).map_err(|error| Error::Ranks(error.to_string()))?;
    let theirs = tell(ranks, 0, &own)?;
    let difference = match serde_json::from_slice::<Facts>(&theirs) {
        Ok(first) => facts.difference(rank, &first, all),
        // A version that says other things.
        Err(_) => Some(format!(
            "rank {rank} of {size} runs another version of zoo than rank 0; all ranks need the same version"
        )),
    };
    let differs = Tensor::new(&[f64::from(u8::from(difference.is_some()))], &Device::Cpu)?;
    let differs = gather(ranks, &differs)?.flatten_all()?.to_vec1::<f64>()?;
    let Some(speaker) = differs.iter().position(|&differs| differs != 0.0) else { return Ok(()) };
    let message = tell(ranks, speaker, difference.unwrap_or_default().as_bytes())?;
    Err(Error::Ranks(String::from_utf8_lossy(&message).into_owned()))
}

/// What one rank says, on all of them: its bytes and the others' zeros are added up.
fn tell(ranks: &dyn Communicator, speaker: usize, own: &[u8]) -> candle_core::Result<Vec<u8>> {
    let speaks = ranks.rank() == speaker;
    let length = if speaks { own.len() as f64 } else { 0.0 };
    let length = ranks.sum(&Tensor::new(&[length], &Device::Cpu)?)?.to_vec1::<f64>()?[0] as usize;
    let bytes = match speaks {
        true => own.iter().map(|&byte| f32::from(byte)).collect(),
        false => vec![0f32; length],
    };
    let bytes = ranks.sum(&Tensor::new(bytes, &Device::Cpu)?)?.to_vec1::<f32>()?;
    Ok(bytes.into_iter().map(|byte| byte as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::super::meeting::tests::{free_port, membership};
    use super::super::tcp::Tcp;
    use super::*;
    use std::time::Duration;

    fn settings(change: impl FnOnce(&mut TrainConfig)) -> Facts {
        let mut config = TrainConfig { model: "lenet5".into(), ..TrainConfig::default() };
        change(&mut config);
        Facts::of_settings(&config, false)
    }

    /// What each of as many ranks is told.
    fn told(facts: &[Facts], all: bool) -> Vec<std::result::Result<(), String>> {
        let port = free_port();
        let rank = |rank: usize, facts: &Facts| {
            let tcp = Tcp::connect(&membership(rank, 3, port), Duration::from_secs(20)).unwrap();
            agree(&tcp, facts, all).map_err(|error| error.to_string())
        };
        std::thread::scope(|scope| {
            let rank = &rank;
            let ranks: Vec<_> =
                facts.iter().enumerate().map(|(r, facts)| scope.spawn(move || rank(r, facts))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn one_that_differs_is_named_on_all() {
        let same = settings(|_| {});
        assert_eq!(told(&[same.clone(), same.clone(), same.clone()], true), [Ok(()), Ok(()), Ok(())]);
        let other = settings(|config| config.lr = 0.5);
        let expected =
            "rank 2 trains with lr = 0.5, rank 0 with lr = 0.1; all ranks need the same settings".to_string();
        assert_eq!(told(&[same.clone(), same.clone(), other.clone()], true), vec![Err(expected.clone()); 3]);
        // The first of two, and that all but the first rank agree does not matter.
        let expected = expected.replace("rank 2", "rank 1");
        assert_eq!(told(&[same, other.clone(), other], true), vec![Err(expected.clone()); 3]);
    }

    #[test]
    fn what_is_measured_is_as_the_first_has_it() {
        let port = free_port();
        let rank = |rank: usize| {
            let tcp = Tcp::connect(&membership(rank, 3, port), Duration::from_secs(20)).unwrap();
            let place = Place { device: Device::Cpu, ranks: std::sync::Arc::new(tcp) };
            place.of_first(0.1 + rank as f64 * 1e-9).unwrap()
        };
        let numbers: Vec<f64> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..3).map(|r| scope.spawn(move || rank(r))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert_eq!(numbers, [0.1; 3]);
    }

    #[test]
    fn what_differs_is_said() {
        let first = settings(|_| {});
        let said = |change: fn(&mut TrainConfig)| settings(change).difference(1, &first, true);
        let needed = "all ranks need the same settings";
        assert_eq!(
            said(|config| (config.model, config.lr) = ("mlp".into(), 0.5)).unwrap(),
            format!("rank 1 trains with model = \"mlp\", rank 0 with model = \"lenet5\"; {needed}")
        );
        assert_eq!(
            said(|config| (config.seed, config.epochs) = (9, 3)).unwrap(),
            format!(
                "rank 1 trains with epochs = 3 and seed = 9, rank 0 with epochs = 10 and seed = 0; {needed}"
            )
        );
        assert_eq!(
            said(|config| config.dropout = Some(0.5)).unwrap(),
            format!("rank 1 trains with dropout = 0.5, rank 0 with dropout not set; {needed}")
        );
        // What the machines may have for themselves.
        let own = said(|config| {
            (config.data_dir, config.weights) = (Some("/data".into()), Some("a.pth".into()));
            (config.threads, config.log_every, config.save_every) = (Some(3), 5, 7);
        });
        assert_eq!(own, None);
        // Before the data are read, some know more than others.
        let more = settings(|config| (config.dropout, config.lr) = (Some(0.5), 0.5));
        assert!(!more.difference(1, &first, false).unwrap().contains("dropout"));
        assert_eq!(settings(|config| config.num_classes = Some(10)).difference(1, &first, false), None);

        let program = |device: &str, version: &str| {
            let mut facts = Facts::of_program(&Device::Cpu);
            for (fact, value) in facts.0.iter_mut().zip([version, device]) {
                (fact.value, fact.shown) = (value.into(), value.into());
            }
            facts
        };
        let (cpu, gpu) = (program("the CPU", "zoo 0.1.0"), program("a GPU of NVIDIA", "zoo 0.1.0"));
        assert_eq!(
            gpu.difference(1, &cpu, true).unwrap(),
            "rank 1 computes on a GPU of NVIDIA, rank 0 on the CPU; all ranks need devices of one kind"
        );
        assert_eq!(
            program("a GPU of NVIDIA", "zoo 0.2.0").difference(1, &cpu, true).unwrap(),
            "rank 1 runs zoo 0.2.0, rank 0 zoo 0.1.0; all ranks need the same version"
        );
    }
}
