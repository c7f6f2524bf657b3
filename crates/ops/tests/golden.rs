//! The operators against values that PyTorch computed (`scripts/golden/ops.py`): the reference path in f64 to
//! the digits that are stored, the CPU kernels in f32.

mod formula;

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use zoo_ops::{Activation, BatchNorm, Conv2dConfig, FeatureMap, LocalResponseNorm, Targets, Window2d};

const FILES: [&str; 10] = [
    include_str!("golden/activations.json"),
    include_str!("golden/adaptive_avg_pool2d.json"),
    include_str!("golden/avg_pool2d.json"),
    include_str!("golden/batch_norm.json"),
    include_str!("golden/channels.json"),
    include_str!("golden/conv2d.json"),
    include_str!("golden/gate.json"),
    include_str!("golden/local_response_norm.json"),
    include_str!("golden/losses.json"),
    include_str!("golden/max_pool2d.json"),
];

fn json<T>(result: serde_json::Result<T>) -> Result<T> {
    result.map_err(candle_core::Error::wrap)
}

fn usizes(value: &Value) -> Vec<usize> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_u64().map(|v| v as usize)).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    match value.as_array() {
        Some(values) => values.iter().flat_map(floats).collect(),
        None => value.as_f64().into_iter().collect(),
    }
}

/// A parameter of PyTorch's function, which gives pairs as lists.
struct Params<'a>(&'a Value);

impl Params<'_> {
    fn pair(&self, key: &str) -> (usize, usize) {
        match usizes(&self.0[key])[..] {
            [a, b] => (a, b),
            _ => (1, 1),
        }
    }

    fn float(&self, key: &str) -> f64 {
        self.0[key].as_f64().unwrap_or_default()
    }

    fn count(&self, key: &str) -> usize {
        self.0[key].as_u64().unwrap_or_default() as usize
    }

    fn flag(&self, key: &str) -> bool {
        self.0[key].as_bool().unwrap_or_default()
    }

    fn window(&self) -> Window2d {
        Window2d {
            kernel: self.pair("kernel_size"),
            stride: self.pair("stride"),
            padding: self.pair("padding"),
            dilation: self.pair("dilation"),
            ceil_mode: self.flag("ceil_mode"),
        }
    }
}

type Inputs = BTreeMap<String, Var>;

fn batch_norm(params: &Params<'_>, t: &Inputs, residual: bool) -> Result<FeatureMap> {
    let norm = BatchNorm {
        weight: t.get("weight").map(|v| v.as_tensor().clone()),
        bias: t.get("bias").map(|v| v.as_tensor().clone()),
        running_mean: t["running_mean"].clone(),
        running_var: t["running_var"].clone(),
        eps: params.float("eps"),
        momentum: params.float("momentum"),
    };
    let residual = if residual { Some(FeatureMap::from_nchw(&t["residual"])?) } else { None };
    let activation = if residual.is_some() { Activation::Relu } else { Activation::Identity };
    let xs = FeatureMap::from_nchw(&t["input"])?;
    zoo_ops::batch_norm(&xs, &norm, residual.as_ref(), activation, params.flag("training"))
}

fn cross_entropy(params: &Params<'_>, t: &Inputs) -> Result<Tensor> {
    let logits = t["input"].as_tensor();
    let target = &params.0["target"];
    let targets = if target[0].is_array() {
        Targets::Soft(Tensor::from_vec(floats(target), logits.shape(), &Device::Cpu)?)
    } else {
        let labels: Vec<u32> = usizes(target).into_iter().map(|v| v as u32).collect();
        Targets::Classes(Tensor::new(labels, &Device::Cpu)?)
    };
    let weights = match floats(&params.0["weight"]) {
        weights if weights.is_empty() => None,
        weights => Some(Tensor::new(weights, &Device::Cpu)?),
    };
    zoo_ops::cross_entropy(logits, &targets, params.float("label_smoothing"), weights.as_ref())
}

/// The operator under PyTorch's name on the inputs under PyTorch's names.
fn apply(op: &str, params: &Params<'_>, t: &Inputs) -> Result<Tensor> {
    match op {
        "cross_entropy" => return cross_entropy(params, t),
        "mse_loss" => return zoo_ops::mse(&t["input"], &t["target"]),
        "cat" => {
            let (a, b) = (FeatureMap::from_nchw(&t["first"])?, FeatureMap::from_nchw(&t["second"])?);
            return zoo_ops::concat(&[&a, &b])?.to_nchw();
        }
        _ => {}
    }
    let xs = FeatureMap::from_nchw(&t["input"])?;
    let activate = |f| zoo_ops::activation(&xs, f);
    let ys = match op {
        "conv2d" => {
            let config = Conv2dConfig {
                stride: params.pair("stride"),
                padding: params.pair("padding"),
                dilation: params.pair("dilation"),
                groups: params.count("groups"),
            };
            zoo_ops::conv2d(&xs, &t["weight"], t.get("bias").map(|v| v.as_tensor()), &config)
        }
        "linear" => zoo_ops::linear(&xs, &t["weight"], t.get("bias").map(|v| v.as_tensor())),
        "batch_norm" => batch_norm(params, t, false),
        "batch_norm + residual + relu" => batch_norm(params, t, true),
        "max_pool2d" => zoo_ops::max_pool2d(&xs, &params.window()),
        "avg_pool2d" => zoo_ops::avg_pool2d(&xs, &params.window(), params.flag("count_include_pad")),
        "adaptive_avg_pool2d" => zoo_ops::adaptive_avg_pool2d(&xs, params.pair("output_size")),
        "local_response_norm" => {
            let norm = LocalResponseNorm {
                size: params.count("size"),
                alpha: params.float("alpha"),
                beta: params.float("beta"),
                k: params.float("k"),
            };
            zoo_ops::local_response_norm(&xs, &norm)
        }
        "gate" => zoo_ops::gate(&xs, &FeatureMap::from_nchw(&t["gate"])?),
        "radix_softmax" => zoo_ops::radix_softmax(&xs, params.count("radix")),
        "channel_shuffle" => zoo_ops::channel_shuffle(&xs, params.count("groups")),
        "flatten" => {
            let (n, _, _, _) = xs.dims();
            return zoo_ops::flatten(&xs)?.to_logits()?.reshape((n, ()));
        }
        "subsample + pad_channels" => {
            let xs = zoo_ops::subsample2d(&xs, params.count("stride"))?;
            zoo_ops::pad_channels(&xs, params.count("before"), params.count("after"))
        }
        "relu" => activate(Activation::Relu),
        "relu6" => activate(Activation::Relu6),
        "leaky_relu" => activate(Activation::LeakyRelu(params.float("negative_slope") as f32)),
        "sigmoid" => activate(Activation::Sigmoid),
        "tanh" => activate(Activation::Tanh),
        "gelu" => activate(Activation::Gelu),
        "silu" => activate(Activation::Silu),
        "hardsigmoid" => activate(Activation::HardSigmoid),
        "hardswish" => activate(Activation::HardSwish),
        other => bail!("no operator for {other}"),
    };
    ys?.to_nchw()
}

/// Largest difference over the largest expected value.
fn error(found: &Tensor, expected: &Value) -> Result<f64> {
    let found = found.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let expected = floats(expected);
    if found.len() != expected.len() {
        bail!("{} values, expected {}", found.len(), expected.len());
    }
    let scale = expected.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    Ok(found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale)
}

/// The largest error of a case's output, gradients and running statistics.
fn check(case: &Value, dtype: DType) -> Result<f64> {
    let name = case["name"].as_str().unwrap_or_default();
    let mut inputs = Inputs::new();
    for (key, shape) in case["inputs"].as_object().into_iter().flatten() {
        let (full, shape) = (format!("{name}.{key}"), usizes(shape));
        let parameter = ["weight", "bias", "running_mean", "running_var"].contains(&key.as_str());
        let tensor = if parameter {
            formula::state(&full, &shape)?
        } else {
            (formula::tensor(&full, &shape)? * case["scale"].as_f64().unwrap_or(1.0))?
        };
        inputs.insert(key.clone(), Var::from_tensor(&tensor.to_dtype(dtype)?)?);
    }
    let output = apply(case["op"].as_str().unwrap_or_default(), &Params(&case["params"]), &inputs)?;
    // Flat features are maps of one pixel here and matrices there.
    let shape = usizes(&case["output"]["shape"]);
    let output = if output.rank() == 4 && shape.len() == 2 { output.flatten_from(1)? } else { output };
    assert_eq!(output.dims(), shape, "{name}");
    let mut worst = error(&output, &case["output"]["values"])?;
    let probe = formula::tensor(&format!("probe.{name}"), output.dims())?.to_dtype(output.dtype())?;
    let gradients = (output * probe)?.sum_all()?.backward()?;
    for (key, expected) in case["grads"].as_object().into_iter().flatten() {
        // A target is a constant here.
        if key == "target" {
            continue;
        }
        match gradients.get(&inputs[key]) {
            Some(gradient) => worst = worst.max(error(gradient, expected)?),
            None => bail!("{name}: no gradient of {key}"),
        }
    }
    for (key, expected) in case["after"].as_object().into_iter().flatten() {
        worst = worst.max(error(inputs[key].as_tensor(), expected)?);
    }
    Ok(worst)
}

fn check_all(dtype: DType, bound: f64) -> Result<()> {
    let (mut count, mut failures) = (0, Vec::new());
    for file in FILES {
        let document: Value = json(serde_json::from_str(file))?;
        for case in document["cases"].as_array().into_iter().flatten() {
            count += 1;
            let error = check(case, dtype)?;
            if error.is_nan() || error > bound {
                failures.push(format!("{} off by {error:.1e}", case["name"]));
            }
        }
    }
    assert!(count >= 50, "only {count} cases");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Seven significant digits are stored.
#[test]
fn reference_in_f64_equals_pytorch() -> Result<()> {
    check_all(DType::F64, 1e-6)
}

#[test]
fn kernels_in_f32_equal_pytorch() -> Result<()> {
    check_all(DType::F32, 1e-5)
}
