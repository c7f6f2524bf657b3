//! Image data sets for classification: reading, checking, augmenting and batching.
//!
//! [`open`] gives a [`Dataset`] by name: the official files of CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST,
//! a folder of images, labelled sentences, or `shapes`, a set the program draws itself. A [`Loader`] turns it into
//! batches of bytes, ahead of training, on threads of its own. Pictures stay 8-bit throughout, [h, w, c] inside one and
//! [n, h, w, c] in a batch; normalising is the model's first step, with the mean and deviation in [`Meta`].
//!
//! All randomness is a function of (seed, purpose, index), so batches are equal byte for byte whatever the
//! number of worker threads, and a loader resumes inside an epoch without replaying it.
//!
//! ```
//! use zoo_data::{Augment, Loader, LoaderConfig, Split};
//!
//! let train = zoo_data::open("shapes", Split::Train, None, 0)?.limit(256, 0);
//! let loader = Loader::new(train, LoaderConfig { augment: Augment::Standard, ..LoaderConfig::new(64, 0) })?;
//! for batch in loader.epoch(0, 0) {
//!     let batch = batch?;
//!     assert_eq!(batch.pixels.len(), batch.n * batch.h * batch.w * batch.c);
//! }
//! # Ok::<(), zoo_data::Error>(())
//! ```

mod augment;
mod catalog;
mod cifar;
mod classes;
mod dataset;
mod decode;
mod digest;
mod error;
mod fingerprint;
mod folder;
mod hub;
mod idx;
mod imagenet;
mod loader;
mod mix;
mod photometric;
mod pixels;
mod preprocess;
mod resize;
mod shapes;
mod sheet;
mod text;
mod trivial;
mod verify;
mod views;

pub use augment::{Augment, CROP_SCALE};
pub use catalog::{CATALOG, CatalogEntry, open};
pub use classes::{ClassMap, MatchedBy, Relabelled, classes_of, list_names};
pub use dataset::{Dataset, Meta, Split};
pub use decode::{MAX_PIXELS, decode_image, load_image};
pub use error::Error;
pub use imagenet::imagenet_classes;
pub use loader::{Batch, Epoch, Loader, LoaderConfig, Share};
pub use mix::{Mix, Mixed};
pub use pixels::Image;
pub use preprocess::{Preprocess, preprocess};
pub use resize::{Interpolation, Region, resize, resize_by};
pub use sheet::contact_sheet;
pub use text::{Reading, Vocabulary, open_text};
pub use verify::{FileReport, FileStatus, verify};
pub use views::{View, views};

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;
