//! Batch normalisation over the batches of several ranks against that of one rank with all images.

use candle_core::{Device, Result, Tensor, Var};
use rand::Rng;
use std::sync::{Arc, Barrier, Mutex};
use zoo_ops::ranks::{Communicator, with_synchronised_batch_norm};
use zoo_ops::rng::stream;
use zoo_ops::{Activation, BatchNorm, FeatureMap, batch_norm, with_reference};

/// Threads that stand for processes.
#[derive(Debug)]
struct Threads {
    rank: usize,
    shared: Arc<(Barrier, Mutex<Vec<Option<Tensor>>>)>,
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.1.lock().unwrap().len()
    }

    fn sum(&self, xs: &Tensor) -> Result<Tensor> {
        let (barrier, tensors) = &*self.shared;
        tensors.lock().unwrap()[self.rank] = Some(xs.clone());
        barrier.wait();
        let parts: Vec<Tensor> = tensors.lock().unwrap().iter().flatten().cloned().collect();
        barrier.wait();
        parts[1..].iter().try_fold(parts[0].clone(), |sum, part| sum + part)
    }
}

/// What one rank computes: outputs, gradients of images and residual, those of γ and β, running statistics.
type Results = (Vec<Tensor>, Vec<Tensor>, Vec<Tensor>);

/// Normalises and differentiates `Σ y · factors`.
fn pass(xs: &Tensor, residual: &Tensor, factors: &Tensor, activation: Activation) -> Result<Results> {
    let c = xs.dim(1)?;
    let var =
        |values: fn(usize) -> f32| Var::from_vec((0..c).map(values).collect::<Vec<f32>>(), c, &Device::Cpu);
    let (gamma, beta) = (var(|ch| 0.5 + ch as f32)?, var(|ch| 0.3 - ch as f32)?);
    let (xs, residual) = (Var::from_tensor(xs)?, Var::from_tensor(residual)?);
    let norm = BatchNorm {
        weight: Some(gamma.as_tensor().clone()),
        bias: Some(beta.as_tensor().clone()),
        running_mean: var(|_| 0.0)?,
        running_var: var(|_| 1.0)?,
        eps: 1e-5,
        momentum: 0.1,
    };
    let map = FeatureMap::from_nchw(&xs)?;
    let ys =
        batch_norm(&map, &norm, Some(&FeatureMap::from_nchw(&residual)?), activation, true)?.to_nchw()?;
    let gradients = (&ys * factors)?.sum_all()?.backward()?;
    let of = |var: &Var| gradients.get(var).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"));
    Ok((
        vec![ys, of(&xs)?, of(&residual)?],
        vec![of(&gamma)?, of(&beta)?],
        vec![norm.running_mean.as_detached_tensor(), norm.running_var.as_detached_tensor()],
    ))
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    let largest =
        |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    largest(&(a - b).unwrap()) / largest(b).max(1.0)
}

fn check(activation: Activation, reference: bool) {
    let run = move |f: &dyn Fn() -> Result<Results>| if reference { with_reference(f) } else { f() }.unwrap();
    let mut rng = stream(3, "images", 0);
    let mut tensor = || {
        // Far from zero, where sums of squares would lose the variance.
        let values: Vec<f32> = (0..5 * 3 * 4 * 7).map(|_| 4.0 + rng.random::<f32>()).collect();
        Tensor::from_vec(values, (5, 3, 4, 7), &Device::Cpu).unwrap()
    };
    let (xs, residual, factors) = (tensor(), tensor(), (tensor() - 4.4).unwrap());
    let residual = (residual - 4.5).unwrap();
    let whole = run(&|| pass(&xs, &residual, &factors, activation));
    let shared = Arc::new((Barrier::new(2), Mutex::new(vec![None, None])));
    // Shares of two sizes.
    let shares = [(0, 2), (2, 3)];
    let rank = |rank: usize| {
        let part = |t: &Tensor| t.narrow(0, shares[rank].0, shares[rank].1).unwrap();
        let ranks: Arc<dyn Communicator> = Arc::new(Threads { rank, shared: Arc::clone(&shared) });
        let (xs, residual, factors) = (part(&xs), part(&residual), part(&factors));
        with_synchronised_batch_norm(&ranks, || run(&|| pass(&xs, &residual, &factors, activation)))
    };
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| rank(1));
        (rank(0), second.join().unwrap())
    });
    for (i, all) in whole.0.iter().enumerate() {
        let joined = Tensor::cat(&[&first.0[i], &second.0[i]], 0).unwrap();
        assert!(distance(&joined, all) < 2e-5, "{activation:?} map {i}: {}", distance(&joined, all));
    }
    for (i, all) in whole.1.iter().enumerate() {
        let sum = (&first.1[i] + &second.1[i]).unwrap();
        assert!(distance(&sum, all) < 2e-5, "{activation:?} parameter {i}: {}", distance(&sum, all));
    }
    for (i, all) in whole.2.iter().enumerate() {
        for one in [&first.2[i], &second.2[i]] {
            assert!(distance(one, all) < 1e-6, "{activation:?} statistic {i}: {}", distance(one, all));
        }
    }
}

#[test]
fn kernels_over_two_ranks_are_those_of_one() {
    for activation in [Activation::Identity, Activation::Relu, Activation::Gelu] {
        check(activation, false);
    }
}

#[test]
fn the_reference_over_two_ranks_is_that_of_one() {
    for activation in [Activation::Identity, Activation::Relu] {
        check(activation, true);
    }
}
