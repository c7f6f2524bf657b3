//! Minimal filtering along one axis: F(4, 3), with interpolation points 0, ±1, ±2 and ∞, and F(2, 3), with 0, ±1 and ∞.

use crate::simd::Vector;

/// The most inputs along a side of a tile.
pub(super) const SIDE: usize = 6;

/// Values along a side of a tile: the first so many as there are.
pub(super) type Line<V> = [V; SIDE];

/// `to + x · factor`.
#[inline(always)]
fn plus<V: Vector>(to: V, x: V, factor: f32) -> V {
    to.mul_add(x, V::splat(factor))
}

#[inline(always)]
fn times<V: Vector>(x: V, factor: f32) -> V {
    x.mul(V::splat(factor))
}

/// A line of the values of an expression for the first so many indices, and zeros. Neither a loop nor a closure: a line
/// that is written in a loop is cleared before, in memory, and a closure may not be compiled for the instruction set.
macro_rules! line {
    ($zero:expr; $i:ident < $len:expr => $value:expr) => {
        [
            line!($zero, $i, 0, $len, $value),
            line!($zero, $i, 1, $len, $value),
            line!($zero, $i, 2, $len, $value),
            line!($zero, $i, 3, $len, $value),
            line!($zero, $i, 4, $len, $value),
            line!($zero, $i, 5, $len, $value),
        ]
    };
    ($zero:expr, $i:ident, $index:literal, $len:expr, $value:expr) => {
        if $index < $len {
            let $i = $index;
            $value
        } else {
            $zero
        }
    };
}

pub(super) use line;

#[inline(always)]
pub(super) fn no_line<V: Vector>() -> Line<V> {
    [V::splat(0.0); SIDE]
}

/// Minimal filtering F(m, 3) along one axis.
pub(super) trait Filtering {
    /// m.
    const OUTPUTS: usize;
    /// Inputs of a tile, and multiplications.
    const INPUTS: usize = Self::OUTPUTS + 2;
    /// Bᵀ d: inputs to as many.
    fn input<V: Vector>(d: Line<V>) -> Line<V>;
    /// Aᵀ m: products to outputs.
    fn output<V: Vector>(m: Line<V>) -> Line<V>;
    /// A y: output gradients to as many values as there are products.
    fn output_gradient<V: Vector>(y: Line<V>) -> Line<V>;
    /// G g: three taps to values.
    fn filter<V: Vector>(g: [V; 3]) -> Line<V>;
    /// Gᵀ u: values to three taps.
    fn filter_gradient<V: Vector>(u: Line<V>) -> [V; 3];
}

/// F(4, 3).
pub(super) struct F4;

impl Filtering for F4 {
    const OUTPUTS: usize = 4;

    #[inline(always)]
    fn input<V: Vector>(d: Line<V>) -> Line<V> {
        let (even, odd) = (plus(d[4], d[2], -4.0), plus(d[3], d[1], -4.0));
        let (near, far) = (d[4].sub(d[2]), d[3].sub(d[1]));
        [
            plus(plus(d[4], d[2], -5.0), d[0], 4.0),
            even.add(odd),
            even.sub(odd),
            plus(near, far, 2.0),
            plus(near, far, -2.0),
            plus(plus(d[5], d[3], -5.0), d[1], 4.0),
        ]
    }

    #[inline(always)]
    fn output<V: Vector>(m: Line<V>) -> Line<V> {
        let (sum1, difference1) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (sum2, difference2) = (m[3].add(m[4]), m[3].sub(m[4]));
        let mut out = no_line();
        out[0] = m[0].add(sum1).add(sum2);
        out[1] = plus(difference1, difference2, 2.0);
        out[2] = plus(sum1, sum2, 4.0);
        out[3] = plus(difference1.add(m[5]), difference2, 8.0);
        out
    }

    #[inline(always)]
    fn output_gradient<V: Vector>(y: Line<V>) -> Line<V> {
        let (even1, odd1) = (y[0].add(y[2]), y[1].add(y[3]));
        let (even2, odd2) = (plus(y[0], y[2], 4.0), plus(y[1], y[3], 4.0));
        [y[0], even1.add(odd1), even1.sub(odd1), plus(even2, odd2, 2.0), plus(even2, odd2, -2.0), y[3]]
    }

    #[inline(always)]
    fn filter<V: Vector>(g: [V; 3]) -> Line<V> {
        let outer = times(g[0].add(g[2]), -1.0 / 6.0);
        let quarter = plus(times(g[0], 1.0 / 24.0), g[2], 1.0 / 6.0);
        [
            times(g[0], 0.25),
            plus(outer, g[1], -1.0 / 6.0),
            plus(outer, g[1], 1.0 / 6.0),
            plus(quarter, g[1], 1.0 / 12.0),
            plus(quarter, g[1], -1.0 / 12.0),
            g[2],
        ]
    }

    #[inline(always)]
    fn filter_gradient<V: Vector>(u: Line<V>) -> [V; 3] {
        let (sum1, difference1) = (u[1].add(u[2]), u[2].sub(u[1]));
        let (sum2, difference2) = (u[3].add(u[4]), u[3].sub(u[4]));
        let sum1 = times(sum1, -1.0 / 6.0);
        [
            plus(plus(sum1, u[0], 0.25), sum2, 1.0 / 24.0),
            plus(times(difference1, 1.0 / 6.0), difference2, 1.0 / 12.0),
            plus(sum1.add(u[5]), sum2, 1.0 / 6.0),
        ]
    }
}

/// F(2, 3).
pub(super) struct F2;

impl Filtering for F2 {
    const OUTPUTS: usize = 2;

    #[inline(always)]
    fn input<V: Vector>(d: Line<V>) -> Line<V> {
        let mut out = no_line();
        out[..4].copy_from_slice(&[d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[1].sub(d[3])]);
        out
    }

    #[inline(always)]
    fn output<V: Vector>(m: Line<V>) -> Line<V> {
        let mut out = no_line();
        out[..2].copy_from_slice(&[m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).sub(m[3])]);
        out
    }

    #[inline(always)]
    fn output_gradient<V: Vector>(y: Line<V>) -> Line<V> {
        let mut out = no_line();
        out[..4].copy_from_slice(&[y[0], y[0].add(y[1]), y[0].sub(y[1]), V::splat(0.0).sub(y[1])]);
        out
    }

    #[inline(always)]
    fn filter<V: Vector>(g: [V; 3]) -> Line<V> {
        let outer = times(g[0].add(g[2]), 0.5);
        let mut out = no_line();
        out[..4].copy_from_slice(&[g[0], plus(outer, g[1], 0.5), plus(outer, g[1], -0.5), g[2]]);
        out
    }

    #[inline(always)]
    fn filter_gradient<V: Vector>(u: Line<V>) -> [V; 3] {
        let sum = times(u[1].add(u[2]), 0.5);
        [u[0].add(sum), times(u[1].sub(u[2]), 0.5), sum.add(u[3])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    /// The one-dimensional identity behind it all: Aᵀ[(G g) ⊙ (Bᵀ d)] is the correlation of d with g.
    fn check<F: Filtering>() {
        let (d, g) = ([1.0, -2.0, 3.0, 0.5, -1.5, 2.5], [0.3, -0.7, 1.1]);
        let (seen, taps) = (F::input(d.map(Portable::splat)), F::filter(g.map(Portable::splat)));
        let products: Line<Portable> = std::array::from_fn(|i| seen[i].mul(taps[i]));
        for (i, y) in F::output(products).into_iter().take(F::OUTPUTS).enumerate() {
            let direct = d[i] * g[0] + d[i + 1] * g[1] + d[i + 2] * g[2];
            let mut lane = [0f32];
            y.write_to(&mut lane);
            assert!((lane[0] - direct).abs() < 1e-5, "{i}: {} and {direct}", lane[0]);
        }
    }

    #[test]
    fn transforms_compose_to_a_correlation() {
        check::<F4>();
        check::<F2>();
    }
}
