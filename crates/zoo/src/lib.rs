//! The classic convolutional networks, under the names and parameter keys their published weights have.
//!
//! A [`Model`] is built from a candle-nn `VarBuilder` and is a candle-nn `ModuleT` from images [n, c, h, w] to
//! logits [n, classes], so candle's losses and optimizers work on it. [`Params`] is a `VarBuilder` back end
//! that draws initial values from a seed.

mod facts;
mod inception;
pub mod layers;
mod model;
pub mod models;
mod params;
mod registry;
mod summary;
pub mod weights;
mod whitening;

pub use facts::{Accuracy, Facts, Interpolation, Preprocessing, WeightFile, facts};
pub use model::{Auxiliary, Config, Model, Network, Stem, infer_config};
pub use params::Params;
pub use registry::{Build, Spec, find, list, matches, registry};
pub use summary::Summary;
