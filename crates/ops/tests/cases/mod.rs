//! The operators on many shapes, as functions from tensors to a tensor that every test runs its own way.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand_distr::{Distribution, StandardNormal};
use std::cell::RefCell;
use zoo_ops::rng::Noise;
use zoo_ops::{Activation, BatchNorm, Conv2dConfig, FeatureMap, LocalResponseNorm, Targets, Window2d};

thread_local! {
    static DEVICE: RefCell<Device> = const { RefCell::new(Device::Cpu) };
}

/// Where the cases of this thread run.
fn device() -> Device {
    DEVICE.with_borrow(Device::clone)
}

type Run = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// One operator on one shape. `run` maps the inputs to a tensor; the first input is the images [n, c, h, w],
/// in the dtype that is tested, the others are parameters.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) shapes: Vec<Vec<usize>>,
    pub(crate) run: Run,
}

fn case(name: String, shapes: &[&[usize]], run: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Case {
    Case { name, shapes: shapes.iter().map(|s| s.to_vec()).collect(), run: Box::new(run) }
}

/// Standard normal values that depend on the case and the input alone.
pub(crate) fn draw(name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let mut rng = zoo_ops::rng::stream(1, name, 0);
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| StandardNormal.sample(&mut rng)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(&device())
}

fn map(xs: &Tensor) -> Result<FeatureMap> {
    FeatureMap::from_nchw(xs)
}

const ACTIVATIONS: [Activation; 10] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Relu6,
    Activation::LeakyRelu(0.1),
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::Gelu,
    Activation::Silu,
    Activation::HardSwish,
    Activation::HardSigmoid,
];

/// n, c_in, h, w, c_out, kernel, stride, padding, dilation, groups
type ConvRow = (
    usize,
    usize,
    usize,
    usize,
    usize,
    (usize, usize),
    (usize, usize),
    (usize, usize),
    (usize, usize),
    usize,
);

#[rustfmt::skip]
const CONVS: &[ConvRow] = &[
    // Layers of LeNet, CIFAR ResNet, ResNet, AlexNet, Inception and MobileNet.
    (4, 1, 28, 28, 6, (5, 5), (1, 1), (2, 2), (1, 1), 1),
    (2, 3, 32, 32, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 16, 32, 32, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 64, 8, 8, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 32, 16, 16, 64, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    (2, 32, 16, 16, 64, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (1, 64, 14, 14, 256, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (1, 3, 64, 64, 64, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    (1, 3, 67, 67, 24, (11, 11), (4, 4), (2, 2), (1, 1), 1),
    (1, 24, 17, 17, 20, (1, 7), (1, 1), (0, 3), (1, 1), 1),
    (1, 20, 17, 17, 24, (7, 1), (1, 1), (3, 0), (1, 1), 1),
    (2, 32, 14, 14, 32, (3, 3), (1, 1), (1, 1), (1, 1), 32),
    (2, 32, 15, 14, 32, (3, 3), (2, 2), (1, 1), (1, 1), 32),
    (2, 32, 9, 9, 32, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    // Narrow groups of two and eight, whole and odd numbers of panels, strided, and wider ones.
    (2, 20, 9, 9, 20, (3, 3), (1, 1), (1, 1), (1, 1), 10),
    (2, 12, 10, 9, 12, (3, 3), (2, 2), (1, 1), (1, 1), 3),
    (2, 24, 14, 15, 24, (3, 3), (2, 2), (1, 1), (1, 1), 3),
    (3, 40, 30, 7, 40, (5, 5), (1, 1), (2, 2), (1, 1), 5),
    (2, 72, 28, 28, 72, (5, 5), (2, 2), (2, 2), (1, 1), 72),
    (2, 32, 7, 9, 32, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    (2, 24, 8, 8, 12, (1, 1), (1, 1), (0, 0), (1, 1), 3),
    (2, 8, 6, 6, 8, (1, 1), (1, 1), (0, 0), (1, 1), 8),
    (2, 32, 6, 6, 32, (1, 1), (2, 2), (0, 0), (1, 1), 8),
    // Large enough for minimal filtering, with edges inside tiles.
    (2, 64, 32, 32, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (7, 48, 14, 13, 51, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (6, 50, 15, 17, 48, (3, 3), (1, 1), (0, 2), (1, 1), 1),
    (9, 19, 11, 14, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (9, 16, 14, 11, 37, (3, 3), (1, 1), (1, 0), (1, 1), 1),
    // Few tiles, enough for an inference.
    (1, 32, 7, 9, 40, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 17, 16, 15, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    // So many tiles that several tasks sum weight gradients, each in several blocks.
    (5, 17, 29, 32, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    // As wide as the map: TextCNN's, and with more channels, strided and padded on the other axis.
    (2, 1, 13, 24, 20, (4, 24), (1, 1), (0, 0), (1, 1), 1),
    (2, 3, 8, 5, 7, (3, 5), (2, 1), (1, 0), (2, 1), 1),
    // Odd ones.
    (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (3, 17, 1, 1, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 3, 7, 8, 5, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    (2, 17, 5, 9, 17, (3, 3), (3, 3), (1, 1), (1, 1), 1),
    (2, 3, 11, 6, 17, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    (2, 4, 9, 7, 6, (3, 2), (2, 1), (0, 1), (1, 2), 2),
    (1, 3, 6, 5, 6, (3, 3), (1, 1), (3, 3), (1, 1), 3),
    (2, 17, 7, 5, 17, (5, 3), (2, 3), (2, 0), (1, 1), 17),
    (2, 6, 9, 9, 6, (3, 3), (2, 2), (2, 2), (2, 2), 6),
    (1, 2, 3, 3, 4, (2, 2), (1, 1), (2, 2), (1, 1), 1),
    (2, 5, 9, 16, 3, (3, 5), (2, 2), (1, 2), (1, 1), 1),
    (2, 3, 8, 9, 12, (4, 3), (1, 1), (1, 2), (1, 1), 1),
    (1, 2, 9, 9, 4, (2, 2), (4, 4), (0, 0), (1, 1), 1),
    (0, 3, 8, 8, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    // Few channels on both sides: rows of several registers, an image in bands, windows of every kind, too wide a padding.
    (3, 3, 13, 70, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 3, 90, 64, 7, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 4, 21, 12, 5, (5, 3), (2, 1), (2, 1), (1, 2), 1),
    (2, 2, 9, 33, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (2, 1, 3, 2, 2, (2, 3), (1, 1), (3, 9), (2, 1), 1),
];

fn convs(cases: &mut Vec<Case>) {
    for &(n, c_in, h, w, c_out, kernel, stride, padding, dilation, groups) in CONVS {
        let config = Conv2dConfig { stride, padding, dilation, groups };
        let weight = [c_out, c_in / groups, kernel.0, kernel.1];
        let name = format!("conv2d {n}x{c_in}x{h}x{w} to {c_out}, {kernel:?} {config:?}");
        let images = [n, c_in, h, w];
        cases.push(case(name.clone(), &[&images, &weight], move |t| {
            zoo_ops::conv2d(&map(&t[0])?, &t[1], None, &config)?.to_nchw()
        }));
        cases.push(case(name + " with bias", &[&images, &weight, &[c_out]], move |t| {
            zoo_ops::conv2d(&map(&t[0])?, &t[1], Some(&t[2]), &config)?.to_nchw()
        }));
    }
    for (n, c_in, c_out) in [(4, 120, 84), (1, 1, 1), (3, 17, 10)] {
        cases.push(case(
            format!("linear {n}: {c_in} to {c_out}"),
            &[&[n, c_in], &[c_out, c_in], &[c_out]],
            |t| zoo_ops::linear(&map(&t[0])?, &t[1], Some(&t[2]))?.to_nchw(),
        ));
    }
}

/// A batch norm with γ and β as inputs 1 and 2 and fixed running statistics.
fn norm(t: &[Tensor]) -> Result<BatchNorm> {
    let c = t[1].elem_count();
    let statistics = |purpose: &str| draw(purpose, &[c], t[1].dtype());
    Ok(BatchNorm {
        weight: Some(t[1].clone()),
        bias: Some(t[2].clone()),
        running_mean: Var::from_tensor(&statistics("running mean")?)?,
        running_var: Var::from_tensor(&(statistics("running var")?.sqr()? + 0.5)?)?,
        eps: 1e-5,
        momentum: 0.1,
    })
}

fn norms(cases: &mut Vec<Case>) {
    let shapes = [[4, 16, 8, 8], [2, 3, 5, 7], [8, 17, 1, 1], [1, 64, 30, 20], [3, 1, 2, 3]];
    for shape in shapes {
        let c = shape[1];
        for activation in ACTIVATIONS {
            for train in [true, false] {
                let name = format!("batch_norm {shape:?} {activation:?} train {train}");
                cases.push(case(name.clone(), &[&shape, &[c], &[c]], move |t| {
                    zoo_ops::batch_norm(&map(&t[0])?, &norm(t)?, None, activation, train)?.to_nchw()
                }));
                cases.push(case(name + " with residual", &[&shape, &[c], &[c], &shape], move |t| {
                    let residual = map(&t[3].to_dtype(t[0].dtype())?)?;
                    zoo_ops::batch_norm(&map(&t[0])?, &norm(t)?, Some(&residual), activation, train)?
                        .to_nchw()
                }));
            }
        }
    }
}

fn pools(cases: &mut Vec<Case>) {
    let window = |kernel, stride, padding, ceil_mode| Window2d {
        kernel,
        stride,
        padding,
        dilation: (1, 1),
        ceil_mode,
    };
    let windows = [
        window((2, 2), (2, 2), (0, 0), false),
        window((3, 3), (2, 2), (1, 1), false),
        window((3, 3), (2, 2), (0, 0), true),
        window((3, 3), (1, 1), (1, 1), false),
        window((3, 2), (2, 3), (1, 0), true),
        window((2, 2), (3, 3), (1, 1), true),
        window((1, 1), (2, 2), (0, 0), false),
    ];
    for shape in [[2, 3, 5, 5], [2, 17, 7, 8], [1, 1, 13, 6], [2, 8, 16, 16], [0, 3, 6, 6], [2, 20, 2, 2]] {
        for window in windows {
            // Windows larger than the map are for those that may hang over its edge.
            if shape[2] < window.kernel.0 && window.padding == (0, 0) && !window.ceil_mode {
                continue;
            }
            cases.push(case(format!("max_pool2d {shape:?} {window:?}"), &[&shape], move |t| {
                zoo_ops::max_pool2d(&map(&t[0])?, &window)?.to_nchw()
            }));
            for include in [true, false] {
                cases.push(case(format!("avg_pool2d {shape:?} {window:?} {include}"), &[&shape], move |t| {
                    zoo_ops::avg_pool2d(&map(&t[0])?, &window, include)?.to_nchw()
                }));
            }
        }
        for out in [(1, 1), (2, 3), (6, 6), (7, 7)] {
            cases.push(case(format!("adaptive_avg_pool2d {shape:?} to {out:?}"), &[&shape], move |t| {
                zoo_ops::adaptive_avg_pool2d(&map(&t[0])?, out)?.to_nchw()
            }));
        }
        cases.push(case(format!("subsample2d {shape:?}"), &[&shape], |t| {
            zoo_ops::subsample2d(&map(&t[0])?, 2)?.to_nchw()
        }));
    }
    for shape in [[2, 3, 2, 2], [1, 17, 2, 5], [2, 8, 1, 2]] {
        // Larger than the map along one axis or both.
        let hanging =
            if shape[2] == 1 { Window2d::square(2, 2) } else { Window2d::square(3, 2) }.ceil_mode(true);
        cases.push(case(format!("max_pool2d {shape:?} {hanging:?}"), &[&shape], move |t| {
            zoo_ops::max_pool2d(&map(&t[0])?, &hanging)?.to_nchw()
        }));
        cases.push(case(format!("avg_pool2d {shape:?} {hanging:?}"), &[&shape], move |t| {
            zoo_ops::avg_pool2d(&map(&t[0])?, &hanging, true)?.to_nchw()
        }));
    }
    let dilated = Window2d { dilation: (2, 2), ..Window2d::square(2, 1) };
    cases.push(case("max_pool2d with dilation".into(), &[&[2, 3, 6, 7]], move |t| {
        zoo_ops::max_pool2d(&map(&t[0])?, &dilated)?.to_nchw()
    }));
}

fn others(cases: &mut Vec<Case>) {
    for activation in ACTIVATIONS {
        cases.push(case(format!("{activation:?}"), &[&[2, 17, 5, 9]], move |t| {
            zoo_ops::activation(&map(&(&t[0] * 3.0)?)?, activation)?.to_nchw()
        }));
    }
    for (size, alpha, k) in [(5, 1e-1, 2.0), (4, 0.3, 1.0), (1, 0.5, 1.0), (9, 1e-1, 1.0)] {
        let norm = LocalResponseNorm { size, alpha, beta: 0.75, k };
        cases.push(case(format!("local_response_norm {size}"), &[&[2, 7, 3, 5]], move |t| {
            zoo_ops::local_response_norm(&map(&t[0])?, &norm)?.to_nchw()
        }));
    }
    cases.push(case("add".into(), &[&[2, 3, 4, 5], &[2, 3, 4, 5]], |t| {
        zoo_ops::add(&map(&t[0])?, &map(&t[1].to_dtype(t[0].dtype())?)?)?.to_nchw()
    }));
    cases.push(case("add_scaled".into(), &[&[2, 3, 4, 5], &[2, 3, 4, 5]], |t| {
        zoo_ops::add_scaled(&map(&t[0])?, &map(&t[1].to_dtype(t[0].dtype())?)?, 0.17)?.to_nchw()
    }));
    // Images of a few pixels share a task; a large one has several.
    for shape in [[3, 17, 5, 7], [2, 4, 29, 20], [5, 33, 1, 1], [1, 1, 2, 3], [0, 3, 4, 4]] {
        cases.push(case(format!("gate {shape:?}"), &[&shape, &[shape[0], shape[1], 1, 1]], |t| {
            zoo_ops::gate(&map(&t[0])?, &map(&t[1].to_dtype(t[0].dtype())?)?)?.to_nchw()
        }));
    }
    // The factors of a map come from the map itself.
    cases.push(case("squeeze and excite".into(), &[&[3, 6, 9, 8]], |t| {
        let xs = map(&t[0])?;
        let factors = zoo_ops::activation(&zoo_ops::global_avg_pool2d(&xs)?, Activation::Sigmoid)?;
        zoo_ops::gate(&xs, &factors)?.to_nchw()
    }));
    cases.push(case("concat and split".into(), &[&[2, 3, 4, 5], &[2, 6, 4, 5]], |t| {
        let both = zoo_ops::concat(&[&map(&t[0])?, &map(&t[1].to_dtype(t[0].dtype())?)?])?;
        let parts = zoo_ops::split(&both, &[2, 4, 3])?;
        zoo_ops::concat(&[&parts[2], &parts[0]])?.to_nchw()
    }));
    for parts in [1, 2, 3] {
        cases.push(case(format!("interleave in {parts}"), &[&[2, 6, 3, 2], &[2, 6, 3, 2]], move |t| {
            let second = map(&t[1].to_dtype(t[0].dtype())?)?;
            let maps = zoo_ops::interleave(&map(&t[0])?, &second, parts)?;
            // All of them matter, each with a weight of its own.
            let weighted = maps.iter().zip(1..).map(|(map, weight)| map.to_nchw()? * f64::from(weight));
            Tensor::cat(&weighted.collect::<Result<Vec<_>>>()?, 1)
        }));
    }
    cases.push(case("channel_shuffle".into(), &[&[2, 6, 3, 2]], |t| {
        zoo_ops::channel_shuffle(&map(&t[0])?, 3)?.to_nchw()
    }));
    for (radix, shape) in [(2, [3, 8, 1, 1]), (3, [2, 6, 3, 2]), (1, [2, 3, 1, 1])] {
        cases.push(case(format!("radix_softmax {radix}"), &[&shape], move |t| {
            zoo_ops::radix_softmax(&map(&t[0])?, radix)?.to_nchw()
        }));
    }
    // Tables so small that words share rows, longer sentences than a block has threads, padding among them.
    for (rows, words, dim) in [(3, 5, 4), (40, 300, 2), (70_000, 12, 1)] {
        cases.push(case(
            format!("embedding {rows} {words}"),
            &[&[2, 1, words, dim], &[rows, dim]],
            move |t| {
                let word = |i: usize| (i * 7919 % 83 % rows * if rows > 256 { 821 } else { 1 }) as u32;
                let bytes: Vec<u8> =
                    (0..2 * words).flat_map(|i| zoo_ops::embedding::word_bytes(word(i))).collect();
                let half: (&[f32], &[f32]) = (&[0.5; 3], &[0.5; 3]);
                let images = FeatureMap::from_bytes(&bytes, (2, 1, words, 3), half, t[0].dtype(), &device())?;
                zoo_ops::embedding(&images, &t[1])?.to_nchw()? + &t[0]
            },
        ));
    }
    cases.push(case("pad_channels".into(), &[&[2, 3, 3, 2]], |t| {
        zoo_ops::pad_channels(&map(&t[0])?, 1, 2)?.to_nchw()
    }));
    cases.push(case("flatten".into(), &[&[2, 3, 4, 5]], |t| zoo_ops::flatten(&map(&t[0])?)?.to_nchw()));
    cases.push(case("dropout".into(), &[&[2, 3, 4, 5]], |t| {
        zoo_ops::dropout(&map(&t[0])?, 0.3, &Noise::new(3), true)?.to_nchw()
    }));
    cases.push(case("drop_path".into(), &[&[9, 3, 2, 2]], |t| {
        zoo_ops::drop_path(&map(&t[0])?, 0.5, &Noise::new(3), true)?.to_nchw()
    }));
    for (smoothing, weighted) in [(0.0, false), (0.1, false), (0.0, true), (0.2, true)] {
        cases.push(case(format!("cross_entropy {smoothing} weighted {weighted}"), &[&[5, 7]], move |t| {
            let labels = Targets::Classes(Tensor::new(&[3u32, 0, 6, 3, 1], &Device::Cpu)?);
            let weights = Tensor::arange(1f32, 8.0, &device())?;
            let logits = logits(&t[0])?;
            zoo_ops::cross_entropy(&logits, &labels, smoothing, weighted.then_some(&weights))
        }));
        cases.push(case(
            format!("cross_entropy soft {smoothing} weighted {weighted}"),
            &[&[5, 7]],
            move |t| {
                let soft = candle_nn::ops::softmax(&draw("soft targets", &[5, 7], DType::F32)?, 1)?;
                let weights = Tensor::arange(1f32, 8.0, &device())?;
                let logits = logits(&t[0])?;
                zoo_ops::cross_entropy(&logits, &Targets::Soft(soft), smoothing, weighted.then_some(&weights))
            },
        ));
    }
    cases.push(case("mse".into(), &[&[5, 7]], |t| {
        zoo_ops::mse(&t[0], &draw("mse targets", &[5, 7], DType::F32)?.to_dtype(t[0].dtype())?)
    }));
}

/// As they leave a network.
fn logits(xs: &Tensor) -> Result<Tensor> {
    xs.to_dtype(if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 })
}

pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    convs(&mut cases);
    norms(&mut cases);
    pools(&mut cases);
    others(&mut cases);
    cases
}

/// The inputs of a case on a device: images in one dtype, parameters in another.
pub(crate) fn inputs(case: &Case, on: &Device, images: DType, params: DType) -> Result<Vec<Var>> {
    DEVICE.set(on.clone());
    let mut vars = Vec::new();
    for (i, shape) in case.shapes.iter().enumerate() {
        let dtype = if i == 0 { images } else { params };
        // All precisions start from the same numbers, those of the coarsest.
        let coarse = if i == 0 { DType::BF16 } else { DType::F32 };
        let coarse = if case.shapes[0] == *shape { DType::BF16 } else { coarse };
        let values = draw(&format!("{} {i}", case.name), shape, coarse)?;
        vars.push(Var::from_tensor(&values.to_dtype(dtype)?)?);
    }
    Ok(vars)
}

/// The output of a case and the gradients of Σ output · probe with respect to each input, for inputs of which
/// the first has `images` as its dtype and the others `params`. It runs on a device, and what it gives is on the CPU.
pub(crate) fn evaluate(
    case: &Case,
    on: &Device,
    images: DType,
    params: DType,
) -> Result<(Tensor, Vec<Tensor>)> {
    let vars = inputs(case, on, images, params)?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let output = (case.run)(&tensors)?;
    let loss = probe(&output)?;
    let gradients = loss.backward()?;
    let gradient = |v: &Var| match gradients.get(v) {
        Some(g) => g.to_device(&Device::Cpu)?.to_dtype(DType::F64),
        // Candle gives none where a batch is empty.
        None if case.shapes[0][0] == 0 => Tensor::zeros(v.shape(), DType::F64, &Device::Cpu),
        None => candle_core::bail!("no gradient"),
    };
    Ok((
        output.to_device(&Device::Cpu)?.to_dtype(DType::F64)?,
        vars.iter().map(gradient).collect::<Result<_>>()?,
    ))
}

/// Σ output · probe in at least f32.
pub(crate) fn probe(output: &Tensor) -> Result<Tensor> {
    let dtype = if output.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let probe = draw("probe", output.dims(), DType::F32)?.to_dtype(dtype)?;
    (output.to_dtype(dtype)? * probe)?.sum_all()
}
