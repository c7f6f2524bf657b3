//! Activation kernels, and the scalar functions that fused operators inline.

use super::Activation;
use crate::element::Element;
use crate::elementary::{normal, sigmoid};
use crate::parallel::{chunks, task_items};
use crate::pool::{Buffer, take};
use crate::simd::multiversion;
use crate::slot::{Affine, Backward, Gradients, Keeps, Kernel, Slot, is_constant};
use candle_core::Result;

/// An activation as a type of its own, so that loops over it compile without a branch.
pub(crate) trait Function: Copy + Send + Sync {
    /// Whether [`Function::derivative`] may be given the output in place of the input.
    const FROM_OUTPUT: bool = false;
    fn value(self, x: f32) -> f32;
    fn derivative(self, x: f32) -> f32;
}

macro_rules! function {
    ($name:ident, $from_output:literal, |$x:ident| $value:expr, $derivative:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl Function for $name {
            const FROM_OUTPUT: bool = $from_output;
            #[inline(always)]
            fn value(self, $x: f32) -> f32 {
                $value
            }
            #[inline(always)]
            fn derivative(self, $x: f32) -> f32 {
                $derivative
            }
        }
    };
}

function!(Identity, true, |_x| _x, 1.0);
// Comparisons are turned so that NaN stays NaN, as in PyTorch.
function!(Relu, true, |x| if x <= 0.0 { 0.0 } else { x }, if x <= 0.0 { 0.0 } else { 1.0 });
function!(Relu6, true, |x| x.clamp(0.0, 6.0), if x <= 0.0 || x >= 6.0 { 0.0 } else { 1.0 });
function!(Sigmoid, false, |x| sigmoid(x), {
    let s = sigmoid(x);
    s * (1.0 - s)
});
function!(Tanh, false, |x| x.tanh(), {
    let t = x.tanh();
    1.0 - t * t
});
function!(Gelu, false, |x| x * normal(x).0, {
    let (distribution, density) = normal(x);
    distribution + x * density
});
function!(Silu, false, |x| x * sigmoid(x), {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
});
function!(
    HardSwish,
    false,
    |x| x * Relu6.value(x + 3.0) / 6.0,
    if x > -3.0 { if x < 3.0 { (2.0 * x + 3.0) / 6.0 } else { 1.0 } } else { 0.0 }
);
function!(
    HardSigmoid,
    false,
    |x| Relu6.value(x + 3.0) / 6.0,
    if x > -3.0 && x < 3.0 { 1.0 / 6.0 } else { 0.0 }
);

#[derive(Clone, Copy)]
pub(crate) struct LeakyRelu(pub(crate) f32);

impl Function for LeakyRelu {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        if x > 0.0 { x } else { self.0 * x }
    }
    #[inline(always)]
    fn derivative(self, x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { self.0 }
    }
}

/// Calls a generic function with the [`Function`] of an [`Activation`] as its first argument.
macro_rules! by_activation {
    ($activation:expr, $f:ident $(::<$t:ty>)? ( $($arg:expr),* $(,)? )) => {{
        use $crate::activation::{Activation, cpu as functions};
        match $activation {
            Activation::Identity => $f $(::<$t, _>)? (functions::Identity, $($arg),*),
            Activation::Relu => $f $(::<$t, _>)? (functions::Relu, $($arg),*),
            Activation::Relu6 => $f $(::<$t, _>)? (functions::Relu6, $($arg),*),
            Activation::LeakyRelu(slope) => $f $(::<$t, _>)? (functions::LeakyRelu(slope), $($arg),*),
            Activation::Sigmoid => $f $(::<$t, _>)? (functions::Sigmoid, $($arg),*),
            Activation::Tanh => $f $(::<$t, _>)? (functions::Tanh, $($arg),*),
            Activation::Gelu => $f $(::<$t, _>)? (functions::Gelu, $($arg),*),
            Activation::Silu => $f $(::<$t, _>)? (functions::Silu, $($arg),*),
            Activation::HardSigmoid => $f $(::<$t, _>)? (functions::HardSigmoid, $($arg),*),
            Activation::HardSwish => $f $(::<$t, _>)? (functions::HardSwish, $($arg),*),
        }
    }};
}
pub(crate) use by_activation;

const CHUNK: usize = 16 * 1024;

pub(super) fn activation(xs: &Slot, activation: Activation) -> Result<Slot> {
    if is_constant(&[xs], &[])
        && let Some(ys) = xs.normalised(&Affine { factors: None, residual: None, activation })?
    {
        return Ok(ys);
    }
    Elementwise(activation).apply(&[xs], &[], xs.dims())
}

struct Elementwise(Activation);

impl Kernel for Elementwise {
    const NAME: &'static str = "activation";

    /// The output where it is enough: the operators around keep it anyway.
    fn keeps(&self) -> Keeps {
        let output = by_activation!(self.0, from_output());
        Keeps { inputs: !output, output }
    }

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let mut ys = take::<T>(maps[0].len());
        let task = task_items(ys.len(), 1, CHUNK);
        chunks(&mut ys, task, |i, ys| {
            let xs = &maps[0][i * task..][..ys.len()];
            by_activation!(self.0, values::<T>(xs, ys));
        });
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let task = task_items(call.gradient.len(), 1, CHUNK);
        chunks(call.gradient, task, |i, d| {
            let x = call.maps.first().unwrap_or(&call.output);
            let x = &x[i * task..][..d.len()];
            by_activation!(self.0, derivatives::<T>(x, d));
        });
        Ok((vec![Some(std::mem::take(call.gradient))], Vec::new()))
    }
}

fn from_output<F: Function>(_: F) -> bool {
    F::FROM_OUTPUT
}

multiversion! {
    fn values<T: Element, F: Function>(f: F, xs: &[T], ys: &mut [T]) {
        for (y, &x) in ys.iter_mut().zip(xs) {
            *y = T::from_f32(f.value(x.to_f32()));
        }
    }
}

multiversion! {
    /// Turns the gradient of the output into that of the input; `xs` is what [`Function::derivative`] is given.
    fn derivatives<T: Element, F: Function>(f: F, xs: &[T], gradient: &mut [T]) {
        for (d, &x) in gradient.iter_mut().zip(xs) {
            *d = T::from_f32(d.to_f32() * f.derivative(x.to_f32()));
        }
    }
}
