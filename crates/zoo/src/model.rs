//! What every network has in common: how it is configured, built and called.

use crate::params::Params;
use crate::registry::{Spec, find};
use crate::weights::{StateDict, check};
use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::{ModuleT, VarBuilder};
use zoo_ops::FeatureMap;
use zoo_ops::rng::Noise;
use zoo_ops::trace::{Row, Trace};

/// The first layers of a network that has a form for small images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stem {
    /// [`Stem::Cifar`] for images of at most 64 pixels, else [`Stem::ImageNet`].
    #[default]
    Auto,
    /// Full resolution: a 3×3 convolution with stride 1 and no pooling.
    Cifar,
    /// As published for 224 pixels.
    ImageNet,
}

impl Stem {
    /// The metadata of weights that says which stem they are for. Shapes do not tell where only a stride differs.
    pub const METADATA: &'static str = "stem";

    /// What options, settings and metadata call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cifar => "cifar",
            Self::ImageNet => "imagenet",
        }
    }

    /// The stem of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Auto, Self::Cifar, Self::ImageNet].into_iter().find(|stem| stem.name() == name)
    }
}

/// What a network is built for.
#[derive(Debug, Clone)]
pub struct Config {
    /// Classes of the head.
    pub num_classes: usize,
    /// Channels of the input images.
    pub in_chans: usize,
    /// Height and width of the input images. Fully convolutional networks take other sizes too.
    pub image_size: (usize, usize),
    /// Probability of dropout, in networks that have it; `None` is the network's own default.
    pub dropout: Option<f64>,
    /// Probability of stochastic depth at the end of networks that have it; `None` is the network's own default.
    pub drop_path: Option<f64>,
    /// The first layers, in networks with a choice.
    pub stem: Stem,
    /// The source of the masks of both.
    pub noise: Noise,
}

impl Config {
    /// The stem that is built where there is a choice: never [`Stem::Auto`].
    pub fn chosen_stem(&self) -> Stem {
        if self.small_stem() { Stem::Cifar } else { Stem::ImageNet }
    }

    /// Whether to build the small-image form.
    pub fn small_stem(&self) -> bool {
        match self.stem {
            Stem::Auto => self.image_size.0.max(self.image_size.1) <= 64,
            Stem::Cifar => true,
            Stem::ImageNet => false,
        }
    }
}

/// The configuration that weights of `spec` were made for, with images of `image_size` (height, width):
/// classes and channels from the shapes of the last and the first layer, and the stem that their metadata name or else
/// that fits.
///
/// The rest of the weights is not judged here; loading them does that.
///
/// # Errors
/// If `state` lacks one of these layers, or its first layer does not fit the image size.
pub fn infer_config(spec: &Spec, state: &StateDict, image_size: (usize, usize)) -> Result<Config> {
    let weight = |layer: &str| {
        let name = format!("{layer}.weight");
        match state.tensors.get(&name).map(|tensor| tensor.dims()) {
            Some(dims) if dims.len() >= 2 => Ok(dims),
            Some(dims) => bail!("these are not weights of {}: `{name}` has shape {dims:?}", spec.name),
            None => bail!("these are not weights of {}: there is no `{name}`", spec.name),
        }
    };
    let ((h, w), first) = (image_size, weight(spec.stem)?);
    let in_chans = match *first {
        // The first layer of those that read sentences does not see the pixels.
        _ if spec.reads_text() => spec.input[0],
        // A linear layer sees all values of an image.
        [_, values] if h * w > 0 && values % (h * w) == 0 => values / (h * w),
        [_, values] => {
            bail!("{}: weights for images of {values} values; {h}x{w} pixels do not fit", spec.name)
        }
        _ => first[1],
    };
    let num_classes = weight(spec.head)?[0];
    let config = |stem| Config { num_classes, in_chans, image_size, stem, ..spec.config() };
    if let Some(stem) = state.metadata.get(Stem::METADATA).and_then(|name| Stem::from_name(name)) {
        return Ok(config(stem));
    }
    for stem in [Stem::Auto, Stem::Cifar, Stem::ImageNet] {
        let params = Params::zeros();
        match Model::new(spec.name, config(stem), params.var_builder(&Device::Cpu)) {
            Ok(_) => {}
            // Another stem may need larger images.
            Err(_) if stem != Stem::Auto => continue,
            Err(error) => return Err(error),
        }
        if check(&params.shapes(), state).is_match() {
            return Ok(config(stem));
        }
    }
    Ok(config(Stem::Auto))
}

/// The layers of a network, from images to logits.
pub trait Network: Send + Sync {
    /// Maps `xs` (n, h, w, in_chans) to logits (n, 1, 1, num_classes). With `train`, batch-norm uses and
    /// updates batch statistics and dropout is active.
    ///
    /// # Errors
    /// If the images do not fit the network.
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap>;

    /// A forward pass in training mode: the logits as `forward` gives them, and those of each auxiliary head,
    /// (n, 1, 1, num_classes) too. Most networks have no such heads; those that do run them after all other layers,
    /// so that [`Model::trace_auxiliary`] can tell their rows from the others.
    ///
    /// # Errors
    /// If the images do not fit the network.
    fn forward_auxiliary(&self, xs: &FeatureMap) -> Result<(FeatureMap, Vec<Auxiliary<FeatureMap>>)> {
        Ok((self.forward(xs, true)?, Vec::new()))
    }

    /// Gives parameters, in `params`, the initial values that no [`candle_nn::Init`] can say, before a training from
    /// scratch. `images` gives normalised training images, (n, h, w, in_chans), to those that depend on them. Most
    /// networks have none.
    ///
    /// # Errors
    /// If there are no such images, or `params` has not the network's parameters.
    fn initialise(&self, _params: &Params, _images: &dyn Fn() -> Result<FeatureMap>) -> Result<()> {
        Ok(())
    }
}

/// What an auxiliary head gives: a classifier on an inner map, which brings the layers below it a gradient of
/// their own in training and is not there in inference (GoogLeNet, arXiv 1409.4842, section 5).
#[derive(Debug, Clone)]
pub struct Auxiliary<L> {
    /// Its logits.
    pub logits: L,
    /// What its loss counts, where that of the network's own logits counts 1.
    pub loss_weight: f64,
}

/// The side of the smallest square images that a network takes in the form that `config` chooses.
fn smallest_side(spec: &'static Spec, config: &Config) -> Option<usize> {
    let stem = config.chosen_stem();
    // Every network was published for images that it takes.
    let largest = spec.input[1].max(spec.input[2]);
    (1..=largest).find(|&side| {
        let config = Config { image_size: (side, side), stem, ..config.clone() };
        Model::fitting(spec, config, VarBuilder::zeros(DType::F32, &Device::Cpu)).is_ok()
    })
}

/// A network with its parameters.
pub struct Model {
    spec: &'static Spec,
    config: Config,
    network: Box<dyn Network>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("name", &self.spec.name).field("config", &self.config).finish()
    }
}

impl Model {
    /// Builds the registered network `name`, with parameters from `vb`.
    ///
    /// # Errors
    /// If there is no such network, the configuration does not fit it, or `vb` lacks a parameter.
    pub fn new(name: &str, config: Config, vb: VarBuilder<'_>) -> Result<Self> {
        let spec = find(name)?;
        if config.num_classes == 0 || config.in_chans == 0 {
            bail!("{name}: the numbers of classes and of input channels must be at least 1");
        }
        if config.image_size.0 == 0 || config.image_size.1 == 0 {
            bail!("{name}: images of {}x{} pixels", config.image_size.0, config.image_size.1);
        }
        match Self::fitting(spec, config.clone(), vb) {
            Ok(model) => Ok(model),
            Err(error) => match smallest_side(spec, &config) {
                Some(side) if config.image_size.0.min(config.image_size.1) < side => bail!(
                    "{name}: images of {}x{} pixels are too small; the smallest are {side}x{side}",
                    config.image_size.0,
                    config.image_size.1
                ),
                _ => Err(error),
            },
        }
    }

    /// A network that was seen to take images of the configured size.
    fn fitting(spec: &'static Spec, config: Config, vb: VarBuilder<'_>) -> Result<Self> {
        let network = (spec.build)(&config, vb)?;
        let model = Self { spec, config, network };
        model.trace(1, DType::F32)?;
        Ok(model)
    }

    /// Builds the registered network `name` with the weights in `state`, in f32 on `device`. No initial values
    /// are drawn. The variables come along for whoever trains them.
    ///
    /// # Errors
    /// If there is no such network, or the weights do not fit it: the message says which.
    pub fn from_state_dict(
        name: &str,
        config: Config,
        state: &StateDict,
        device: &Device,
    ) -> Result<(Self, Params)> {
        let params = Params::zeros();
        let model = Self::new(name, config, params.var_builder(device))?;
        params.load(state)?;
        Ok((model, params))
    }

    /// Logits [n, classes] in f32 of a batch of images.
    ///
    /// # Errors
    /// If the images do not fit the network.
    pub fn forward(&self, xs: &FeatureMap, train: bool) -> Result<Tensor> {
        self.explained(xs, |network| network.forward(xs, train))?.to_logits()
    }

    /// A forward pass in training mode: the logits [n, classes] in f32 of a batch of images, and those of each
    /// auxiliary head. The loss to train with is that of the logits and, times its weight, that of each head.
    ///
    /// # Errors
    /// If the images do not fit the network.
    pub fn forward_auxiliary(&self, xs: &FeatureMap) -> Result<(Tensor, Vec<Auxiliary<Tensor>>)> {
        let (logits, heads) = self.explained(xs, |network| network.forward_auxiliary(xs))?;
        let heads = heads.into_iter().map(|Auxiliary { logits, loss_weight }| {
            Ok(Auxiliary { logits: logits.to_logits()?, loss_weight })
        });
        Ok((logits.to_logits()?, heads.collect::<Result<_>>()?))
    }

    /// Runs the network, and says in its errors what images it was built for.
    fn explained<T>(&self, xs: &FeatureMap, run: impl FnOnce(&dyn Network) -> Result<T>) -> Result<T> {
        let (_, h, w, c) = xs.dims();
        if c != self.config.in_chans {
            bail!("{}: expected images of {} channels, found {c}", self.spec.name, self.config.in_chans);
        }
        match run(self.network.as_ref()) {
            // Most failures come from images of another size than those that a linear layer was built for.
            Err(error) if (h, w) != self.config.image_size => {
                let (name, expected) = (self.spec.name, self.config.image_size);
                bail!("{name}, built for images of {}x{}, was given {h}x{w}: {error}", expected.0, expected.1)
            }
            result => result,
        }
    }

    /// Gives parameters the initial values that depend on images or that no [`candle_nn::Init`] can say, where the
    /// network has such, before a training from scratch: see [`Network::initialise`].
    ///
    /// # Errors
    /// If `images`, called only by networks that need some, fails, or `params` has not the network's parameters.
    pub fn initialise(&self, params: &Params, images: &dyn Fn() -> Result<FeatureMap>) -> Result<()> {
        self.network.initialise(params, images)
    }

    /// The registry entry.
    pub fn spec(&self) -> &'static Spec {
        self.spec
    }

    /// What the network was built for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether this is the form for small images of a network that has one: see [`Config::small_stem`].
    pub fn is_small_form(&self) -> bool {
        let config = Config { stem: Stem::ImageNet, ..self.config.clone() };
        let large = || Self::fitting(self.spec, config, VarBuilder::zeros(DType::F32, &Device::Cpu));
        let rows = |model: &Self| model.trace(1, DType::F32).ok();
        // The form for large images may not be there for images so small.
        self.config.small_stem() && large().map_or(true, |large| rows(&large) != rows(self))
    }

    /// What each layer does to a batch of images of the configured size in `dtype`, without computing anything.
    ///
    /// # Errors
    /// If an image of that size does not fit the network.
    pub fn trace(&self, batch_size: usize, dtype: DType) -> Result<Vec<Row>> {
        let (xs, trace) = self.traced(batch_size, dtype);
        self.network.forward(&xs, false)?;
        Ok(trace.rows())
    }

    /// The same of the auxiliary heads, which [`Model::trace`] leaves out.
    ///
    /// # Errors
    /// If an image of that size does not fit the network.
    pub fn trace_auxiliary(&self, batch_size: usize, dtype: DType) -> Result<Vec<Row>> {
        let (xs, trace) = self.traced(batch_size, dtype);
        let (_, heads) = self.network.forward_auxiliary(&xs)?;
        if heads.is_empty() {
            return Ok(Vec::new());
        }
        // In training, because stochastic depth has rows of its own there.
        let (xs, without) = self.traced(batch_size, dtype);
        self.network.forward(&xs, true)?;
        Ok(trace.rows().split_off(without.rows().len()))
    }

    fn traced(&self, batch_size: usize, dtype: DType) -> (FeatureMap, Trace) {
        let (h, w) = self.config.image_size;
        FeatureMap::traced((batch_size, h, w, self.config.in_chans), dtype, &Device::Cpu)
    }
}

impl ModuleT for Model {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(&FeatureMap::from_nchw(xs)?, train)
    }
}
