//! Feature maps lie beside candle's graph; these are the ways in which that could be noticed.

use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_ops::{
    Activation, BatchNorm, Conv2dConfig, FeatureMap, Window2d, activation, add, batch_norm, concat, conv2d,
    flatten, global_avg_pool2d, max_pool2d, with_reference,
};

const CPU: Device = Device::Cpu;

fn values(seed: usize, shape: &[usize]) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    Tensor::from_vec((0..n).map(|i| (i * 37 + seed * 11) as f32 % 7.3 - 3.6).collect(), shape, &CPU)
}

/// A block with a shortcut, a map that is used three times, and a way back to plain tensors.
fn block(xs: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (channels, padding) = (weight.dim(0)?, weight.dim(2)? / 2);
    let xs = FeatureMap::from_nchw(xs)?;
    let norm = BatchNorm {
        weight: None,
        bias: None,
        running_mean: Var::zeros(channels, DType::F32, &CPU)?,
        running_var: Var::ones(channels, DType::F32, &CPU)?,
        eps: 1e-5,
        momentum: 0.1,
    };
    let ys = conv2d(&xs, weight, None, &Conv2dConfig::new(1, padding))?;
    let ys = batch_norm(&ys, &norm, Some(&xs), Activation::Silu, true)?;
    let ys = add(&activation(&ys, Activation::Tanh)?, &xs)?;
    global_avg_pool2d(&max_pool2d(&ys, &Window2d::square(2, 2))?)?.to_logits()
}

fn inputs() -> Result<(Var, Var)> {
    Ok((Var::from_tensor(&values(1, &[2, 4, 6, 5])?)?, Var::from_tensor(&values(2, &[4, 4, 3, 3])?)?))
}

/// Any loss made of plain tensors, the logits used twice.
fn loss(logits: &Tensor) -> Result<Tensor> {
    (logits.sqr()?.sum_all()? + logits.exp()?.mean_all()?)?.sqrt()
}

#[test]
fn gradients_of_shared_maps_are_sums() -> Result<()> {
    // What a convolution adds its gradient to goes different ways in minimal filtering and in products.
    for (channels, kernel) in [(4, 3), (24, 1), (48, 3), (12, 5)] {
        let run = || {
            let xs = Var::from_tensor(&values(1, &[2, channels, 14, 12])?)?;
            let weight = Var::from_tensor(&values(2, &[channels, channels, kernel, kernel])?)?;
            let gradients = loss(&block(xs.as_tensor(), weight.as_tensor())?)?.backward()?;
            let of = |var: &Var| gradients.get(var).expect("a gradient").flatten_all()?.to_vec1::<f32>();
            Ok::<_, candle_core::Error>((of(&xs)?, of(&weight)?))
        };
        let (found, expected) = (run()?, with_reference(run)?);
        for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
            let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let error = (found - expected).abs();
                assert!(error < 1e-4 * largest, "{channels}: {found} instead of {expected}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_second_backward_is_refused() -> Result<()> {
    let (xs, weight) = inputs()?;
    let loss = loss(&block(xs.as_tensor(), weight.as_tensor())?)?;
    loss.backward()?;
    let error = loss.backward().expect_err("what the first one used is gone").to_string();
    assert!(error.contains("run forward again"), "{error}");
    Ok(())
}

#[test]
fn nothing_is_differentiated_that_is_constant() -> Result<()> {
    let (xs, weight) = inputs()?;
    let images = xs.as_detached_tensor();
    let gradients = loss(&block(&images, weight.as_tensor())?)?.backward()?;
    assert!(gradients.get(&weight).is_some() && gradients.get(&images).is_none());
    assert!(!block(&images, &weight.as_detached_tensor())?.track_op());
    Ok(())
}

/// A map that leaves the kernels, passes through plain tensors and comes back.
#[test]
fn maps_leave_and_come_back() -> Result<()> {
    let (xs, weight) = inputs()?;
    let run = |detour: bool| {
        let ys = conv2d(
            &FeatureMap::from_nchw(xs.as_tensor())?,
            weight.as_tensor(),
            None,
            &Conv2dConfig::new(1, 1),
        )?;
        let ys = if detour { FeatureMap::from_nchw(&ys.to_nchw()?)? } else { ys };
        let ys = conv2d(&ys, weight.as_tensor(), None, &Conv2dConfig::new(2, 1))?;
        let gradients = loss(&global_avg_pool2d(&ys)?.to_logits()?)?.backward()?;
        gradients.get(&xs).expect("a gradient").flatten_all()?.to_vec1::<f32>()
    };
    assert_eq!(run(true)?, run(false)?);
    Ok(())
}

/// The quicker backward gives what `loss.backward()` gives, for a parameter that is used twice and beside it by
/// candle itself.
#[test]
fn both_backwards_agree() -> Result<()> {
    let run = |quick: bool| {
        let (xs, weight) = inputs()?;
        let once = block(xs.as_tensor(), weight.as_tensor())?;
        let twice = block(&(xs.as_tensor() * 0.5)?, weight.as_tensor())?;
        let loss = (loss(&(once + twice)?)? + weight.as_tensor().sqr()?.sum_all()?)?;
        let gradients = if quick { zoo_ops::backward(&loss)? } else { loss.backward()? };
        let of = |var: &Var| gradients.get(var).expect("a gradient").flatten_all()?.to_vec1::<f32>();
        Ok::<_, candle_core::Error>([of(&xs)?, of(&weight)?].concat())
    };
    for (quick, usual) in run(true)?.iter().zip(run(false)?) {
        assert!((quick - usual).abs() <= 1e-5 * usual.abs().max(1.0), "{quick} and {usual}");
    }
    Ok(())
}

/// Without gradients a concatenation waits for its batch-norm and for a longer one; the result is that of one after the
/// other.
#[test]
fn without_gradients_concatenations_are_the_same() -> Result<()> {
    let norm = |c: usize| -> Result<BatchNorm> {
        Ok(BatchNorm {
            weight: Some(values(6, &[c])?),
            bias: Some(values(7, &[c])?),
            running_mean: Var::from_tensor(&values(8, &[c])?)?,
            running_var: Var::from_tensor(&(values(9, &[c])?.sqr()? + 0.5)?)?,
            eps: 1e-5,
            momentum: 0.1,
        })
    };
    // In one piece and in several.
    for (n, c, size) in [(2, 5, (3, 2)), (3, 64, (23, 17))] {
        let maps = (0..3).map(|i| values(i, &[n, c + i, size.0, size.1])).collect::<Result<Vec<_>>>()?;
        for dtype in [DType::F32, DType::BF16] {
            let run = || {
                let map = |xs: &Tensor| FeatureMap::from_nchw(&xs.to_dtype(dtype)?);
                let both = concat(&[&map(&maps[0])?, &map(&maps[1])?])?;
                let all = concat(&[&both, &map(&maps[2])?])?;
                let c = 3 * c + 3;
                let normalised = batch_norm(&all, &norm(c)?, None, Activation::Relu, false)?;
                let bent = activation(&all, Activation::Tanh)?;
                // A map of one channel is flattened as it is; this one takes several pieces.
                let flat = flatten(&concat(&[&map(&values(4, &[n, 1, 111, 127])?)?])?)?;
                let pixels = 111 * 127;
                let flat = batch_norm(&flat, &norm(pixels)?, None, Activation::Relu, false)?;
                let flat = concat(&[&flat, &flatten(&concat(&[&map(&values(5, &[n, 1, 111, 127])?)?])?)?])?;
                // The concatenations are still there to be asked for.
                let maps = [&normalised, &bent, &flat, &all, &both].map(|map| map.to_nchw()?.flatten_all());
                let maps = maps.into_iter().collect::<Result<Vec<_>>>()?;
                Tensor::cat(&maps, 0)?.to_dtype(DType::F32)?.to_vec1::<f32>()
            };
            let (waited, one_by_one) = (zoo_ops::no_grad(run)?, with_reference(run)?);
            for (i, (a, b)) in waited.iter().zip(&one_by_one).enumerate() {
                let bound = if dtype == DType::F32 { 1e-5 } else { 2e-2 };
                assert!((a - b).abs() <= bound * b.abs().max(2.0), "{dtype:?} {n} {i}: {a} and {b}");
            }
        }
    }
    Ok(())
}

/// Without gradients a convolution waits for its batch-norm; the result is that of one after the other.
#[test]
fn without_gradients_the_result_is_the_same() -> Result<()> {
    // Depthwise, grouped, Winograd and strided convolutions, on whole and odd numbers of tiles and panels, in one
    // block and in many.
    for (c_in, c_out, groups, stride, n, size) in [
        (6, 6, 6, 1, 3, (9, 7)),
        (24, 24, 24, 2, 3, (9, 7)),
        (72, 72, 9, 1, 4, (23, 12)),
        (48, 64, 1, 1, 7, (14, 13)),
        (5, 19, 1, 2, 2, (11, 8)),
        (5, 37, 1, 2, 9, (31, 33)),
        (64, 130, 1, 1, 1, (3, 3)),
    ] {
        let xs = values(3, &[n, c_in, size.0, size.1])?;
        let weight = Var::from_tensor(&(values(4, &[c_out, c_in / groups, 3, 3])? * 0.1)?)?;
        let bias = Var::from_tensor(&values(5, &[c_out])?)?;
        let norm = |seed| {
            Ok::<_, candle_core::Error>(BatchNorm {
                weight: Some(values(seed, &[c_out])?),
                bias: Some(values(seed + 1, &[c_out])?),
                running_mean: Var::from_tensor(&values(seed + 2, &[c_out])?)?,
                running_var: Var::from_tensor(&(values(seed + 3, &[c_out])?.sqr()? + 0.5)?)?,
                eps: 1e-5,
                momentum: 0.1,
            })
        };
        let (norm, other) = (norm(6)?, norm(7)?);
        let config = Conv2dConfig::new(stride, 1).groups(groups);
        let cases = [Activation::Tanh, Activation::Relu6, Activation::Identity]
            .map(|last| [DType::F32, DType::BF16].map(|dtype| (last, dtype)));
        for (last, dtype) in cases.into_iter().flatten() {
            let run = || {
                let xs = FeatureMap::from_nchw(&xs.to_dtype(dtype)?)?;
                let ys = conv2d(&xs, weight.as_tensor(), Some(bias.as_tensor()), &config)?;
                let zs = batch_norm(&ys, &norm, None, Activation::Relu, false)?;
                let zs = batch_norm(
                    &conv2d(&xs, weight.as_tensor(), None, &config)?,
                    &other,
                    Some(&zs),
                    last,
                    false,
                )?;
                // The convolution's own result is still there to be asked for.
                add(&ys, &zs)?.to_nchw()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
            };
            let (fused, one_by_one) = (zoo_ops::no_grad(run)?, run()?);
            // With weights as an earlier pass has arranged them.
            let inference = zoo_ops::Inference::default();
            for _ in 0..2 {
                assert_eq!(inference.run(run)?, fused);
            }
            // One after the other, bf16 rounds what lies between, which may be larger than what is left of it; tanh
            // leaves at most 1.
            let largest = one_by_one.iter().fold(4f32, |largest, b| largest.max(b.abs()));
            let bound = |b: f32| match (dtype, last) {
                (DType::F32, _) => 1e-5 * b.abs().max(4.0),
                (_, Activation::Tanh) => (2e-2 * b.abs().max(4.0)).min(1e-2 * largest),
                _ => 1e-2 * largest,
            };
            for (a, b) in fused.iter().zip(&one_by_one) {
                assert!((a - b).abs() <= bound(*b), "{dtype:?} {last:?} {c_in} to {c_out}: {a} and {b}");
            }
        }
    }
    Ok(())
}

/// Max pooling then makes no winners. Few channels and many go different ways.
#[test]
fn without_gradients_the_largest_are_the_same() -> Result<()> {
    for (c, kernel, stride, padding) in [(3, 2, 2, 0), (5, 3, 2, 1), (24, 3, 2, 1), (40, 3, 1, 0)] {
        let window = Window2d::square(kernel, stride).padding(padding);
        // A few are NaN, as the square roots of negative values are.
        let xs = Var::from_tensor(&(values(1, &[2, c, 9, 7])? + 3.3)?.sqrt()?)?;
        for dtype in [DType::F32, DType::BF16] {
            let run = || {
                let ys = max_pool2d(&FeatureMap::from_nchw(&xs.to_dtype(dtype)?)?, &window)?.to_nchw()?;
                let ys = ys.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                Ok::<_, candle_core::Error>(ys.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            assert_eq!(zoo_ops::no_grad(run)?, run()?, "{dtype:?} {c} {window:?}");
        }
    }
    Ok(())
}

/// As in PyTorch, whether a convolution comes before, is fused with the activation, or not.
#[test]
fn nan_stays_nan() -> Result<()> {
    let nan = Tensor::new(f32::NAN, &Device::Cpu)?.broadcast_as((1, 4, 3, 3))?.contiguous()?;
    let weight = values(1, &[20, 4, 1, 1])?;
    for kind in [Activation::Identity, Activation::Relu, Activation::Relu6] {
        let run = || {
            let xs = FeatureMap::from_nchw(&nan)?;
            let ys = zoo_ops::activation(&conv2d(&xs, &weight, None, &Conv2dConfig::default())?, kind)?;
            add(&zoo_ops::activation(&ys, kind)?, &ys)?.to_nchw()?.flatten_all()?.to_vec1::<f32>()
        };
        for ys in [run()?, zoo_ops::no_grad(run)?] {
            assert!(ys.iter().all(|y| y.is_nan()), "{kind:?}");
        }
    }
    Ok(())
}

/// Kernels leave what they like in memory that the next ones get; none of it may reach a result.
#[test]
fn nothing_is_left_from_one_map_to_the_next() -> Result<()> {
    let run = |dtype: DType, c_in: usize, first: f32| -> Result<Vec<f32>> {
        let images = values(1, &[8, c_in, 15, 15])?.affine(0.0, f64::from(first))?;
        let (images, weight) = (Var::from_tensor(&images)?, Var::from_tensor(&values(2, &[5, c_in, 3, 3])?)?);
        let xs = FeatureMap::from_nchw(&images.to_dtype(dtype)?)?;
        let sum = conv2d(&xs, &weight, None, &Conv2dConfig::new(2, 1))?.to_nchw()?.sum_all()?;
        let gradients = sum.to_dtype(DType::F32)?.backward()?;
        let of =
            |var: &Var| gradients.get(var.as_tensor()).expect("a gradient").flatten_all()?.to_vec1::<f32>();
        Ok([of(&images)?, of(&weight)?].concat())
    };
    for dtype in [DType::F32, DType::BF16] {
        for c_in in [1, 3, 7] {
            run(dtype, 40, f32::NAN)?;
            let found = run(dtype, c_in, 1.0)?;
            assert!(found.iter().all(|x| x.is_finite()), "{dtype:?}, {c_in} channels");
        }
    }
    Ok(())
}
