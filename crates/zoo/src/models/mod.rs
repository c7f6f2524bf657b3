//! The models: one file per family.
//!
//! # Adding a model
//!
//! To add a *variant* of a family that is here, add a row to the table at the top of its file. A new *family*,
//! say `vgg`, takes three steps:
//!
//! 1. **A file** `models/vgg.rs` here. Its header cites the paper and the table that it implements, and lists
//!    what differs. It has the paper's table as a constant, `specs()`, which makes a [`Spec`] of each row, and a
//!    function that builds a row's layers from a [`Config`] and a `VarBuilder`:
//!
//!    ```ignore
//!    pub(crate) fn specs() -> Vec<Spec> {
//!        let spec = |variant: &'static Variant| Spec {
//!            name: variant.name,
//!            family: "vgg",
//!            input: [3, 224, 224],
//!            num_classes: 1000,
//!            stem: "features.0",   // the first and the last layer, by their paths:
//!            head: "classifier.6", // weights tell their channels and classes by them
//!            build: Box::new(|config, vb| build(variant, config, vb)),
//!        };
//!        VARIANTS.iter().map(spec).collect()
//!    }
//!    ```
//!
//!    Parameter paths are those of torchvision's state dict, or of a named reference where it lacks the model:
//!    `vb.pp("features").pp(0)`. Layers come from [`crate::layers`] and take the initialisation that the
//!    reference has; what has no parameters is a function of [`zoo_ops`]. The struct of layers implements
//!    [`Network`], which maps images (n, h, w, c) to logits (n, 1, 1, classes). Batch-norm, a residual and an
//!    activation are one operation: `norm.forward_residual(&xs, &residual, Relu, train)`. If images can be too
//!    small, `build` says so in a line.
//! 2. **A line** `family!(vgg)` in the table of `registry.rs`, and `mod vgg` below.
//! 3. **A facts file** `models/vgg.toml` at the root of the repository, with an entry for each variant; what it
//!    says is in [`crate::facts`]. `zoo summary` counts parameters and multiply-adds; compare them with the
//!    paper's or the reference's before writing them down.
//!
//! The tests then ask for golden values: add the model to `scripts/golden/models.py` and run it. They compare
//! keys, shapes, counts, logits, running statistics and gradients with PyTorch's, see that every parameter gets
//! a gradient, and check the facts.
//!
//! [`Spec`]: crate::Spec
//! [`Config`]: crate::Config
//! [`Network`]: crate::Network

pub(crate) mod cifar_resnet;
pub(crate) mod lenet;
pub(crate) mod mlp;
pub(crate) mod resnet;
