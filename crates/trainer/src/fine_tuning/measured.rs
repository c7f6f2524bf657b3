//! What is measured of trained weights before they are trained further.

use super::Facts;
use crate::data::{DATA_SEED, TrainData, plain};
use crate::evaluate::measure;
use crate::freeze::is_in;
use crate::input::Input;
use crate::ranks::Place;
use crate::{Result, TrainConfig};
use candle_core::{DType, Device, Tensor};
use rand::Rng;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use zoo::{Model, Params};
use zoo_data::{Loader, LoaderConfig, View};
use zoo_ops::Inference;
use zoo_ops::rng::stream;

/// A network with its weights, and what it is about to learn.
pub(crate) struct Weights<'a> {
    pub(crate) model: &'a Model,
    pub(crate) params: &'a Params,
    pub(crate) data: &'a TrainData,
    pub(crate) input: &'a Input,
    pub(crate) device: &'a Device,
}

impl Weights<'_> {
    /// All that decides how they are trained further, at this place: what the settings leave open is measured, and all
    /// ranks have what the first one has measured.
    pub(crate) fn facts(
        &self,
        config: &TrainConfig,
        new_head: bool,
        frozen: &BTreeSet<String>,
        place: &Place,
    ) -> Result<Facts> {
        let open = |key| config.undecided.contains(&key);
        let known = !new_head && (open("lr") || open("backbone_lr_scale"));
        let head = self.model.spec().head;
        let (all, trainable) = (self.params.all(), self.params.trainable());
        Ok(Facts {
            images: self.data.train.len(),
            classes: self.model.config().num_classes,
            ranks: place.ranks.size(),
            recognised: if known { Some(place.of_first(self.recognised(config)?)?) } else { None },
            response: if open("lr") { place.of_first(self.response(config)?)? } else { 0.0 },
            only_head: trainable.iter().all(|(name, _)| frozen.contains(name) || is_in(name, head)),
            normalised: all.iter().any(|(name, _)| name.ends_with(".running_mean")),
        })
    }

    /// `images` training images as they are evaluated, in batches of at most 32.
    fn loader(&self, config: &TrainConfig, images: usize) -> Result<Loader> {
        let config = LoaderConfig { batch_size: images.min(32), ..plain(config) };
        Ok(Loader::new(self.data.train.limit(images, DATA_SEED), config)?)
    }

    /// Which share of the training images is recognised, of 512 at most.
    fn recognised(&self, config: &TrainConfig) -> Result<f64> {
        let (loader, place) = (self.loader(config, 512)?, (DType::F32, self.device));
        let go_on = |_| ControlFlow::Continue(());
        let late = !self.device.is_cpu();
        let found = measure(self.model, (&loader, None), self.input, &[View::PLAIN], place, late, go_on)?;
        Ok(found.map_or(0.0, |found| found.top1 as f64 / found.n.max(1) as f64))
    }

    /// How far the logits go when each weight of the head goes by 1 in a direction of its own: the root of the mean
    /// square over images, classes and directions. Behind a linear head that is the norm of the features.
    fn response(&self, config: &TrainConfig) -> Result<f64> {
        const IMAGES: usize = 16;
        const DIRECTIONS: u64 = 4;
        let loader = self.loader(config, IMAGES)?;
        let Some(batch) = loader.epoch(0, 0).next().transpose()? else { return Ok(0.0) };
        let images = self.input.normalise(&batch, None, DType::F32, self.device)?;
        let mut head = self.params.all();
        head.retain(|(name, _)| is_in(name, self.model.spec().head));
        let values = head.iter().map(|(_, var)| var.as_detached_tensor().copy());
        let values = values.collect::<candle_core::Result<Vec<Tensor>>>()?;
        let mut sum = 0.0;
        for direction in 0..DIRECTIONS {
            for (name, var) in &head {
                let mut rng = stream(DATA_SEED, &format!("response {name}"), direction);
                let mut sign = || if rng.random() { 1f32 } else { -1.0 };
                let step = |_| if var.rank() > 1 { sign() } else { 0.0 };
                let steps: Vec<f32> = (0..var.elem_count()).map(step).collect();
                var.set(&Tensor::from_vec(steps, var.shape(), self.device)?)?;
            }
            let logits = Inference::default().run(|| self.model.forward(&images, false));
            sum += f64::from(logits?.sqr()?.mean_all()?.to_scalar::<f32>()?);
        }
        head.iter().zip(&values).try_for_each(|((_, var), value)| var.set(value))?;
        Ok((sum / DIRECTIONS as f64).sqrt())
    }
}
