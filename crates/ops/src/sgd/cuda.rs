//! The steps of all parameters in one launch, and so averages of them.

use super::Step;
use crate::cuda::{Arg, Grid, launch_common, pointer};
use candle_core::{DType, Result, Tensor, Var, bail};

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
    // Kept until the kernel is launched.
    let gradients = all.iter().map(|(_, _, g, _)| g.detach().contiguous()).collect::<Result<Vec<_>>>()?;
    let tensors = all.iter().zip(&gradients).map(|((p, v, ..), g)| vec![p.as_tensor(), v.as_tensor(), g]);
    let table = Table::new(tensors.collect())?;
    let rates: Vec<f32> =
        all.iter().flat_map(|(.., step)| [step.lr as f32, step.weight_decay as f32]).collect();
    let rates = Tensor::new(rates, first.device())?;
    let constants = [(constants.momentum as f32).into(), i32::from(constants.nesterov).into()];
    table.launch("sgd", &[&[pointer(&rates)?][..], &constants].concat())?;
    Ok(true)
}

/// Moves the averages if all tensors are in f32; says whether it did.
pub(super) fn average_into(averages: &[(&Var, &Var)], kept: f64) -> Result<bool> {
    if averages.iter().any(|(average, var)| average.dtype() != DType::F32 || var.dtype() != DType::F32) {
        return Ok(false);
    }
    let tensors = averages.iter().map(|(average, var)| vec![average.as_tensor(), var.as_tensor()]);
    Table::new(tensors.collect())?
        .launch("average", &[(kept as f32).into(), ((1.0 - kept) as f32).into()])?;
    Ok(true)
}

/// Groups of tensors of one shape each, for a kernel that counts the elements of all groups.
struct Table {
    /// Of each tensor, group by group.
    addresses: Tensor,
    /// Where each group starts in the count, and where the last one ends.
    starts: Tensor,
    groups: usize,
    elements: usize,
}

impl Table {
    fn new(groups: Vec<Vec<&Tensor>>) -> Result<Self> {
        let Some(device) = groups.first().and_then(|group| group.first()).map(|t| t.device()) else {
            bail!("a kernel over no tensors");
        };
        let (mut addresses, mut starts) = (Vec::new(), vec![0i64]);
        for group in &groups {
            for tensor in group {
                let Arg::Pointer(address) = pointer(tensor)? else { bail!("a tensor without an address") };
                addresses.push(address as i64);
            }
            let len = group.first().map_or(0, |tensor| tensor.elem_count());
            starts.push(starts.last().copied().unwrap_or(0) + len as i64);
        }
        let elements = starts.last().copied().unwrap_or(0);
        if elements > i64::from(i32::MAX) {
            bail!("{elements} parameters are too many for the GPU's kernels");
        }
        Ok(Self {
            addresses: Tensor::new(addresses, device)?,
            starts: Tensor::new(starts, device)?,
            groups: groups.len(),
            elements: elements as usize,
        })
    }

    /// Runs a kernel that takes addresses and starts, `args`, and the number of groups.
    fn launch(&self, kernel: &str, args: &[Arg]) -> Result<()> {
        let tables = [pointer(&self.addresses)?, pointer(&self.starts)?];
        let args = [&tables[..], args, &[self.groups.into()]].concat();
        launch_common(self.addresses.device(), kernel, Grid::Threads(self.elements), &args)
    }
}
