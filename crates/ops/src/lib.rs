//! Differentiable operators on feature maps, for candle.
pub mod rng;
