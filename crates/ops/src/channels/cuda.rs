//! Sums, and channels that move, on a GPU.

use crate::cuda::{Arg, Gradients, Map, Operator, launch, launch_flat, pointer, record, uninitialised};
use candle_core::{Result, Tensor};

pub(super) fn add_scaled(a: &Map, b: &Map, factor: f32) -> Result<Map> {
    let (device, dtype) = (a.values().device(), a.values().dtype());
    let ys = uninitialised(a.dims(), dtype, device)?;
    let args = [pointer(a.values())?, pointer(b.values())?, pointer(&ys)?, factor.into()];
    launch_flat(device, "scaled_sum", dtype, ys.elem_count(), &args)?;
    record(&[a, b], &[], ys, || Sum(factor))
}

/// The factor of the second map.
struct Sum(f32);

impl Operator for Sum {
    const NAME: &'static str = "add";

    fn backward(self, dys: Tensor, of_maps: &[bool], _: &[bool]) -> Result<Gradients> {
        let second = if of_maps[1] {
            let scaled = uninitialised(dys.shape(), dys.dtype(), dys.device())?;
            let args = [pointer(&dys)?, pointer(&scaled)?, self.0.into()];
            launch_flat(dys.device(), "scaled", dys.dtype(), scaled.elem_count(), &args)?;
            Some(scaled)
        } else {
            None
        };
        Ok((vec![of_maps[0].then_some(dys), second], Vec::new()))
    }
}

/// Some channels of a map: the first, and how far the next one is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    pub(super) first: usize,
    pub(super) step: usize,
}

/// So many channels of a map that become channels of the result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    /// Which map.
    pub(super) map: usize,
    pub(super) from: Channels,
    pub(super) to: Channels,
    pub(super) len: usize,
}

impl Move {
    /// Neighbours that stay neighbours.
    pub(super) fn stretch(map: usize, from: usize, to: usize, len: usize) -> Self {
        Self { map, from: Channels { first: from, step: 1 }, to: Channels { first: to, step: 1 }, len }
    }
}

/// A map of `channels` channels that come from others, the rest zeros. No channel is read or written twice.
pub(super) fn moved(maps: &[&Map], channels: usize, moves: Vec<Move>) -> Result<Map> {
    let first = maps[0].values();
    let (n, h, w, _) = maps[0].dims();
    let taken: usize = moves.iter().map(|m| m.len).sum();
    let ys = empty_or_zeros((n, h, w, channels), taken < channels, first)?;
    for m in &moves {
        copy(maps[m.map].values(), m.from, &ys, m.to, m.len)?;
    }
    record(maps, &[], ys, || Moved { channels: maps.iter().map(|map| map.dims().3).collect(), moves })
}

struct Moved {
    /// Of each map.
    channels: Vec<usize>,
    moves: Vec<Move>,
}

impl Operator for Moved {
    const NAME: &'static str = "channels";

    fn backward(self, dys: Tensor, of_maps: &[bool], _: &[bool]) -> Result<Gradients> {
        let (n, h, w, _) = dys.dims4()?;
        let of_map = |(map, (&wanted, &channels)): (usize, (&bool, &usize))| {
            if !wanted {
                return Ok(None);
            }
            let moves = || self.moves.iter().filter(|m| m.map == map);
            let used: usize = moves().map(|m| m.len).sum();
            let dxs = empty_or_zeros((n, h, w, channels), used < channels, &dys)?;
            for m in moves() {
                copy(&dys, m.to, &dxs, m.from, m.len)?;
            }
            Ok(Some(dxs))
        };
        let of_maps = of_maps.iter().zip(&self.channels).enumerate().map(of_map);
        Ok((of_maps.collect::<Result<_>>()?, Vec::new()))
    }
}

fn empty_or_zeros(dims: (usize, usize, usize, usize), zeros: bool, like: &Tensor) -> Result<Tensor> {
    let (dtype, device) = (like.dtype(), like.device());
    if zeros { Tensor::zeros(dims, dtype, device) } else { uninitialised(dims, dtype, device) }
}

/// Copies `len` channels of all pixels.
fn copy(from: &Tensor, of_from: Channels, to: &Tensor, of_to: Channels, len: usize) -> Result<()> {
    let (c_from, c_to) = (from.dim(3)?, to.dim(3)?);
    let pixels = from.elem_count() / c_from.max(1);
    let mut args = vec![pointer(from)?, pointer(to)?];
    args.extend([c_from, of_from.first, of_from.step, c_to, of_to.first, of_to.step, len].map(Arg::from));
    launch(from.device(), "copy_channels", from.dtype(), pixels * len, &args)
}

/// Each image's pixels × channels as channels × pixels: what a flat map is made of.
pub(super) fn transposed(xs: &Map, dims: (usize, usize, usize, usize)) -> Result<Map> {
    let (_, h, w, c) = xs.dims();
    let ys = transpose(xs.values(), h * w, c)?.reshape(dims)?;
    record(&[xs], &[], ys, || Transposed { dims: xs.dims() })
}

fn transpose(xs: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let ys = uninitialised(xs.shape(), xs.dtype(), xs.device())?;
    let args = [pointer(xs)?, pointer(&ys)?, rows.into(), columns.into()];
    launch(xs.device(), "transpose", xs.dtype(), ys.elem_count(), &args)?;
    Ok(ys)
}

struct Transposed {
    /// Of the input.
    dims: (usize, usize, usize, usize),
}

impl Operator for Transposed {
    const NAME: &'static str = "transposed";

    fn backward(self, dys: Tensor, _: &[bool], _: &[bool]) -> Result<Gradients> {
        let (_, h, w, c) = self.dims;
        Ok((vec![Some(transpose(&dys, c, h * w)?.reshape(self.dims)?)], Vec::new()))
    }
}
