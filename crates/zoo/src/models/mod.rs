//! The models: one file per family.
//!
//! # Adding a model
//!
//! To add a *variant* of a family that is here, add a row to the table at the top of its file and an entry to its
//! facts. A new *family*, say `vgg`, is two files; the build finds them by their names:
//!
//! 1. **The layers**, `models/vgg.rs` here. Its header cites the paper and the table that it implements, and lists
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
//! 2. **The facts**, `models/vgg.toml` at the root of the repository, with an entry for each variant; what it
//!    says is in [`crate::facts`]. `zoo summary` counts parameters and multiply-adds; compare them with the
//!    paper's or the reference's before writing them down.
//!
//! To have it compared with PyTorch (keys, shapes, counts, logits, running statistics and gradients), give its
//! family a file in `scripts/golden/families` and run `scripts/golden/models.py vgg`. Every model of this
//! repository is. The other tests (every parameter gets a gradient, the facts are those of the code) need nothing.
//!
//! [`Spec`]: crate::Spec
//! [`Config`]: crate::Config
//! [`Network`]: crate::Network

include!(concat!(env!("OUT_DIR"), "/modules.rs"));
