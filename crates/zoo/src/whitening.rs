//! Filters that make the patches of images uncorrelated and of equal variance.

use candle_core::{DType, Device, Result, Tensor};

/// Filters (2·d, c, `kernel`, `kernel`) for images (n, c, h, w), with d = c·`kernel`²: the eigenvectors of the patches'
/// second moments by falling eigenvalue λ, each divided by √(λ + `eps`), and then the same with the opposite sign
/// (arXiv 2404.00498, after Page's "How to train your ResNet 8").
///
/// An eigenvector's sign is chosen so that its largest component, the first of equals, is positive.
///
/// # Errors
/// If the images have fewer pixels than a filter.
pub(crate) fn whitening_filters(images: &Tensor, kernel: usize, eps: f64) -> Result<Tensor> {
    let (n, c, h, w) = images.dims4()?;
    if n == 0 || h < kernel || w < kernel {
        candle_core::bail!("whitening: {n} images of {h}x{w} pixels have no patches of {kernel}x{kernel}");
    }
    let pixels = images.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let d = c * kernel * kernel;
    let (mut moments, mut patch) = (vec![0f64; d * d], vec![0f64; d]);
    for image in pixels.chunks_exact(c * h * w) {
        for (y, x) in (0..=h - kernel).flat_map(|y| (0..=w - kernel).map(move |x| (y, x))) {
            for (i, value) in patch.iter_mut().enumerate() {
                let (channel, dy, dx) = (i / (kernel * kernel), i / kernel % kernel, i % kernel);
                *value = f64::from(image[(channel * h + y + dy) * w + x + dx]);
            }
            for (row, a) in moments.chunks_exact_mut(d).zip(&patch) {
                row.iter_mut().zip(&patch).for_each(|(sum, b)| *sum += a * b);
            }
        }
    }
    let patches = (n * (h - kernel + 1) * (w - kernel + 1)) as f64;
    moments.iter_mut().for_each(|sum| *sum /= patches);
    let mut eigen = eigen(moments, d);
    eigen.sort_by(|a, b| b.0.total_cmp(&a.0));
    let signed = |sign: f64| {
        eigen.iter().flat_map(move |(value, vector)| {
            let factor = sign / (value.max(0.0) + eps).sqrt();
            vector.iter().map(move |v| (v * factor) as f32)
        })
    };
    let filters: Vec<f32> = signed(1.0).chain(signed(-1.0)).collect();
    Tensor::from_vec(filters, (2 * d, c, kernel, kernel), &Device::Cpu)
}

/// Eigenvalues and eigenvectors of length 1 of a symmetric matrix [d, d], by Jacobi's rotations (Golub and Van Loan,
/// "Matrix computations", section 8.5).
fn eigen(mut matrix: Vec<f64>, d: usize) -> Vec<(f64, Vec<f64>)> {
    // A sweep squares what is left beside the diagonal, so that few are enough.
    const SWEEPS: usize = 30;
    // Row i is the i-th eigenvector.
    let mut vectors: Vec<f64> = (0..d * d).map(|i| f64::from(u8::from(i / d == i % d))).collect();
    for _ in 0..SWEEPS {
        for (p, q) in (0..d).flat_map(|p| (p + 1..d).map(move |q| (p, q))) {
            let beside = matrix[p * d + q];
            if beside == 0.0 {
                continue;
            }
            let theta = (matrix[q * d + q] - matrix[p * d + p]) / (2.0 * beside);
            let tan = theta.signum() / (theta.abs() + theta.hypot(1.0));
            let cos = 1.0 / tan.hypot(1.0);
            let sin = tan * cos;
            let rotate = |a: &mut f64, b: &mut f64| (*a, *b) = (cos * *a - sin * *b, sin * *a + cos * *b);
            for k in 0..d {
                let [a, b] = matrix.get_disjoint_mut([k * d + p, k * d + q]).expect("p is not q");
                rotate(a, b);
            }
            for k in 0..d {
                for rows in [&mut matrix, &mut vectors] {
                    let [a, b] = rows.get_disjoint_mut([p * d + k, q * d + k]).expect("p is not q");
                    rotate(a, b);
                }
            }
        }
    }
    let pair = |i: usize| {
        let vector = &vectors[i * d..][..d];
        let largest = vector.iter().fold(0f64, |m, v| if v.abs() > m.abs() + 1e-9 { *v } else { m });
        (matrix[i * d + i], vector.iter().map(|v| v * largest.signum()).collect())
    };
    (0..d).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvectors_are_what_a_matrix_only_stretches() {
        let d = 7;
        let entry = |i: usize, j: usize| ((i * j + i + j) % 11) as f64 - 4.0;
        let matrix: Vec<f64> = (0..d * d).map(|i| entry(i / d, i % d)).collect();
        let found = eigen(matrix.clone(), d);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for (i, (value, vector)) in found.iter().enumerate() {
            for (row, v) in matrix.chunks_exact(d).zip(vector) {
                assert!((dot(row, vector) - value * v).abs() < 1e-12, "{i}");
            }
            for (j, (_, other)) in found.iter().enumerate() {
                assert!((dot(vector, other) - f64::from(u8::from(i == j))).abs() < 1e-12, "{i} {j}");
            }
        }
    }

    /// What the filters answer to the patches that they were made from has variance 1 and no correlation.
    #[test]
    fn patches_become_white() {
        let (n, side) = (20, 9);
        // Neighbours resemble each other, and the second channel the first.
        let noise = |i: usize| (i as u32).wrapping_mul(2_654_435_761).rotate_left(13) % 1000;
        let value = |i: usize| (noise(i) + noise(i + 1)) as f32 / 500.0 - 1.0;
        let pixels: Vec<f32> = (0..n * 2 * side * side)
            .map(|i| value(i) + if i / (side * side) % 2 == 1 { value(i - side * side) } else { 0.0 })
            .collect();
        let images = Tensor::from_vec(pixels, (n, 2, side, side), &Device::Cpu).unwrap();
        let filters = whitening_filters(&images, 2, 0.0).unwrap();
        assert_eq!(filters.dims(), [16, 2, 2, 2]);
        let answers = images.conv2d(&filters, 0, 1, 1, 1).unwrap();
        let answers = answers.transpose(0, 1).unwrap().flatten_from(1).unwrap();
        let count = answers.dims()[1] as f64;
        let moments = (answers.matmul(&answers.t().unwrap()).unwrap() / count).unwrap();
        for (i, row) in moments.to_vec2::<f32>().unwrap().iter().enumerate() {
            for (j, moment) in row.iter().enumerate() {
                let expected = match (i % 8 == j % 8, i == j) {
                    (false, _) => 0.0,
                    (true, same) => {
                        if same {
                            1.0
                        } else {
                            -1.0
                        }
                    }
                };
                assert!((moment - expected).abs() < 1e-3, "{i} {j}: {moment}");
            }
        }
    }
}
