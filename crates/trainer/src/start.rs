//! The weights that a run starts from, if it does not start at random.

use crate::checkpoint::{CheckpointMeta, checkpoint_of};
use crate::input::Input;
use crate::{Error, Result, TrainConfig};
use std::path::PathBuf;
use zoo::weights::{self, Adapted, Cache, StateDict, Translated};
use zoo::{Params, Spec, Stem, WeightFile, infer_config};
use zoo_data::{CatalogEntry, Meta};

/// The weights that a run starts from, and what is known of them.
#[derive(Debug)]
pub struct Start {
    path: PathBuf,
    state: StateDict,
    /// How their images were prepared.
    pub(crate) input: Option<Input>,
    /// Names of their classes.
    classes: Option<Vec<String>>,
    /// Whose names they had, where these were others.
    pub(crate) translated: Option<Translated>,
}

impl Start {
    /// Reads the weights that the settings name, if they name some. Published ones are downloaded if they are not on
    /// this machine: `progress` is told the bytes that are there and, if known, that there will be. Their tag is
    /// filled in.
    ///
    /// # Errors
    /// If there are no such weights, or their file cannot be had or read.
    pub fn read(
        config: &mut TrainConfig,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Option<Self>> {
        let spec = zoo::find(&config.model)?;
        if let Some(tag) = &config.pretrained {
            let file = weights::published(spec, tag)?;
            let path = Cache::from_env()?.fetch(&file, progress)?;
            config.pretrained = Some(file.tag.clone());
            return Self::published(path, spec, &file).map(Some);
        }
        let Some(path) = &config.weights else { return Ok(None) };
        let path = if path.is_dir() { checkpoint_of(path)? } else { path.clone() };
        let known = zoo::facts(spec.name)?.weights;
        if let Some((file, _)) = weights::identify(&known, &path)? {
            return Self::published(path, spec, file).map(Some);
        }
        let state = weights::read(&path)?;
        let meta = CheckpointMeta::from_map(&state.metadata).ok();
        let (input, classes) = meta.map(|meta| (meta.input, meta.classes)).unzip();
        Self { path, state, input, classes, translated: None }.translate(spec).map(Some)
    }

    fn published(path: PathBuf, spec: &Spec, file: &WeightFile) -> Result<Self> {
        let input = Input::published(&file.preprocessing);
        let classes = CatalogEntry::find(&file.dataset).ok().map(|entry| entry.meta().classes);
        let state = weights::read(&path)?;
        Self { path, state, input: Some(input), classes, translated: None }.translate(spec)
    }

    /// With the names that the zoo has.
    fn translate(mut self, spec: &Spec) -> Result<Self> {
        self.translated = weights::translate(spec, &mut self.state).map_err(|error| self.refuse(&error))?;
        Ok(self)
    }

    /// The first layers that the weights have, for images of that side.
    ///
    /// # Errors
    /// If these are no weights of the model.
    pub(crate) fn stem(&self, spec: &Spec, image_size: usize) -> Result<Stem> {
        Ok(infer_config(spec, &self.state, (image_size, image_size))
            .map_err(|error| self.refuse(&error))?
            .stem)
    }

    /// Gives the variables of a model their values. The head keeps its own if it is for other classes: as many
    /// as the data have is not enough where the names are known.
    ///
    /// # Errors
    /// If the weights do not fit, apart from the head and the channels of the first convolution.
    pub(crate) fn load(mut self, spec: &Spec, params: &Params, data: &Meta) -> Result<Adapted> {
        let mut adapted =
            weights::adapt(spec, &mut self.state, &params.shapes()).map_err(|error| self.refuse(&error))?;
        let others = self.classes.as_ref().is_some_and(|classes| *classes != data.classes);
        if adapted.num_classes.is_none() && others {
            let head = format!("{}.", spec.head);
            let names: Vec<String> =
                self.state.tensors.keys().filter(|name| name.starts_with(&head)).cloned().collect();
            adapted.num_classes = Some((data.classes.len(), data.classes.len()));
            for name in names {
                self.state.tensors.remove(&name);
                adapted.fresh.push(name);
            }
        }
        params.load_except(&self.state, &adapted.fresh)?;
        Ok(adapted)
    }

    fn refuse(&self, error: &candle_core::Error) -> Error {
        let problem = error.to_string().lines().next().unwrap_or_default().to_string();
        Error::Checkpoint { path: self.path.clone(), problem }
    }
}
