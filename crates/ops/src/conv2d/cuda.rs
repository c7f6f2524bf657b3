//! Convolution on a GPU: cuDNN, on weights whose channels are put side by side; kernels of its own where each channel
//! is alone.

use super::Geometry;
use crate::cuda::{
    Arg, Gradients, Map, Operator, column_sums, launch, launch_rows, merged, parts, pointer, record,
    uninitialised, window_args,
};
use candle_core::{DType, Result, Tensor};

pub(super) fn conv2d(xs: &Map, weight: &Tensor, bias: Option<&Tensor>, g: Geometry) -> Result<Map> {
    let (device, dtype) = (xs.values().device(), xs.values().dtype());
    if g.groups == g.c_in && g.c_out == g.c_in && bias.is_none() {
        return depthwise(xs, weight, g);
    }
    let packed = pack(weight, &g, dtype)?;
    let (h, w) = g.out;
    let ys = uninitialised((g.n, h, w, g.c_out), dtype, device)?;
    products::forward(&g, xs.values(), &packed, &ys)?;
    if let Some(bias) = bias {
        let bias = bias.detach().to_dtype(DType::F32)?.contiguous()?;
        let args = [pointer(&ys)?, pointer(&bias)?];
        launch_rows(device, "add_bias", dtype, (g.n * h * w, g.c_out), &args)?;
    }
    let params: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    let xs_values = xs.values().clone();
    record(&[xs], &params, ys, || Conv2d { g, xs: xs_values, packed })
}

/// Weights [c_out, c_in / groups, kh, kw] as [c_out, kh, kw, c_in / groups] in the element type of the maps.
fn pack(weight: &Tensor, g: &Geometry, dtype: DType) -> Result<Tensor> {
    let weight = weight.detach().to_dtype(DType::F32)?.contiguous()?;
    let ((kh, kw), c_in) = (g.window.kernel, g.group_channels().0);
    let packed = uninitialised((g.c_out, kh, kw, c_in), dtype, weight.device())?;
    let args = [pointer(&weight)?, pointer(&packed)?, c_in.into(), g.taps().into()];
    launch(weight.device(), "pack_weight", dtype, packed.elem_count(), &args)?;
    Ok(packed)
}

struct Conv2d {
    g: Geometry,
    xs: Tensor,
    packed: Tensor,
}

impl Operator for Conv2d {
    const NAME: &'static str = "conv2d";

    fn backward(self, dys: Tensor, of_maps: &[bool], of_params: &[bool]) -> Result<Gradients> {
        let Self { g, xs, packed } = self;
        let (device, dtype) = (dys.device().clone(), dys.dtype());
        let dw = if of_params[0] {
            let of_packed = uninitialised(packed.shape(), dtype, &device)?;
            products::weight_gradient(&g, &xs, &of_packed, &dys)?;
            let c_in = g.group_channels().0;
            let dw = uninitialised(packed.elem_count(), DType::F32, &device)?;
            let args = [pointer(&of_packed)?, pointer(&dw)?, c_in.into(), g.taps().into()];
            launch(&device, "unpack_weight", dtype, dw.elem_count(), &args)?;
            Some(dw)
        } else {
            None
        };
        let db = of_params.get(1).map(|&wanted| wanted.then(|| column_sums(&dys, g.c_out)).transpose());
        let dx = if of_maps[0] {
            let dxs = uninitialised(xs.shape(), dtype, &device)?;
            products::input_gradient(&g, &dxs, &packed, &dys)?;
            Some(dxs)
        } else {
            None
        };
        Ok((vec![dx], std::iter::once(Ok(dw)).chain(db).collect::<Result<_>>()?))
    }
}

/// A channel's convolution needs nothing of its neighbours, and little arithmetic.
fn depthwise(xs: &Map, weight: &Tensor, g: Geometry) -> Result<Map> {
    let (device, dtype) = (xs.values().device(), xs.values().dtype());
    let plain = weight.detach().to_dtype(DType::F32)?.contiguous()?;
    let packed = uninitialised((g.taps(), g.c_in), dtype, device)?;
    let args = [pointer(&plain)?, pointer(&packed)?, g.c_in.into(), g.taps().into()];
    launch(device, "pack_depthwise", dtype, packed.elem_count(), &args)?;
    let (h, w) = g.out;
    let ys = uninitialised((g.n, h, w, g.c_out), dtype, device)?;
    let mut args = vec![pointer(xs.values())?, pointer(&packed)?, pointer(&ys)?];
    args.extend(sizes(&g));
    launch(device, "depthwise", dtype, ys.elem_count(), &args)?;
    let xs_values = xs.values().clone();
    record(&[xs], &[weight], ys, || Depthwise { g, xs: xs_values, packed })
}

/// Input, channels, output and window, as the kernels take them.
fn sizes(g: &Geometry) -> Vec<Arg> {
    window_args([g.size.0, g.size.1, g.c_in, g.out.0, g.out.1], &g.window)
}

struct Depthwise {
    g: Geometry,
    xs: Tensor,
    packed: Tensor,
}

impl Operator for Depthwise {
    const NAME: &'static str = "depthwise";

    fn backward(self, dys: Tensor, of_maps: &[bool], of_params: &[bool]) -> Result<Gradients> {
        let Self { g, xs, packed } = self;
        let (device, dtype, (taps, c)) = (dys.device(), dys.dtype(), (g.taps(), g.c_in));
        let dw = if of_params[0] {
            let rows = g.n * g.out.0;
            let (per, count) = parts(rows, taps * c);
            let partial = uninitialised((count, taps * c), DType::F32, device)?;
            let mut args = vec![pointer(&xs)?, pointer(&dys)?, pointer(&partial)?, rows.into(), per.into()];
            args.extend(sizes(&g));
            launch(device, "depthwise_weight", dtype, count * taps * c, &args)?;
            let sums = merged(&partial)?;
            let dw = uninitialised(taps * c, DType::F32, device)?;
            let args = [pointer(&sums)?, pointer(&dw)?, taps.into(), c.into()];
            launch(device, "transpose", DType::F32, taps * c, &args)?;
            Some(dw)
        } else {
            None
        };
        let dx = if of_maps[0] {
            let dxs = uninitialised(xs.shape(), dtype, device)?;
            let mut args = vec![pointer(&dys)?, pointer(&packed)?, pointer(&dxs)?];
            args.extend(sizes(&g));
            launch(device, "depthwise_input", dtype, dxs.elem_count(), &args)?;
            Some(dxs)
        } else {
            None
        };
        Ok((vec![dx], vec![dw]))
    }
}

#[cfg(not(test))]
use crate::cuda::cudnn as products;

/// What stands in for cuDNN in the tests of everything around it.
#[cfg(test)]
mod products {
    use crate::conv2d::{Geometry, reference};
    use candle_core::{Result, Tensor, Var};

    fn unpacked(weight: &Tensor) -> Result<Tensor> {
        weight.permute((0, 3, 1, 2))?.contiguous()
    }

    fn fill(out: &Tensor, values: &Tensor) -> Result<()> {
        out.slice_set(&values.detach().contiguous()?, 0, 0)
    }

    pub(super) fn forward(g: &Geometry, xs: &Tensor, weight: &Tensor, ys: &Tensor) -> Result<()> {
        fill(ys, &reference::conv2d(xs, &unpacked(weight)?, None, g)?)
    }

    pub(super) fn input_gradient(g: &Geometry, dxs: &Tensor, weight: &Tensor, dys: &Tensor) -> Result<()> {
        let xs = Var::zeros(dxs.shape(), dxs.dtype(), dxs.device())?;
        let ys = reference::conv2d(&xs, &unpacked(weight)?, None, g)?;
        let gradients = (ys * dys)?.sum_all()?.backward()?;
        fill(dxs, gradients.get(&xs).unwrap_or(&dxs.zeros_like()?))
    }

    pub(super) fn weight_gradient(g: &Geometry, xs: &Tensor, of_weight: &Tensor, dys: &Tensor) -> Result<()> {
        let weight = Var::zeros(of_weight.shape(), of_weight.dtype(), of_weight.device())?;
        let ys = reference::conv2d(xs, &unpacked(&weight)?, None, g)?;
        let gradients = (ys * dys)?.sum_all()?.backward()?;
        fill(of_weight, gradients.get(&weight).unwrap_or(&of_weight.zeros_like()?))
    }
}
