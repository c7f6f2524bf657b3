//! Every model against PyTorch: keys, counts, logits, running statistics and gradients.
//!
//! The files in `golden/` are made by scripts/golden/models.py; its README describes them. Weights and images
//! are given by a formula, so no weights are stored.

mod formula;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ModuleT, VarBuilder};
use serde::Deserialize;
use std::collections::BTreeMap;
use zoo::weights::StateDict;
use zoo::{Auxiliary, Config, Model, Params, Stem};
use zoo_ops::FeatureMap;

#[derive(Deserialize)]
struct Golden {
    model: String,
    num_classes: usize,
    input: [usize; 4],
    params: usize,
    macs: u64,
    /// The first values of the images and of the first weight.
    formula: BTreeMap<String, Vec<f64>>,
    /// By what comes before the first dot of a key: how many there are, and the hash of the list of them.
    keys: BTreeMap<String, (usize, String)>,
    logits: Vec<Vec<f64>>,
    train_input: [usize; 4],
    train_images: String,
    train_logits: Vec<Vec<f64>>,
    /// Of that forward too.
    #[serde(default)]
    auxiliary: Vec<Head>,
    #[serde(default)]
    running: BTreeMap<String, Digest>,
    grad_mode: String,
    grad_input: [usize; 4],
    grad_images: String,
    /// Whether these images keep clear of kinks; if not, gradients in f32 say nothing.
    #[serde(default = "yes")]
    grad_clear: bool,
    loss: f64,
    grads: BTreeMap<String, Digest>,
}

fn yes() -> bool {
    true
}

/// What an auxiliary head gives.
#[derive(Deserialize)]
struct Head {
    loss_weight: f64,
    logits: Vec<Vec<f64>>,
}

/// Numbers that pin a tensor down.
#[derive(Deserialize)]
struct Digest {
    l2: f64,
    dot: f64,
}

/// How far results may be from the golden ones, relative to the largest logit or to a tensor's L2 norm.
struct Tolerance {
    logits: f64,
    train_logits: f64,
    running: f64,
    grads: f64,
}

/// The files hold nine digits.
const F64: Tolerance = Tolerance { logits: 1e-8, train_logits: 1e-8, running: 1e-8, grads: 1e-8 };

/// Twenty times what PyTorch's own f32 is off, as scripts/golden/README.md has it: other kernels round otherwise,
/// and statistics of small batches amplify that, the deeper the more.
fn f32_tolerance(model: &str) -> Tolerance {
    let (train_logits, running) = match model {
        "resnet34" => (6e-6, 1e-5),
        "resnet50" => (3e-5, 1e-5),
        "resnet101" => (7e-5, 1e-5),
        "resnet152" => (3e-4, 6e-5),
        "resnext50_32x4d" => (2e-5, 1e-5),
        "resnext101_32x8d" | "resnext101_64x4d" => (1e-4, 2e-5),
        "preact_resnet1001" => (9e-3, 3e-3),
        "se_resnet50" => (9e-6, 1e-5),
        "resnest50" => (1e-4, 2e-5),
        "wide_resnet50_2" => (4e-5, 1e-5),
        "wide_resnet101_2" => (3e-4, 4e-5),
        "googlenet" => (4e-5, 1e-5),
        "inception_bn" => (7e-5, 1e-5),
        "inception_resnet_v2" => (1e-5, 1e-5),
        "inception_v3" => (1e-4, 2e-5),
        "inception_v4" => (6e-4, 1e-4),
        _ => (5e-6, 1e-5),
    };
    // Of GoogLeNet's, PyTorch's own are 4e-4 off.
    let grads = if model == "googlenet" { 1e-3 } else { 20.0 * 4e-5 };
    Tolerance { logits: 20.0 * 7e-7, train_logits: 20.0 * train_logits, running: 20.0 * running, grads }
}

/// The largest error; NaN, which no comparison finds, counts as infinite.
fn worst(errors: impl IntoIterator<Item = f64>) -> f64 {
    errors.into_iter().fold(0.0, |worst, error| if error.is_nan() { f64::INFINITY } else { error.max(worst) })
}

/// The files to compare with: all of them or, while one model is being written, those with `ZOO_GOLDEN` in their
/// names.
fn files() -> Vec<(String, Golden)> {
    files_with(&std::env::var("ZOO_GOLDEN").unwrap_or_default())
}

fn files_with(part: &str) -> Vec<(String, Golden)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().contains(part)));
    files.sort();
    let parse = |path: &std::path::PathBuf| {
        let golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap());
        (path.file_stem().unwrap().to_string_lossy().into_owned(), golden.unwrap())
    };
    files.iter().map(parse).collect()
}

/// A model whose variables can be set back to the formula's values.
struct Case<'a> {
    golden: &'a Golden,
    dtype: DType,
    params: Params,
    model: Model,
    state: StateDict,
}

impl<'a> Case<'a> {
    fn new(golden: &'a Golden, dtype: DType) -> Result<Self> {
        let [_, in_chans, h, w] = golden.input;
        let config = Config {
            num_classes: golden.num_classes,
            in_chans,
            image_size: (h, w),
            // Masks cannot be those of PyTorch, so networks with dropout are compared without.
            dropout: Some(0.0),
            drop_path: Some(0.0),
            stem: Stem::Auto,
            noise: Default::default(),
        };
        let params = Params::zeros();
        let vb = VarBuilder::from_backend(Box::new(params.clone()), dtype, Device::Cpu);
        let model = Model::new(&golden.model, config, vb)?;
        let keys = params.shapes();
        assert_eq!(hashes(&keys), golden.keys, "{0}: models.py --keys {0} says which", golden.model);
        let tensors =
            keys.into_iter().map(|(name, shape)| Ok((name.clone(), formula::state(&name, &shape)?)));
        let state = StateDict { tensors: tensors.collect::<Result<_>>()?, ..Default::default() };
        for (name, expected) in &golden.formula {
            let found = match state.tensors.get(name) {
                Some(weight) => weight.clone(),
                None => formula::tensor(name, &golden.input, DType::F32)?,
            };
            let found = found.flatten_all()?.to_vec1::<f32>()?;
            let error = worst(
                found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs()),
            );
            assert!(error < 1e-8, "{}: the formula gives other values for {name}", golden.model);
        }
        Ok(Self { golden, dtype, params, model, state })
    }

    /// Logits of formula images from the formula's weights and running statistics, and in train mode those of
    /// auxiliary heads.
    fn forward(
        &self,
        images: &str,
        shape: &[usize; 4],
        train: bool,
    ) -> Result<(Tensor, Vec<Auxiliary<Tensor>>)> {
        self.params.load(&self.state)?;
        let images = formula::tensor(images, shape, self.dtype)?;
        if train {
            self.model.forward_auxiliary(&FeatureMap::from_nchw(&images)?)
        } else {
            Ok((self.model.forward_t(&images, false)?, Vec::new()))
        }
    }

    /// What is wrong, in a line each.
    fn failures(&self, tolerance: &Tolerance) -> Result<Vec<String>> {
        let golden = self.golden;
        let mut failures = Vec::new();

        let (rows, heads) = (self.model.trace(1, DType::F32)?, self.model.trace_auxiliary(1, DType::F32)?);
        let params: usize = rows.iter().chain(&heads).map(|row| row.params).sum();
        let macs: u64 = rows.iter().map(|row| row.macs).sum();
        assert_eq!((params, macs), (golden.params, golden.macs), "{}: parameters, MACs", golden.model);

        let mut compare_logits = |what: &str, found: Tensor, expected: &[Vec<f64>], tolerance: f64| {
            let found = found.to_dtype(DType::F64)?.to_vec2::<f64>()?.concat();
            let expected = expected.concat();
            assert_eq!(found.len(), expected.len());
            let largest = expected.iter().fold(0f64, |max, x| max.max(x.abs()));
            let error =
                found.iter().zip(&expected).fold(0f64, |max, (a, b)| max.max((a - b).abs())) / largest;
            if error > tolerance {
                failures.push(format!("{what}: off by {error:.1e} of the largest"));
            }
            Result::Ok(())
        };
        compare_logits(
            "logits",
            self.forward("input", &golden.input, false)?.0,
            &golden.logits,
            tolerance.logits,
        )?;
        let (train_logits, heads) = self.forward(&golden.train_images, &golden.train_input, true)?;
        compare_logits("train logits", train_logits, &golden.train_logits, tolerance.train_logits)?;
        assert_eq!(heads.len(), golden.auxiliary.len(), "{}: auxiliary heads", golden.model);
        for (i, (found, expected)) in heads.into_iter().zip(&golden.auxiliary).enumerate() {
            assert_eq!(found.loss_weight, expected.loss_weight, "{}: head {i}", golden.model);
            let what = format!("logits of auxiliary head {i}");
            compare_logits(&what, found.logits, &expected.logits, tolerance.train_logits)?;
        }

        let vars: BTreeMap<_, _> = self.params.all().into_iter().collect();
        for (name, digest) in &golden.running {
            failures.extend(digest.failure(name, vars[name].as_tensor(), tolerance.running)?);
        }

        if self.dtype != DType::F64 && !golden.grad_clear {
            return Ok(failures);
        }
        let (logits, heads) =
            self.forward(&golden.grad_images, &golden.grad_input, golden.grad_mode == "train")?;
        let targets: Vec<u32> =
            (0..golden.grad_input[0] as u32).map(|i| i * 7 % golden.num_classes as u32).collect();
        let targets = Tensor::new(targets, &Device::Cpu)?;
        let mut loss = candle_nn::loss::cross_entropy(&logits, &targets)?;
        for head in heads {
            let auxiliary = candle_nn::loss::cross_entropy(&head.logits, &targets)?;
            loss = (loss + auxiliary.affine(head.loss_weight, 0.0)?)?;
        }
        let grads = loss.backward()?;
        let loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if worst([(loss - golden.loss).abs() / golden.loss]) > tolerance.train_logits {
            failures.push(format!("loss: expected {}, found {loss}", golden.loss));
        }
        for (name, digest) in &golden.grads {
            match grads.get(&vars[name]) {
                Some(grad) => failures.extend(digest.failure(name, grad, tolerance.grads)?),
                None => failures.push(format!("{name}: no gradient")),
            }
        }
        Ok(failures)
    }
}

/// What `Golden::keys` holds of these names and shapes, which are sorted.
fn hashes(keys: &[(String, Vec<usize>)]) -> BTreeMap<String, (usize, String)> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, shape) in keys {
        let group = name.split('.').next().unwrap_or_default();
        groups.entry(group.into()).or_default().push(format!("{name} {shape:?}"));
    }
    let hash = |lines: Vec<String>| (lines.len(), format!("{:016x}", formula::hash(&lines.join("\n"))));
    groups.into_iter().map(|(group, lines)| (group, hash(lines))).collect()
}

impl Digest {
    fn failure(&self, name: &str, found: &Tensor, tolerance: f64) -> Result<Option<String>> {
        let probe = formula::tensor(&format!("probe.{name}"), found.dims(), DType::F64)?.flatten_all()?;
        let found = found.to_dtype(DType::F64)?.flatten_all()?;
        let l2 = found.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
        let dot = (&found * probe)?.sum_all()?.to_scalar::<f64>()?;
        let error = worst(
            [(self.l2, l2), (self.dot, dot)].map(|(expected, found)| (expected - found).abs() / self.l2),
        );
        Ok((error > tolerance).then(|| format!("{name}: off by {error:.1e}")))
    }
}

fn check_all(dtype: DType, tolerance: impl Fn(&str) -> Tolerance) -> Result<()> {
    let mut report = String::new();
    for (file, golden) in files() {
        // The reference in f64 is slow. Large models are made of what their smaller siblings are made of.
        if dtype == DType::F64 && (golden.params > 30_000_000 || golden.macs > 2_000_000_000) {
            continue;
        }
        let failures = Case::new(&golden, dtype)?.failures(&tolerance(&golden.model))?;
        if !failures.is_empty() {
            let shown = &failures[..failures.len().min(8)];
            report += &format!("{file}: {} wrong:\n  {}\n", failures.len(), shown.join("\n  "));
        }
    }
    assert!(report.is_empty(), "{dtype:?}\n{report}");
    Ok(())
}

#[test]
fn every_model_has_a_file() {
    let files = files_with("");
    for spec in zoo::registry() {
        assert!(files.iter().any(|(_, golden)| golden.model == spec.name), "{}", spec.name);
    }
}

#[test]
fn references_in_f64_agree_with_pytorch() -> Result<()> {
    // Candle walks its graph recursively, and that of the references has a node for each tensor operation: tens of
    // thousands, one behind the other, in a network of a thousand layers.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(1 << 30);
        let checks = thread.spawn_scoped(scope, || check_all(DType::F64, |_| F64))?;
        checks.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn kernels_in_f32_agree_with_pytorch() -> Result<()> {
    check_all(DType::F32, f32_tolerance)
}
