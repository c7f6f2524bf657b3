//! The weights that a run starts from, if it does not start at random.

use crate::checkpoint::{CheckpointMeta, checkpoint_of};
use crate::input::Input;
use crate::{Error, Result, TrainConfig};
use candle_core::Tensor;
use std::path::PathBuf;
use zoo::weights::{self, Adapted, Cache, Head, StateDict, Translated};
use zoo::{Config, Params, Spec, Stem, WeightFile, infer_config};
use zoo_data::{ClassMap, MatchedBy, Meta, classes_of};

/// The weights that a run starts from, and what is known of them.
#[derive(Debug)]
pub struct Start {
    path: PathBuf,
    state: StateDict,
    /// How their images were prepared.
    pub(crate) input: Option<Input>,
    /// Names of their classes, as far as they are known.
    classes: Vec<String>,
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
        let meta = CheckpointMeta::from_metadata(&state.metadata).ok();
        let (input, classes) = meta.map(|meta| (meta.input, meta.classes)).unzip();
        let classes = classes.unwrap_or_default();
        Self { path, state, input, classes, translated: None }.translate(spec).map(Some)
    }

    fn published(path: PathBuf, spec: &Spec, file: &WeightFile) -> Result<Self> {
        let input = Input::published(&file.preprocessing);
        let state = weights::read(&path)?;
        let classes = Vec::new();
        let mut start =
            Self { path, state, input: Some(input), classes, translated: None }.translate(spec)?;
        // A file that is known by its name may be another with that name.
        let head = start.state.tensors.get(&format!("{}.weight", spec.head));
        let outputs = head.and_then(|head| head.dims().first().copied());
        start.classes =
            classes_of(&file.dataset).filter(|names| outputs == Some(names.len())).unwrap_or_default();
        Ok(start)
    }

    /// With the names that the zoo has.
    fn translate(mut self, spec: &Spec) -> Result<Self> {
        self.translated = weights::translate(spec, &mut self.state).map_err(|error| self.refuse(&error))?;
        Ok(self)
    }

    /// SHA-256 of the weights.
    pub(crate) fn digest(&self) -> Result<String> {
        Ok(self.state.sha256()?)
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

    /// Gives the variables of a model their values. The rows of the head go by the names of the classes, into their
    /// order in the data; for other classes the head keeps its initial values, even if they are as many.
    ///
    /// # Errors
    /// If the weights do not fit, apart from the head and the channels of the first convolution.
    pub(crate) fn load(
        mut self,
        spec: &Spec,
        params: &Params,
        data: &Meta,
        config: &Config,
    ) -> Result<Adapted> {
        let mut adapted =
            weights::adapt(spec, &mut self.state, &params.shapes()).map_err(|error| self.refuse(&error))?;
        if adapted.num_classes.is_none() {
            self.fit_head(spec, &mut adapted, data, config)?;
        }
        params.load_except(&self.state, &adapted.fresh)?;
        Ok(adapted)
    }

    /// Puts the rows of a head for as many classes into the order of the data's, or takes the head out.
    fn fit_head(&mut self, spec: &Spec, adapted: &mut Adapted, data: &Meta, config: &Config) -> Result<()> {
        let outputs = config.num_classes;
        let rows = match self.rows(&data.classes, outputs)? {
            Some((rows, MatchedBy::Number)) => {
                adapted.head = Head::ByNumber;
                Some(rows)
            }
            Some((rows, _)) => Some(rows),
            None => None,
        };
        if rows.as_ref().is_some_and(|rows| rows.iter().copied().eq(0..outputs as u32)) {
            return Ok(());
        }
        for name in weights::class_tensors(spec, config)? {
            let Some(tensor) = self.state.tensors.remove(&name) else { continue };
            match &rows {
                Some(rows) => {
                    let rows = Tensor::new(rows.as_slice(), tensor.device())?;
                    self.state.tensors.insert(name, tensor.index_select(&rows, 0)?);
                    adapted.head = Head::Reordered;
                }
                None => {
                    adapted.num_classes = Some((outputs, outputs));
                    adapted.fresh.push(name);
                }
            }
        }
        Ok(())
    }

    /// For each output of a network for the classes of the data, the output of the weights that is the same class; none
    /// if they are for other classes. Outputs without names follow in their order.
    fn rows(&self, data: &[String], outputs: usize) -> Result<Option<(Vec<u32>, MatchedBy)>> {
        let map = match ClassMap::new(data, &self.classes, outputs) {
            // Some outputs of a new head stand for no class: which ones of the old one do is not known.
            Err(zoo_data::Error::Nameless { .. }) => return Ok(None),
            Err(error) => {
                return Err(Error::Checkpoint { path: self.path.clone(), problem: error.to_string() });
            }
            Ok(map) => map,
        };
        let named = match map.by {
            MatchedBy::Name => self.classes.iter().filter(|name| !name.is_empty()).count(),
            MatchedBy::ImageNet | MatchedBy::Number => outputs,
        };
        let Some(mut rows) = map.outputs.into_iter().collect::<Option<Vec<usize>>>() else { return Ok(None) };
        if rows.len() != named {
            return Ok(None);
        }
        let mut is_left = vec![true; outputs];
        rows.iter().for_each(|&row| is_left[row] = false);
        rows.extend((0..outputs).filter(|&row| is_left[row]));
        Ok(Some((rows.into_iter().map(|row| row as u32).collect(), map.by)))
    }

    fn refuse(&self, error: &candle_core::Error) -> Error {
        let problem = error.to_string().lines().next().unwrap_or_default().to_string();
        Error::Checkpoint { path: self.path.clone(), problem }
    }
}
