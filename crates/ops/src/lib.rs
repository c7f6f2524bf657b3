//! Differentiable operators on feature maps, for candle.
//!
//! Stock candle cannot train a classic CNN: some of its gradients are wrong and several operators have none.
//! This crate supplies operators that are right, each with two paths behind one function:
//!
//! * a **reference** (`<op>/reference.rs`), composed of candle's own sound differentiable operations. It runs
//!   on every device and in f64, and is what the tests trust;
//! * a **CPU path** (`<op>/cpu.rs`) for f32 and bf16, on kernels and threads of its own.
//!
//! [`dispatch::path`] chooses between them. All operators take and give a [`FeatureMap`]; parameters are
//! ordinary candle tensors in PyTorch's shapes.
//!
//! Under bf16 the activations are bf16 while parameters stay f32: a kernel rounds weights to bf16 as it reads
//! them, accumulates in f32 and rounds once when it stores.

pub mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod avg_pool;
pub mod batch_norm;
pub mod channels;
pub mod conv2d;
#[cfg(any(test, feature = "cuda"))]
pub mod cuda;
pub mod dispatch;
pub mod dropout;
mod element;
mod elementary;
pub mod embedding;
mod feature_map;
pub mod gate;
mod handle;
mod huge_pages;
mod inference;
pub mod loss;
pub mod lrn;
pub mod max_pool;
#[cfg(feature = "mimalloc")]
pub mod memory;
mod pairs;
mod parallel;
mod pool;
pub mod radix_softmax;
pub mod ranks;
pub mod rng;
mod rows;
mod scoped;
pub mod sgd;
mod simd;
mod slot;
mod stored_images;
mod taps;
mod team;
mod timing;
pub mod trace;
mod transpose;
mod window;

// The cases of the tests name the crate as its users do.
#[cfg(test)]
extern crate self as zoo_ops;

pub use activation::{Activation, activation};
pub use avg_pool::{adaptive_avg_pool2d, avg_pool2d, global_avg_pool2d, subsample2d};
pub use batch_norm::{BatchNorm, batch_norm};
pub use channels::{add, add_scaled, channel_shuffle, concat, flatten, interleave, pad_channels, split};
pub use conv2d::{Conv2dConfig, conv2d, linear};
pub use dispatch::{set_strict_f32, with_reference};
pub use dropout::{drop_path, dropout};
pub use embedding::embedding;
pub use feature_map::FeatureMap;
pub use gate::gate;
pub use inference::Inference;
pub use loss::{Targets, cross_entropy, mse, score};
pub use lrn::{LocalResponseNorm, local_response_norm};
pub use max_pool::max_pool2d;
pub use parallel::{map as parallel_map, set_threads};
pub use radix_softmax::radix_softmax;
pub use slot::{backward, backward_into, no_grad};
pub use stored_images::{Pick, StoredImages};
pub use timing::timed;
pub use window::Window2d;
