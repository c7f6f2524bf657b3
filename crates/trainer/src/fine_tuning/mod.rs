//! How a run is optimised that starts from weights, where nobody says.
//!
//! What suits random initial values ruins trained ones, so no default of training from scratch applies. One rule serves
//! all networks:
//!
//! - A new head starts at random behind layers that are good already: it has a rate ten times theirs and more. So has one
//!   that does not know the training images, such as that of other classes which are as many. A head that knows
//!   them has little to learn, and all layers have a low rate.
//! - The rate of the head is lower where its features are large, because a step of a weight changes the logits by as
//!   much as they are: SqueezeNet's have a norm of hundreds, those of a CIFAR ResNet one of 7.
//! - The layers before it have a lower rate still where no batch-norm makes the size of their weights meaningless.
//! - Gradients are clipped to a norm of 1, which bounds how far a step goes. Without batch-norm they can be hundreds of
//!   times as long, and a few whole steps along them end in a ReLU that gives zero for every image, for good.
//! - Batches are small and epochs more where images are few, so that there are steps enough.

mod measured;

pub(crate) use measured::Weights;

use crate::TrainConfig;
use std::fmt;

/// The settings that say how a run is optimised. In a run that starts from weights, none of them comes from a recipe
/// for training from scratch.
pub(crate) const KEYS: [&str; 21] = [
    "epochs",
    "batch_size",
    "grad_accum",
    "lr",
    "momentum",
    "nesterov",
    "weight_decay",
    "decay_biases",
    "schedule",
    "milestones",
    "gamma",
    "warmup_epochs",
    "label_smoothing",
    "crop_scale",
    "mixup",
    "cutmix",
    "ema",
    "lookahead",
    "clip_grad",
    "backbone_lr_scale",
    "norm_bias_lr_scale",
];

/// The lowest and the highest rate of a head that has to learn, for [`IMAGES`] per step.
const LR: (f64, f64) = (0.005, 0.05);
/// What that rate times the response of the logits ([`Weights::response`]) is in between.
const LR_RESPONSE: f64 = 4.0;
/// What the head's rate is multiplied by for the trained layers before it, with batch-norm and without.
const BACKBONE: [f64; 2] = [0.1, 0.03];
/// That of all layers, where the head has little to learn, is so much of it.
const KEPT: f64 = 0.01;
/// Images of a step that these are for. The rate grows with the root of their number, as the noise of a gradient falls.
const IMAGES: f64 = 16.0;
/// Optimizer steps that a run has at least, if [`EPOCHS`] are enough for it.
const STEPS: usize = 150;
/// Fewest and most epochs.
const EPOCHS: (usize, usize) = (10, 30);
/// Smallest and largest batch.
const BATCH: (usize, usize) = (8, 64);
/// Batches in an epoch at least, within the bounds of [`BATCH`].
const BATCHES: usize = 12;
/// Share of the run in which the rate rises.
const WARMUP: f64 = 0.1;
/// Decay of weights: the trained ones are of the right size.
const WEIGHT_DECAY: f64 = 1e-4;
/// Decay of the average of the weights, which short runs do not reach (see [`crate::Averaging::Ema`]).
const EMA: f64 = 0.98;
/// Least share of a picture that a crop takes: what there are few pictures of should be in most crops.
const CROP_SCALE: f64 = 0.5;

/// What is known about a run before its first step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    /// Training images.
    pub(crate) images: usize,
    /// Classes of the head.
    pub(crate) classes: usize,
    /// Processes that train.
    pub(crate) ranks: usize,
    /// The share of the training images that the weights know as they are; `None` with a new head.
    pub(crate) recognised: Option<f64>,
    /// How far its logits go with the weights of the head.
    pub(crate) response: f64,
    /// Whether only the head is trained.
    pub(crate) only_head: bool,
    /// Whether the network has batch-norms.
    pub(crate) normalised: bool,
}

impl Facts {
    /// Whether the head is nearer to guessing than to being right.
    fn head_learns(self) -> bool {
        let chance = 1.0 / self.classes.max(1) as f64;
        self.recognised.is_none_or(|share| share < f64::midpoint(chance, 1.0))
    }

    /// The highest learning rate of the head for steps of so many images, to two digits.
    fn rate(self, images: usize) -> f64 {
        // Not `clamp`, which would give back a response that is not a number.
        let head = (LR_RESPONSE / self.response).max(LR.0).min(LR.1);
        let exact = head * if self.head_learns() { 1.0 } else { KEPT } * (images as f64 / IMAGES).sqrt();
        format!("{exact:.1e}").parse().unwrap_or(exact)
    }

    /// Why the rate is what it is.
    fn why(self) -> String {
        let norm = if self.normalised { "with" } else { "without" };
        let head = match self.recognised {
            None => "a new head".into(),
            Some(share) if self.head_learns() => {
                format!("a head that knows {:.0} % of the images", 100.0 * share)
            }
            Some(share) => format!("weights that know {:.0} % of the images", 100.0 * share),
        };
        let size = match self.response > LR_RESPONSE / LR.1 {
            true => format!(" on features of size {:.0}", self.response),
            false => String::new(),
        };
        format!("{head}{size}, {norm} batch-norm")
    }
}

/// The defaults that fine-tuning chose, each with its reason. Displayed as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FineTuning(Vec<String>);

impl fmt::Display for FineTuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Decides what [`TrainConfig::undecided`] names; `None` if that is nothing.
pub(crate) fn decide(config: &mut TrainConfig, facts: Facts) -> Option<FineTuning> {
    let undecided = std::mem::take(&mut config.undecided);
    let open = |key: &str| undecided.contains(&key);
    let mut chosen = Vec::new();
    if open("batch_size") {
        config.batch_size = batch_size(facts.images / facts.ranks);
        chosen.push(format!("batches of {} for {} images", config.batch_size, facts.images));
    }
    let per_step = config.batch_size * config.grad_accum * facts.ranks;
    if open("epochs") {
        let per_epoch = facts.images.div_ceil(per_step).max(1);
        config.epochs = STEPS.div_ceil(per_epoch).clamp(EPOCHS.0, EPOCHS.1);
        chosen.push(format!("{} epochs", config.epochs));
    }
    if open("warmup_epochs") {
        config.warmup_epochs = (WARMUP * config.epochs as f64 * 1000.0).round() / 1000.0;
    }
    if open("lr") {
        config.lr = facts.rate(if config.scale_lr { per_step / facts.ranks } else { per_step });
        chosen.push(format!("rate {} for {}", config.lr, facts.why()));
    }
    if open("backbone_lr_scale") && facts.head_learns() && !facts.only_head {
        config.backbone_lr_scale = BACKBONE[usize::from(!facts.normalised)];
        chosen.push(format!("times {} for the trained layers before it", config.backbone_lr_scale));
    }
    if open("clip_grad") {
        config.clip_grad = 1.0;
        chosen.push(
            "gradients clipped, and an average of the last steps, against steps that ruin the weights".into(),
        );
    }
    if open("weight_decay") {
        config.weight_decay = WEIGHT_DECAY;
    }
    if open("ema") && config.lookahead == 0.0 {
        config.ema = EMA;
    }
    if open("crop_scale") {
        config.crop_scale = CROP_SCALE;
    }
    (!chosen.is_empty()).then_some(FineTuning(chosen))
}

/// Images per batch of a process that has so many of them: a power of two.
fn batch_size(images: usize) -> usize {
    let wanted = (images / BATCHES).clamp(BATCH.0, BATCH.1);
    1 << wanted.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        images: 244,
        classes: 2,
        ranks: 1,
        recognised: None,
        response: 7.0,
        only_head: false,
        normalised: true,
    };

    /// What is decided for a run of which nobody says anything but what `given` does.
    fn decided(given: &[&str], config: TrainConfig, facts: Facts) -> (TrainConfig, String) {
        let undecided = KEYS.into_iter().filter(|key| !given.contains(key)).collect();
        let mut config = TrainConfig { model: "resnet18".into(), undecided, ..config };
        let chosen = decide(&mut config, facts).map(|chosen| chosen.to_string());
        config.validate().unwrap();
        assert!(config.undecided.is_empty());
        (config, chosen.unwrap_or_default())
    }

    fn rates(facts: Facts) -> (f64, f64) {
        let (config, _) = decided(&[], TrainConfig::default(), facts);
        (config.lr, config.backbone_lr_scale)
    }

    #[test]
    fn a_head_that_has_to_learn_has_a_high_rate() {
        assert_eq!(rates(FACTS), (0.05, 0.1));
        assert_eq!(rates(Facts { only_head: true, ..FACTS }), (0.05, 1.0));
        assert_eq!(rates(Facts { normalised: false, ..FACTS }), (0.05, 0.03));
        // What a step of a weight does to the logits is as large as their features.
        assert_eq!(rates(Facts { response: 400.0, ..FACTS }), (0.01, 0.1));
        assert_eq!(rates(Facts { response: 0.0, ..FACTS }), (0.05, 0.1));
        // After a few steps running statistics, and with them features, can be anything.
        assert_eq!(rates(Facts { response: 2e5, ..FACTS }), (0.005, 0.1));
        assert_eq!(rates(Facts { response: f64::NAN, ..FACTS }), (0.005, 0.1));
        // Of two classes three quarters are half of what can be known.
        assert_eq!(rates(Facts { recognised: Some(0.74), ..FACTS }), (0.05, 0.1));
        assert_eq!(rates(Facts { recognised: Some(0.76), ..FACTS }), (0.0005, 1.0));
        assert_eq!(rates(Facts { recognised: Some(0.56), classes: 10, ..FACTS }), (0.0005, 1.0));
        assert_eq!(rates(Facts { recognised: Some(0.54), classes: 10, ..FACTS }), (0.05, 0.1));
    }

    #[test]
    fn few_images_get_small_batches_and_many_epochs() {
        for (images, batch, epochs) in
            [(1, 8, 30), (20, 8, 30), (64, 8, 19), (244, 16, 10), (2_000, 64, 10), (1_200_000, 64, 10)]
        {
            let (config, _) = decided(&[], TrainConfig::default(), Facts { images, ..FACTS });
            assert_eq!((config.batch_size, config.epochs), (batch, epochs), "{images}");
            assert!((config.warmup_epochs - 0.1 * epochs as f64).abs() < 1e-9);
        }
    }

    #[test]
    fn what_is_given_stays_and_the_rest_follows_it() {
        let given = TrainConfig { batch_size: 64, epochs: 3, lookahead: 0.9, ..TrainConfig::default() };
        let (config, chosen) = decided(&["batch_size", "epochs", "lookahead"], given, FACTS);
        assert_eq!((config.batch_size, config.epochs, config.lr), (64, 3, 0.1));
        assert!((config.warmup_epochs - 0.3).abs() < 1e-9);
        // Of two averages the one that was asked for.
        assert_eq!((config.lookahead, config.ema), (0.9, 0.0));
        assert!(chosen.starts_with("rate 0.1 for a new head, with batch-norm; "), "{chosen}");
        let all = TrainConfig { lr: 0.3, ema: 0.5, ..TrainConfig::default() };
        assert_eq!(decided(&KEYS, all.clone(), FACTS).1, "");
        assert_eq!(decided(&KEYS, all, FACTS).0.lr, 0.3);
    }

    #[test]
    fn steps_of_several_processes_are_those_of_one() {
        let two = Facts { ranks: 2, ..FACTS };
        let (config, _) = decided(&[], TrainConfig::default(), two);
        assert_eq!((config.batch_size, config.lr), (8, 0.05));
        let (scaled, _) = decided(&[], TrainConfig { scale_lr: true, ..TrainConfig::default() }, two);
        assert_eq!(scaled.lr, 0.035);
    }
}
