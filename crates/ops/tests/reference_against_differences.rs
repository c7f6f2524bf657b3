//! Every reference path against central differences in f64.

mod cases;

use candle_core::{DType, Device, Result, Tensor};
use cases::{Case, all, draw, evaluate, probe};
use zoo_ops::with_reference;

const EPSILON: f64 = 1e-5;

fn objective(case: &Case, inputs: &[Tensor]) -> Result<f64> {
    probe(&(case.run)(inputs)?)?.to_scalar::<f64>()
}

/// Checks up to eight elements of each gradient, spread over the tensor.
fn check(case: &Case) -> Result<Vec<String>> {
    let (_, gradients) = evaluate(case, &Device::Cpu, DType::F64, DType::F64)?;
    let mut inputs = Vec::new();
    for (i, shape) in case.shapes.iter().enumerate() {
        let coarse = if i == 0 || case.shapes[0] == *shape { DType::BF16 } else { DType::F32 };
        inputs.push(draw(&format!("{} {i}", case.name), shape, coarse)?.to_dtype(DType::F64)?);
    }
    let mut failures = Vec::new();
    for (i, gradient) in gradients.iter().enumerate() {
        let analytic = gradient.flatten_all()?.to_vec1::<f64>()?;
        let rms = (analytic.iter().map(|g| g * g).sum::<f64>() / analytic.len().max(1) as f64).sqrt();
        let values = inputs[i].flatten_all()?.to_vec1::<f64>()?;
        for at in (0..values.len()).step_by(values.len().div_ceil(8).max(1)) {
            let mut moved = inputs.clone();
            let mut side = |delta: f64| -> Result<f64> {
                let mut values = values.clone();
                values[at] += delta;
                moved[i] = Tensor::from_vec(values, inputs[i].shape(), inputs[i].device())?;
                objective(case, &moved)
            };
            let numeric = (side(EPSILON)? - side(-EPSILON)?) / (2.0 * EPSILON);
            if (numeric - analytic[at]).abs() > 1e-5 * (rms + analytic[at].abs()).max(1e-2) {
                failures.push(format!("{}: input {i}[{at}]: {} and {numeric}", case.name, analytic[at]));
            }
        }
    }
    Ok(failures)
}

#[test]
fn gradients_equal_central_differences() -> Result<()> {
    let mut failures = Vec::new();
    for case in all() {
        // The large layers are there for the kernels; differences need two forward passes per element.
        if case.shapes.iter().map(|s| s.iter().product::<usize>()).max() <= Some(8192) {
            match with_reference(|| check(&case)) {
                Ok(found) => failures.extend(found),
                Err(error) => failures.push(format!("{}: {error}", case.name)),
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}
