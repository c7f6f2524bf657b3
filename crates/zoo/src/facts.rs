//! What is known about each model beyond its code: where it comes from, its size, the accuracy that its authors
//! report, and the weights that are published for it. It lies in `models/<family>.toml`, which is compiled in.

use crate::registry::{FAMILIES, find};
use candle_core::{Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What is known about a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Title of the publication that the family comes from.
    pub title: String,
    /// Its authors.
    pub authors: String,
    /// Its year.
    pub year: u16,
    /// Its arXiv number, where it has one.
    pub arxiv: Option<String>,
    /// The table, figure or section that gives the architecture.
    pub source: String,
    /// What is different here from the publication, a sentence each.
    pub differs: Vec<String>,
    /// Trainable parameters, for the published input and classes.
    pub params: usize,
    /// Whether `params` has the parameters of auxiliary heads in it, as whoever published the number counts.
    /// Multiply-adds never have theirs: they are those of inference.
    pub params_with_auxiliary: bool,
    /// Multiply-adds of convolutions and linear layers for one image of the published size.
    pub macs: u64,
    /// Reported accuracies.
    pub accuracy: Vec<Accuracy>,
    /// Published weights.
    pub weights: Vec<WeightFile>,
}

/// An accuracy that someone reports for a model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// Data set, by its name on the command line, or `imagenet`.
    pub dataset: String,
    /// Top-1 accuracy in percent, on the test set (ImageNet: validation set, one central crop).
    pub top1: f64,
    /// Who reports it.
    pub source: String,
}

/// A published file of weights.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightFile {
    /// Its name among the weights of the model.
    pub tag: String,
    /// The data set it was trained on, by its name on the command line, or `imagenet`.
    pub dataset: String,
    /// Classes of its head.
    pub num_classes: usize,
    /// Where it is.
    pub url: String,
    /// SHA-256 in hexadecimal: in full, or the first eight digits where only those are published.
    pub sha256: String,
    /// What its authors report, top-1 in percent.
    pub top1: f64,
    /// What it expects of its images.
    pub preprocessing: Preprocessing,
}

/// How images were prepared for weights.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Mean of each channel, of values in [0, 1].
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub std: Vec<f32>,
    /// Height and width of the images that enter the network, in pixels: a central crop if `resize` is larger.
    pub image_size: usize,
    /// The shorter side is made this long first; `None` takes images as they are.
    pub resize: Option<usize>,
    /// How that is done.
    pub interpolation: Option<Interpolation>,
}

/// An interpolation between pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Linear along each axis.
    Bilinear,
    /// Cubic along each axis.
    Bicubic,
}

/// The facts about the registered model `name`.
///
/// # Errors
/// If there is no such model.
pub fn facts(name: &str) -> Result<Facts> {
    let spec = find(name)?;
    let family = FAMILIES.iter().find(|family| family.name == spec.family);
    let mut file: File = match toml::from_str(family.map_or("", |family| family.facts)) {
        Ok(file) => file,
        Err(error) => bail!("models/{}.toml cannot be read: {error}", spec.family),
    };
    match file.models.remove(spec.name) {
        Some(entry) => file.facts(spec.name, entry),
        None => bail!("there are no facts about {name} in models/{}.toml", spec.family),
    }
}

/// A facts file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    authors: String,
    year: u16,
    arxiv: Option<String>,
    source: String,
    #[serde(default)]
    differs: Vec<String>,
    /// By the name that weights refer to.
    #[serde(default)]
    preprocessing: BTreeMap<String, Preprocessing>,
    /// By the model's name.
    models: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    params: usize,
    #[serde(default)]
    params_with_auxiliary: bool,
    macs: u64,
    #[serde(default)]
    accuracy: Vec<Accuracy>,
    #[serde(default)]
    weights: Vec<WeightEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightEntry {
    tag: String,
    dataset: String,
    num_classes: usize,
    url: String,
    sha256: String,
    top1: f64,
    preprocessing: String,
}

impl File {
    fn facts(self, name: &str, entry: Entry) -> Result<Facts> {
        let weights = entry.weights.into_iter().map(|w| match self.preprocessing.get(&w.preprocessing) {
            Some(preprocessing) => Ok(WeightFile {
                tag: w.tag,
                dataset: w.dataset,
                num_classes: w.num_classes,
                url: w.url,
                sha256: w.sha256,
                top1: w.top1,
                preprocessing: preprocessing.clone(),
            }),
            None => bail!("{name}: weights {} have an unknown preprocessing {:?}", w.tag, w.preprocessing),
        });
        Ok(Facts {
            weights: weights.collect::<Result<_>>()?,
            title: self.title,
            authors: self.authors,
            year: self.year,
            arxiv: self.arxiv,
            source: self.source,
            differs: self.differs,
            params: entry.params,
            params_with_auxiliary: entry.params_with_auxiliary,
            macs: entry.macs,
            accuracy: entry.accuracy,
        })
    }
}
