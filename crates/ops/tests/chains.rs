//! Convolutions that are computed with their neighbours or a max-pool, a few rows at a time, against each on its own:
//! bit for bit, since no sum depends on how a map is cut.

use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_ops::{
    Activation, BatchNorm, Conv2dConfig, FeatureMap, Window2d, batch_norm, conv2d, flatten, max_pool2d,
    no_grad,
};

fn tensor(shape: &[usize], seed: usize) -> Result<Tensor> {
    let value = |i: usize| ((i * 73 + seed * 29 + i * i % 17) % 199) as f32 / 100.0 - 1.0;
    Tensor::from_vec((0..shape.iter().product()).map(value).collect(), shape, &Device::Cpu)
}

/// A convolution with what comes after it.
struct Layer {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
    norm: Option<BatchNorm>,
    activation: Activation,
}

impl Layer {
    fn new(
        c_in: usize,
        c_out: usize,
        kernel: usize,
        config: Conv2dConfig,
        activation: Activation,
    ) -> Result<Self> {
        let weight = tensor(&[c_out, c_in / config.groups, kernel, kernel], c_out + kernel)?;
        let norm = BatchNorm {
            weight: Some(tensor(&[c_out], 3)?),
            bias: Some(tensor(&[c_out], 5)?),
            running_mean: Var::from_tensor(&tensor(&[c_out], 7)?)?,
            running_var: Var::from_tensor(&tensor(&[c_out], 9)?.sqr()?.affine(1.0, 0.5)?)?,
            momentum: 0.1,
            eps: 1e-5,
        };
        Ok(Self { weight, bias: None, config, norm: Some(norm), activation })
    }

    fn forward(&self, xs: &FeatureMap, residual: Option<&FeatureMap>) -> Result<FeatureMap> {
        let ys = conv2d(xs, &self.weight, self.bias.as_ref(), &self.config)?;
        match &self.norm {
            Some(norm) => batch_norm(&ys, norm, residual, self.activation, false),
            None => Ok(ys),
        }
    }
}

struct Case {
    /// Images, height, width and channels.
    dims: (usize, usize, usize, usize),
    /// What comes before the narrow groups: channels that it gives, kernel and stride.
    widen: Option<(usize, usize, usize)>,
    /// Channels of a group, kernel, stride and padding.
    narrow: (usize, usize, usize, usize),
    /// Channels of a 1×1 convolution after it.
    follow: Option<usize>,
    activation: Activation,
    residual: bool,
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    use Activation::{HardSwish, Identity, Relu, Relu6, Silu};
    let case = |dims, widen, narrow, follow, activation, residual| Case { dims, widen, narrow, follow, activation, residual };
    vec![
        // Blocks of MobileNetV2: high maps in bands, low ones whole, in either case with and without a residual.
        case((1, 56, 56, 24), Some((144, 1, 1)), (1, 3, 1, 1), Some(24), Relu6, true),
        case((1, 57, 55, 16), Some((96, 1, 1)), (1, 3, 2, 1), Some(24), Relu6, false),
        case((9, 14, 14, 32), Some((192, 1, 1)), (1, 3, 1, 1), Some(32), Relu6, true),
        case((9, 7, 7, 40), Some((200, 1, 1)), (1, 5, 1, 2), Some(48), HardSwish, false),
        // A stem, whose pixels see others, before it.
        case((3, 64, 50, 3), Some((32, 3, 2)), (1, 3, 1, 1), Some(16), Relu, false),
        // Nothing after it, as where a gate comes next; nothing before it.
        case((8, 28, 28, 24), Some((72, 1, 1)), (1, 5, 2, 2), None, Silu, false),
        case((8, 28, 28, 64), None, (1, 3, 1, 1), Some(128), Relu, false),
        case((9, 15, 13, 20), None, (1, 3, 2, 1), Some(30), Relu6, false),
        // Groups of a few channels, as in ResNeXt; fewer channels than a register has.
        case((2, 56, 30, 64), Some((128, 1, 1)), (4, 3, 1, 1), Some(256), Relu, false),
        case((9, 14, 14, 64), Some((96, 1, 1)), (8, 3, 2, 1), Some(128), Relu, false),
        case((9, 16, 12, 5), Some((10, 1, 1)), (2, 3, 1, 1), Some(7), Identity, false),
        // Windows higher than the map, and steps wider than the window.
        case((9, 3, 20, 32), Some((64, 1, 1)), (1, 7, 1, 3), Some(32), Relu6, true),
        case((9, 31, 29, 32), Some((64, 1, 1)), (1, 1, 3, 0), Some(32), Relu6, false),
        case((9, 9, 8, 32), Some((64, 1, 1)), (1, 3, 2, 3), Some(32), Relu6, false),
    ]
}

/// The output, each convolution `alone` or with its neighbours.
fn evaluate(case: &Case, dtype: DType, alone: bool) -> Result<Vec<f32>> {
    let (n, h, w, c) = case.dims;
    let xs = FeatureMap::from_nchw(&tensor(&[n, c, h, w], 1)?.to_dtype(dtype)?)?;
    let (group, kernel, stride, padding) = case.narrow;
    let wide = case.widen.map_or(c, |(channels, ..)| channels);
    let mut layers = Vec::new();
    if let Some((channels, kernel, stride)) = case.widen {
        layers.push(Layer::new(c, channels, kernel, Conv2dConfig::new(stride, kernel / 2), case.activation)?);
    }
    let config = Conv2dConfig::new(stride, padding).groups(wide / group);
    layers.push(Layer::new(wide, wide, kernel, config, case.activation)?);
    if let Some(channels) = case.follow {
        layers.push(Layer::new(wide, channels, 1, Conv2dConfig::default(), Activation::Identity)?);
    }
    // A bias without a normalisation is one, too.
    if !case.residual
        && let Some(last) = layers.last_mut()
    {
        let bias = tensor(&[last.weight.dim(0)?], 11)?;
        (last.bias, last.norm) = (Some(bias), None);
    }
    no_grad(|| {
        let mut ys = xs.clone();
        for (i, layer) in layers.iter().enumerate() {
            let residual = (case.residual && i + 1 == layers.len()).then_some(&xs);
            ys = layer.forward(&ys, residual)?;
            if alone {
                ys.to_nchw()?;
            }
        }
        ys.to_nchw()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    })
}

fn compare(dtype: DType) -> Result<()> {
    for (i, case) in cases().iter().enumerate() {
        let (together, alone) = (evaluate(case, dtype, false)?, evaluate(case, dtype, true)?);
        assert!(alone.iter().any(|y| *y != 0.0));
        let same = together.iter().zip(&alone).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        assert_eq!(same, alone.len(), "case {i} in {dtype:?}");
    }
    Ok(())
}

#[test]
fn neighbours_take_a_batch_without_images() -> Result<()> {
    for case in cases().iter_mut() {
        case.dims.0 = 0;
        assert!(evaluate(case, DType::F32, false)?.is_empty());
    }
    Ok(())
}

/// One channel of h×w pixels is flattened to h·w channels where it lies, and then looks like the input of another layer.
#[test]
fn neighbours_give_the_same_with_a_flattening_between() -> Result<()> {
    let (n, side) = (9, 8);
    let wide = side * side;
    let xs = FeatureMap::from_nchw(&tensor(&[n, 16, side, side], 1)?)?;
    let layers = [
        Layer::new(16, 1, 1, Conv2dConfig::default(), Activation::Relu)?,
        Layer::new(wide, wide, 1, Conv2dConfig::default().groups(wide), Activation::Relu)?,
        Layer::new(wide, 32, 1, Conv2dConfig::default(), Activation::Identity)?,
    ];
    let evaluate = |alone: bool| -> Result<Vec<f32>> {
        let mut ys = layers[0].forward(&xs, None)?;
        if alone {
            ys.to_nchw()?;
        }
        ys = flatten(&ys)?;
        for layer in &layers[1..] {
            ys = layer.forward(&ys, None)?;
        }
        ys.to_nchw()?.flatten_all()?.to_vec1()
    };
    assert_eq!(no_grad(|| evaluate(false))?, no_grad(|| evaluate(true))?);
    // A normalisation of the flattened map is none of the convolution's.
    let norm = layers[1].norm.as_ref().unwrap();
    let normalised = |alone: bool| -> Result<Vec<f32>> {
        let ys = conv2d(&xs, &layers[0].weight, None, &layers[0].config)?;
        if alone {
            ys.to_nchw()?;
        }
        batch_norm(&flatten(&ys)?, norm, None, Activation::Relu, false)?.to_nchw()?.flatten_all()?.to_vec1()
    };
    assert_eq!(no_grad(|| normalised(false))?, no_grad(|| normalised(true))?);
    Ok(())
}

/// A max-pool after a convolution whose result is large: of one image in bands and of many, of few channels and many.
fn compare_pooled(dtype: DType) -> Result<()> {
    use Activation::{Identity, Relu};
    let window = Window2d::square;
    let ceil = Window2d { ceil_mode: true, ..window(3, 2) };
    let uneven =
        Window2d { kernel: (2, 3), stride: (3, 1), padding: (0, 1), dilation: (2, 1), ceil_mode: false };
    let spread = Window2d { padding: (1, 0), dilation: (1, 3), ..window(3, 2) };
    for (dims, c_out, (kernel, stride), activation, pool) in [
        ((1, 225, 223, 3), 176, (3, 2), Relu, window(3, 2).padding(1)),
        ((9, 64, 64, 3), 66, (3, 1), Relu, window(2, 2)),
        ((13, 200, 180, 1), 6, (5, 1), Identity, ceil),
        // So few channels that the pool is always computed with the convolution, where it may be.
        ((1, 28, 28, 1), 6, (5, 1), Relu, window(2, 2)),
        ((3, 33, 71, 3), 8, (3, 1), Relu, ceil),
        ((2, 34, 32, 2), 3, (3, 1), Relu, ceil),
        ((2, 40, 45, 4), 1, (3, 1), Identity, spread),
        ((2, 40, 45, 4), 1, (3, 1), Identity, uneven),
        ((5, 66, 130, 2), 66, (3, 1), Relu, window(3, 1).padding(1)),
        ((2, 226, 257, 3), 34, (3, 1), Relu, window(2, 3)),
        ((2, 226, 257, 3), 34, (3, 1), Identity, uneven),
    ] {
        let (n, h, w, c) = dims;
        let xs = FeatureMap::from_nchw(&tensor(&[n, c, h, w], 1)?.to_dtype(dtype)?)?;
        let mut layer = Layer::new(c, c_out, kernel, Conv2dConfig::new(stride, kernel / 2), activation)?;
        if activation == Identity {
            (layer.bias, layer.norm) = (Some(tensor(&[c_out], 11)?), None);
        }
        let pooled = |alone: bool| {
            let ys = layer.forward(&xs, None)?;
            // Elements that are asked for are computed.
            let large = !alone || ys.to_nchw()?.elem_count() * ys.dtype().size_in_bytes() >= 4 << 20;
            assert!(large || c_out <= 8);
            max_pool2d(&ys, &pool)?.to_nchw()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
        };
        let (together, alone) = (no_grad(|| pooled(false))?, no_grad(|| pooled(true))?);
        let same = together.iter().zip(&alone).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        assert_eq!(same, alone.len(), "{dims:?} to {c_out} in {dtype:?}, {pool:?}");
    }
    Ok(())
}

#[test]
fn neighbours_give_the_same_pooled_together() -> Result<()> {
    compare_pooled(DType::F32)?;
    compare_pooled(DType::BF16)
}

#[test]
fn neighbours_give_the_same_together_in_f32() -> Result<()> {
    compare(DType::F32)
}

#[test]
fn neighbours_give_the_same_together_in_bf16() -> Result<()> {
    compare(DType::BF16)
}

/// The other instruction sets of this machine, each in a process of its own.
#[test]
fn lower_instruction_sets_do_too() {
    let program = std::env::current_exe().expect("a test knows its program");
    for set in ["portable", "avx2", "avx512"] {
        let output =
            std::process::Command::new(&program).arg("neighbours").env("ZOO_INSTRUCTION_SET", set).output();
        let output = output.expect("the program of a test runs again");
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
