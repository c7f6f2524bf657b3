//! Against the values of `scripts/golden/training.py` and `scripts/golden/trajectory.py`.

use crate::formula;
use candle_core::{DType, Device, Result, Tensor, Var};
use serde_json::Value;
use zoo::{Config, Model, Params, Stem};
use zoo_ops::{FeatureMap, Targets};
use zoo_trainer::{Gradients, Optimizer, Schedule, ScheduleKind, SgdConfig, train_pass};

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance, "{what} {i}: expected {expected}, found {found}");
    }
}

#[test]
fn learning_rates() {
    let golden = golden("training");
    for case in golden["schedules"].as_array().unwrap() {
        let schedule = Schedule {
            kind: serde_json::from_value::<ScheduleKind>(case["kind"].clone()).unwrap(),
            lr: number(&golden["lr"]),
            total_steps: golden["total_steps"].as_u64().unwrap(),
            warmup_steps: case["warmup_steps"].as_u64().unwrap(),
            milestones: numbers(&golden["milestones"]),
            gamma: number(&golden["gamma"]),
        };
        let rates: Vec<f64> = (0..schedule.total_steps).map(|step| schedule.lr(step)).collect();
        assert_close(&rates, &numbers(&case["lr"]), 1e-8, &format!("{:?}", schedule.kind));
        // Past the end nothing rises again.
        assert!(schedule.lr(schedule.total_steps + 7) <= rates[rates.len() - 1]);
    }
}

/// The parameters of the golden file, from the formula.
fn parameters(golden: &Value) -> Result<Vec<(String, Var)>> {
    let shape = |value: &Value| numbers(value).iter().map(|&side| side as usize).collect::<Vec<_>>();
    let shapes = golden["shapes"].as_object().unwrap();
    shapes
        .iter()
        .map(|(name, dims)| Ok((name.clone(), Var::from_tensor(&formula::state(name, &shape(dims))?)?)))
        .collect()
}

/// What `backward` gives for a loss whose gradients are the formula's `grad.<name>.<step>`.
fn gradients(parameters: &[(String, Var)], step: usize) -> Result<Gradients> {
    let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu)?;
    for (name, var) in parameters {
        let gradient = formula::tensor(&format!("grad.{name}.{step}"), var.dims())?.to_dtype(DType::F32)?;
        loss = (loss + (var.as_tensor() * gradient)?.sum_all()?)?;
    }
    Ok(Gradients::take(parameters, loss.backward()?))
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

#[test]
fn sgd_with_momentum_nesterov_and_decay() -> Result<()> {
    let golden = golden("training");
    for case in golden["sgd"].as_array().unwrap() {
        let config = SgdConfig {
            momentum: number(&case["momentum"]),
            nesterov: case["nesterov"].as_bool().unwrap(),
            weight_decay: number(&case["weight_decay"]),
            decay_biases: false,
        };
        let parameters = parameters(&golden)?;
        let mut optimizer = Optimizer::new(parameters.clone(), config)?;
        for step in 0..golden["steps"].as_u64().unwrap() as usize {
            optimizer.step(&gradients(&parameters, step)?, 0.1 * (step + 1) as f64)?;
        }
        for (name, var) in &parameters {
            assert_close(&values(var)?, &numbers(&case["after"][name]), 2e-6, &format!("{config:?} {name}"));
        }
    }
    Ok(())
}

#[test]
fn clipping_by_the_global_norm() -> Result<()> {
    let golden = golden("training");
    let parameters = parameters(&golden)?;
    for case in golden["clip"].as_array().unwrap() {
        let mut gradients = gradients(&parameters, 0)?;
        assert_close(&[gradients.norm()?], &[number(&case["norm"])], 1e-6, "norm");
        gradients.clip(number(&case["max_norm"]))?;
        for ((name, _), gradient) in parameters.iter().zip(gradients.iter()) {
            let gradient = gradient.map(values).transpose()?.unwrap_or_default();
            assert_close(&gradient, &numbers(&case["clipped"][name]), 1e-6, name);
        }
    }
    Ok(())
}

/// That sum, probe, L1 and L2 norm of a tensor are those of the golden file. The error of a sum is measured
/// against the sum of the magnitudes, as for a probe, because the values cancel.
fn assert_described(name: &str, tensor: &Tensor, expected: &Value, tolerance: f64) -> Result<()> {
    let values = values(tensor)?;
    let probe = formula::uniform(&format!("probe.{name}"), values.len());
    let l1 = number(&expected["l1"]);
    let found = [
        ("sum", values.iter().sum::<f64>()),
        ("dot", values.iter().zip(&probe).map(|(v, p)| v * p).sum()),
        ("l1", values.iter().map(|v| v.abs()).sum()),
    ];
    for (key, found) in found {
        assert_close(&[found], &[number(&expected[key])], tolerance * l1, &format!("{name} {key}"));
    }
    let (found, expected) = (values.iter().map(|v| v * v).sum::<f64>().sqrt(), number(&expected["l2"]));
    assert_close(&[found], &[expected], tolerance * expected, &format!("{name} l2"));
    Ok(())
}

/// Twenty steps from the same start on the same images; everything agrees to `tolerance`, relative.
fn trajectory(name: &str, tolerance: f64) -> Result<()> {
    let golden = golden(&format!("trajectory_{name}"));
    let input: Vec<usize> = numbers(&golden["input"]).iter().map(|&side| side as usize).collect();
    let (n, num_classes) = (input[0], golden["num_classes"].as_u64().unwrap() as usize);
    let config = Config {
        num_classes,
        in_chans: input[1],
        image_size: (input[2], input[3]),
        dropout: None,
        drop_path: None,
        stem: Stem::Auto,
        noise: Default::default(),
    };
    let params = Params::new(0);
    let model = Model::new(name, config, params.var_builder(&Device::Cpu))?;
    for (name, var) in params.all() {
        var.set(&formula::state(&name, var.dims())?)?;
    }
    let constants = &golden["optimizer"];
    let sgd = SgdConfig {
        momentum: number(&constants["momentum"]),
        nesterov: constants["nesterov"].as_bool().unwrap(),
        weight_decay: number(&constants["weight_decay"]),
        decay_biases: false,
    };
    let mut optimizer = Optimizer::new(params.trainable(), sgd)?;
    let losses = numbers(&golden["loss"]);
    let schedule = Schedule {
        kind: ScheduleKind::Cosine,
        lr: number(&golden["lr"][0]),
        total_steps: losses.len() as u64,
        warmup_steps: 0,
        milestones: Vec::new(),
        gamma: 1.0,
    };
    for (step, expected) in losses.iter().enumerate() {
        let images = golden["images"][step].as_str().unwrap();
        let images = formula::tensor(images, &input)?.to_dtype(DType::F32)?;
        let targets: Vec<u32> = (0..n).map(|i| ((i * 7 + step) % num_classes) as u32).collect();
        let targets = Targets::Classes(Tensor::new(targets, &Device::Cpu)?);
        let smoothing = number(&golden["label_smoothing"]);
        let pass = train_pass(&model, &FeatureMap::from_nchw(&images)?, &targets, smoothing, 1.0)?;
        let loss = f64::from(pass.loss.to_scalar::<f32>()?);
        assert_close(&[loss], &[*expected], tolerance * expected, &format!("loss of step {step}"));
        let gradients = Gradients::take(optimizer.parameters(), pass.gradients);
        let lr = schedule.lr(step as u64);
        assert_close(&[lr], &[number(&golden["lr"][step])], 1e-9, "learning rate");
        optimizer.step(&gradients, lr)?;
        if let Some(after) = golden.get(format!("after_{}", step + 1)) {
            assert_eq!(after.as_object().unwrap().len(), params.trainable().len());
            for (name, var) in params.trainable() {
                assert_described(&name, &var, &after[&name], tolerance)?;
            }
        }
    }
    let running = golden.get("running").and_then(Value::as_object);
    assert_eq!(running.map_or(0, |r| r.len()), params.all().len() - params.trainable().len());
    for (name, expected) in running.into_iter().flatten() {
        let (_, var) = params.all().into_iter().find(|(known, _)| known == name).unwrap();
        assert_described(name, &var, expected, tolerance)?;
    }
    Ok(())
}

#[test]
fn twenty_steps_of_lenet5() -> Result<()> {
    trajectory("lenet5", 1e-4)
}

#[test]
fn twenty_steps_of_cifar_resnet20() -> Result<()> {
    trajectory("cifar_resnet20", 1e-4)
}
