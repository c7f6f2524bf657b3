//! The steps of all parameters in one launch.

use super::Step;
use crate::cuda::{Arg, Grid, launch_common, pointer};
use candle_core::{DType, Result, Tensor, bail};

/// Takes the steps, which share momentum and Nesterov's rule, if all tensors are in f32; says whether it did.
pub(super) fn steps(all: &[Step<'_>]) -> Result<bool> {
    let Some((first, .., constants)) = all.first() else { return Ok(true) };
    let alike = |(p, v, g, step): &Step<'_>| {
        let f32s = [p.dtype(), v.dtype(), g.dtype()].iter().all(|&dtype| dtype == DType::F32);
        f32s && (step.momentum, step.nesterov) == (constants.momentum, constants.nesterov)
    };
    if !all.iter().all(alike) {
        return Ok(false);
    }
    let device = first.device();
    // Kept until the kernel is launched.
    let gradients = all.iter().map(|(_, _, g, _)| g.detach().contiguous()).collect::<Result<Vec<_>>>()?;
    let (mut addresses, mut starts, mut rates) = (Vec::new(), vec![0i64], Vec::new());
    for ((p, v, _, step), g) in all.iter().zip(&gradients) {
        for tensor in [p.as_tensor(), v.as_tensor(), g] {
            let Arg::Pointer(address) = pointer(tensor)? else { bail!("sgd: no address") };
            addresses.push(address as i64);
        }
        starts.push(starts.last().copied().unwrap_or(0) + p.elem_count() as i64);
        rates.extend([step.lr as f32, step.weight_decay as f32]);
    }
    let n = starts.last().copied().unwrap_or(0) as usize;
    let tables = (Tensor::new(addresses, device)?, Tensor::new(starts, device)?, Tensor::new(rates, device)?);
    let args = [
        pointer(&tables.0)?,
        pointer(&tables.1)?,
        pointer(&tables.2)?,
        (constants.momentum as f32).into(),
        i32::from(constants.nesterov).into(),
        all.len().into(),
    ];
    launch_common(device, "sgd", Grid::Threads(n), &args)?;
    Ok(true)
}
