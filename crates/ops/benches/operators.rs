//! Operators over layers of the models, forward alone and with both gradients.
//!
//! ```text
//! cargo bench -p zoo-ops --bench operators -- conv2d/winograd
//! ZOO_INSTRUCTION_SET=avx2 cargo bench -p zoo-ops --bench operators
//! ```
//!
//! Throughput is in multiply-adds per second of a direct sum (forward; three times that with gradients), or in
//! elements of the input.

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use std::time::Duration;
use zoo_ops::{Activation, BatchNorm, Conv2dConfig, FeatureMap, Window2d, activation, backward, batch_norm};
use zoo_ops::{conv2d, gate, global_avg_pool2d, max_pool2d, no_grad};

/// (name, batch, input channels, input side, output channels, kernel, stride, groups)
type Layer = (&'static str, usize, usize, usize, usize, usize, usize, usize);

#[rustfmt::skip]
const LAYERS: &[Layer] = &[
    ("winograd/resnet18 layer1",          32,   64,  32,   64, 3, 1, 1),
    ("winograd/resnet18 layer2",          32,  128,  16,  128, 3, 1, 1),
    ("winograd/resnet18 layer3",          32,  256,   8,  256, 3, 1, 1),
    ("winograd/resnet18 layer4",          32,  512,   4,  512, 3, 1, 1),
    ("winograd/resnet50 layer1 at 224",    8,   64,  56,   64, 3, 1, 1),
    ("winograd/cifar_resnet20 layer2",   128,   32,  16,   32, 3, 1, 1),
    ("gemm/cifar_resnet20 layer1",       128,   16,  32,   16, 3, 1, 1),
    ("gemm/resnet18 layer2, strided",     32,   64,  32,  128, 3, 2, 1),
    ("gemm/resnet18 stem at 224",          8,    3, 224,   64, 7, 2, 1),
    ("gemm/alexnet stem at 224",           8,    3, 224,   64, 11, 4, 1),
    ("gemm/lenet5 first",                128,    1,  28,    6, 5, 1, 1),
    ("gemm/lenet5 second",               128,    6,  14,   16, 5, 1, 1),
    ("pointwise/resnet50 layer1",          8,   64,  56,  256, 1, 1, 1),
    ("pointwise/resnet50 layer2",          8,  512,  28,  128, 1, 1, 1),
    ("pointwise/resnet50 layer3",          8,  256,  14, 1024, 1, 1, 1),
    ("pointwise/resnet50 layer4",          8, 2048,   7,  512, 1, 1, 1),
    ("groups/resnext50 layer1",            8,  128,  56,  128, 3, 1, 32),
    ("groups/resnext50 layer2",            8,  256,  28,  256, 3, 1, 32),
    ("groups/resnext50 layer2, strided",   8,  256,  56,  256, 3, 2, 32),
    ("groups/resnext50 layer3",            8,  512,  14,  512, 3, 1, 32),
    ("groups/shufflenet_v1 pointwise",     8,  240,  28,   60, 1, 1, 3),
    ("depthwise/mobilenet_v2 at 112",      8,   96, 112,   96, 3, 2, 96),
    ("depthwise/mobilenet_v2 at 14",       8,  576,  14,  576, 3, 1, 576),
];

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
}

/// A differentiable map with the elements of `xs`. It does not come from images, whose gradient would be turned to
/// NCHW, but from a gate with an element for each image and channel.
fn differentiable(xs: &FeatureMap) -> Result<(Var, FeatureMap)> {
    let ones = Var::ones((xs.dims().0, xs.dims().3), DType::F32, &Device::Cpu)?;
    let map = gate(xs, &FeatureMap::from_nchw(ones.as_tensor())?)?;
    Ok((ones, map))
}

/// Measures `f` without gradients, and with those of what it depends on.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    shape: [usize; 4],
    work: u64,
    f: impl Fn(&FeatureMap) -> Result<FeatureMap>,
) -> Result<()> {
    let constant = FeatureMap::from_nchw(&random(&shape)?)?;
    group.throughput(Throughput::Elements(work));
    group.bench_function(format!("{name}, forward"), |bencher| {
        bencher.iter(|| no_grad(|| global_avg_pool2d(&f(&constant)?)?.to_logits()).map(drop));
    });
    group.throughput(Throughput::Elements(3 * work));
    group.bench_function(format!("{name}, with gradients"), |bencher| {
        // A second backward through one map is refused, so each has its own.
        bencher.iter_batched(
            || differentiable(&constant),
            |map| {
                let (ones, map) = map?;
                let gradients = backward(&global_avg_pool2d(&f(&map)?)?.to_logits()?.sum_all()?)?;
                Ok::<_, candle_core::Error>((ones, gradients))
            },
            criterion::BatchSize::PerIteration,
        );
    });
    Ok(())
}

fn convolutions(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("conv2d");
    for &(name, n, c_in, side, c_out, kernel, stride, groups) in LAYERS {
        let weight = Var::from_tensor(&random(&[c_out, c_in / groups, kernel, kernel])?)?;
        let config = Conv2dConfig { groups, ..Conv2dConfig::new(stride, kernel / 2) };
        let out = (side + 2 * (kernel / 2) - kernel) / stride + 1;
        let macs = n * out * out * kernel * kernel * c_in / groups * c_out;
        measure(&mut group, name, [n, c_in, side, side], macs as u64, |xs| {
            conv2d(xs, weight.as_tensor(), None, &config)
        })?;
    }
    group.finish();
    Ok(())
}

fn others(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("others");
    let shape = [32, 64, 32, 32];
    let elements = shape.iter().product::<usize>() as u64;
    let scale = || Var::from_tensor(&Tensor::ones(64, DType::F32, &Device::Cpu)?);
    let (gamma, beta) = (scale()?, scale()?);
    let (mean, var) = (scale()?, scale()?);
    let norm = BatchNorm {
        weight: Some(gamma.as_tensor().clone()),
        bias: Some(beta.as_tensor().clone()),
        running_mean: mean,
        running_var: var,
        eps: 1e-5,
        momentum: 0.1,
    };
    measure(&mut group, "batch_norm and relu", shape, elements, |xs| {
        batch_norm(xs, &norm, None, Activation::Relu, true)
    })?;
    measure(&mut group, "relu", shape, elements, |xs| activation(xs, Activation::Relu))?;
    let window = Window2d::square(3, 2).padding(1);
    measure(&mut group, "max_pool2d 3x3 of 64 channels", shape, elements, |xs| max_pool2d(xs, &window))?;
    let window = Window2d::square(2, 2);
    measure(&mut group, "max_pool2d 2x2 of 6 channels", [128, 6, 28, 28], 128 * 6 * 28 * 28, |xs| {
        max_pool2d(xs, &window)
    })?;
    group.finish();
    Ok(())
}

fn all(criterion: &mut Criterion) {
    convolutions(criterion).and_then(|()| others(criterion)).expect("shapes that fit");
}

criterion_group! {
    name = operators;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = all
}
criterion_main!(operators);
