//! Activation kernels, and the scalar functions that fused operators inline.

use super::Activation;
use crate::element::{Element, Elements, by_element, operand};
use crate::parallel::{buffer, chunks};
use crate::simd::multiversion;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

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
function!(Relu, true, |x| if x > 0.0 { x } else { 0.0 }, if x > 0.0 { 1.0 } else { 0.0 });
function!(
    Relu6,
    true,
    |x| if x > 0.0 { if x < 6.0 { x } else { 6.0 } } else { 0.0 },
    if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 }
);
function!(Sigmoid, false, |x| sigmoid(x), {
    let s = sigmoid(x);
    s * (1.0 - s)
});
function!(Tanh, false, |x| x.tanh(), {
    let t = x.tanh();
    1.0 - t * t
});
function!(Gelu, false, |x| x * normal_cdf(x), normal_cdf(x) + x * (-0.5 * x * x).exp() * 0.398_942_3);
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

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Φ, the distribution function of the standard normal distribution.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
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
            Activation::HardSwish => $f $(::<$t, _>)? (functions::HardSwish, $($arg),*),
        }
    }};
}
pub(crate) use by_activation;

const CHUNK: usize = 16 * 1024;

pub(super) fn activation(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(Op(activation))
}

struct Op(Activation);

fn forward<T: Element>(activation: Activation, xs: &[T]) -> Vec<T> {
    let mut ys = buffer::<T>(xs.len());
    chunks(&mut ys, CHUNK, |i, ys| {
        let xs = &xs[i * CHUNK..][..ys.len()];
        by_activation!(activation, values::<T>(xs, ys));
    });
    ys
}

fn backward<T: Element>(activation: Activation, xs: &Tensor, dys: &Tensor) -> Result<Tensor> {
    let (x, dy) = (Elements::<T>::of(xs)?, Elements::<T>::of(dys)?);
    let (x, dy): (&[T], &[T]) = (&x, &dy);
    let mut dxs = buffer::<T>(x.len());
    chunks(&mut dxs, CHUNK, |i, dx| {
        let at = i * CHUNK..i * CHUNK + dx.len();
        by_activation!(activation, derivatives::<T>(&x[at.clone()], &dy[at], dx));
    });
    Tensor::from_vec(dxs, xs.shape(), &Device::Cpu)
}

multiversion! {
    fn values<T: Element, F: Function>(f: F, xs: &[T], ys: &mut [T]) {
        for (y, &x) in ys.iter_mut().zip(xs) {
            *y = T::from_f32(f.value(x.to_f32()));
        }
    }
}

multiversion! {
    fn derivatives<T: Element, F: Function>(f: F, xs: &[T], dys: &[T], dxs: &mut [T]) {
        for ((d, &x), &dy) in dxs.iter_mut().zip(xs).zip(dys) {
            *d = T::from_f32(dy.to_f32() * f.derivative(x.to_f32()));
        }
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        self.0.kind()
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ys = match xs {
            CpuStorage::BF16(_) => CpuStorage::BF16(forward(self.0, operand(xs, layout)?)),
            _ => CpuStorage::F32(forward(self.0, operand(xs, layout)?)),
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        by_element!(xs.dtype(), backward(self.0, xs, &dys)).map(Some)
    }
}
