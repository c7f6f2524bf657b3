//! The cases that stock candle 0.11.1 gets wrong, on both paths.

use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_ops::{Activation, Conv2dConfig, FeatureMap, Window2d, with_reference};

/// The gradient of the sum of `f`'s output with respect to its input [n, c, h, w].
fn gradient(xs: &Var, f: impl Fn(&FeatureMap) -> Result<FeatureMap>) -> Result<Vec<f32>> {
    let loss = f(&FeatureMap::from_nchw(xs)?)?.to_nchw()?.sum_all()?;
    match loss.backward()?.get(xs) {
        Some(gradient) => gradient.flatten_all()?.to_vec1(),
        None => candle_core::bail!("no gradient"),
    }
}

fn on_both_paths(test: impl Fn() -> Result<()>) -> Result<()> {
    test()?;
    with_reference(test)
}

fn counting(h: usize, w: usize) -> Result<Var> {
    Var::from_tensor(&Tensor::arange(0f32, (h * w) as f32, &Device::Cpu)?.reshape((1, 1, h, w))?)
}

/// Stock gives 0.25 at each maximum.
#[test]
fn max_pool_passes_the_whole_gradient_to_the_maximum() -> Result<()> {
    on_both_paths(|| {
        let found = gradient(&counting(2, 2)?, |xs| zoo_ops::max_pool2d(xs, &Window2d::square(2, 2)))?;
        assert_eq!(found, [0.0, 0.0, 0.0, 1.0]);
        Ok(())
    })
}

/// Of equal values the first gets it all, as in PyTorch.
#[test]
fn max_pool_breaks_ties_as_pytorch_does() -> Result<()> {
    on_both_paths(|| {
        let xs = Var::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
        let found = gradient(&xs, |xs| zoo_ops::max_pool2d(xs, &Window2d::square(2, 2)))?;
        assert_eq!(found, [1.0, 0.0, 0.0, 0.0]);
        Ok(())
    })
}

/// Stock gives 0.25 to pixels outside every window too.
#[test]
fn avg_pool_leaves_pixels_outside_every_window_at_zero() -> Result<()> {
    on_both_paths(|| {
        let found = gradient(&counting(5, 5)?, |xs| zoo_ops::avg_pool2d(xs, &Window2d::square(2, 2), true))?;
        for (i, g) in found.into_iter().enumerate() {
            let inside = i / 5 < 4 && i % 5 < 4;
            assert_eq!(g, if inside { 0.25 } else { 0.0 }, "pixel {i}");
        }
        Ok(())
    })
}

/// Stock has no backward when kernel and stride differ.
#[test]
fn overlapping_pools_add_their_gradients() -> Result<()> {
    on_both_paths(|| {
        let found = gradient(&counting(3, 3)?, |xs| zoo_ops::max_pool2d(xs, &Window2d::square(2, 1)))?;
        assert_eq!(found, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]);
        let found = gradient(&counting(1, 3)?, |xs| {
            zoo_ops::avg_pool2d(
                xs,
                &Window2d { kernel: (1, 2), stride: (1, 1), ..Window2d::square(1, 1) },
                true,
            )
        })?;
        assert_eq!(found, [0.5, 1.0, 0.5]);
        Ok(())
    })
}

/// Stock gives 1.
#[test]
fn relu_has_gradient_zero_at_zero() -> Result<()> {
    on_both_paths(|| {
        let xs = Var::new(&[[[[-1f32, 0.0, 2.0]]]], &Device::Cpu)?;
        assert_eq!(gradient(&xs, |xs| zoo_ops::activation(xs, Activation::Relu))?, [0.0, 0.0, 1.0]);
        let xs = Var::new(&[[[[0f32, 6.0, 2.0]]]], &Device::Cpu)?;
        assert_eq!(gradient(&xs, |xs| zoo_ops::activation(xs, Activation::Relu6))?, [0.0, 0.0, 1.0]);
        let xs = Var::new(&[[[[-3f32, 3.0, 2.0]]]], &Device::Cpu)?;
        let found = gradient(&xs, |xs| zoo_ops::activation(xs, Activation::HardSigmoid))?;
        assert_eq!(found[..2], [0.0, 0.0]);
        assert!((found[2] - 1.0 / 6.0).abs() < 1e-7);
        Ok(())
    })
}

/// Stock fails in backward with a shape mismatch.
#[test]
fn strided_convolution_of_a_map_that_is_not_square() -> Result<()> {
    on_both_paths(|| {
        let weight = Tensor::ones((1, 1, 3, 3), DType::F32, &Device::Cpu)?;
        let found =
            gradient(&counting(7, 8)?, |xs| zoo_ops::conv2d(xs, &weight, None, &Conv2dConfig::new(2, 1)))?;
        // The number of windows that see each pixel: rows at -1, 1, 3, 5 and so on.
        let seen = |at: usize, windows: usize| {
            (0..windows).filter(|i| (2 * i..2 * i + 3).contains(&(at + 1))).count()
        };
        for (i, g) in found.into_iter().enumerate() {
            assert_eq!(g, (seen(i / 8, 4) * seen(i % 8, 4)) as f32, "pixel {i}");
        }
        Ok(())
    })
}

/// A parameter that is used gets a gradient through every operator: candle's fused layer norm, for one, drops
/// it without an error.
#[test]
fn gradients_reach_the_first_layer() -> Result<()> {
    on_both_paths(|| {
        let found = gradient(&counting(8, 8)?, |xs| {
            let xs = zoo_ops::max_pool2d(xs, &Window2d::square(3, 2).padding(1))?;
            let xs = zoo_ops::activation(&xs, Activation::HardSwish)?;
            zoo_ops::global_avg_pool2d(&zoo_ops::avg_pool2d(&xs, &Window2d::square(2, 1), false)?)
        })?;
        assert!(found.iter().any(|&g| g > 0.0));
        Ok(())
    })
}
