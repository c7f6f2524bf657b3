//! How large a batch a device has memory for.

use crate::{Error, Result};
use candle_core::{DType, Device};
use zoo::Model;

/// What a map takes of memory in training, as multiples of itself: its elements, their gradient for some of the time,
/// and what an operator keeps beside them.
const PER_MAP: f64 = 2.5;
/// Copies of the parameters: weights, velocities, gradients.
const PER_PARAMETER: f64 = 3.0;
/// What the device's libraries take, in bytes.
const LIBRARIES: f64 = 1.5e9;

/// Says of an error that is due to too little memory which batch would fit.
pub(crate) fn explain(
    error: Error,
    model: &Model,
    batch_size: usize,
    dtype: DType,
    device: &Device,
) -> Error {
    let text = error.to_string().to_lowercase().replace('_', " ");
    // The driver's words, and cuDNN's status.
    if !text.contains("out of memory") && !text.contains("status alloc") {
        return error;
    }
    let fits = total(device).and_then(|total| most_images(model, dtype, total).ok());
    // It did not fit, whatever the estimate says.
    Error::OutOfMemory {
        batch_size,
        fits: fits.map(|fits| fits.min(batch_size / 2)).filter(|&fits| fits > 0),
    }
}

/// The memory of a GPU in bytes; `None` of what is none.
#[cfg(feature = "cuda")]
pub(crate) fn total(device: &Device) -> Option<usize> {
    zoo_ops::cuda::total_memory(device).ok()
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn total(_: &Device) -> Option<usize> {
    None
}

/// The largest power of two of images that `total` bytes should be enough for; 0 if there is none.
fn most_images(model: &Model, dtype: DType, total: usize) -> Result<usize> {
    let rows = model.trace(1, dtype)?;
    let elements: usize = rows.iter().map(|row| row.output.iter().product::<usize>()).sum();
    let params: usize = rows.iter().map(|row| row.params).sum();
    let of_image = elements as f64 * dtype.size_in_bytes() as f64 * PER_MAP;
    let free = total as f64 - LIBRARIES - params as f64 * 4.0 * PER_PARAMETER;
    let images = (free / of_image).max(0.0) as usize;
    Ok(if images == 0 { 0 } else { 1 << images.ilog2() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zoo::{Config, Params, Stem};

    fn resnet50() -> Model {
        let config = Config {
            image_size: (224, 224),
            stem: Stem::ImageNet,
            ..zoo::find("resnet50").unwrap().config()
        };
        Model::new("resnet50", config, Params::new(0).var_builder(&Device::Cpu)).unwrap()
    }

    #[test]
    fn a_batch_for_a_gpu() {
        let model = resnet50();
        let most = |gigabytes: usize| most_images(&model, DType::BF16, gigabytes * 1_000_000_000).unwrap();
        assert_eq!((most(1), most(80)), (0, 256));
        assert!((64..=256).contains(&most(24)), "{}", most(24));
    }

    #[test]
    fn only_errors_of_memory_are_explained() {
        let model = resnet50();
        let say = |text: &str| {
            let error = Error::Tensor(candle_core::Error::Msg(text.into()));
            explain(error, &model, 64, DType::F32, &Device::Cpu).to_string()
        };
        assert_eq!(say("shapes differ"), "shapes differ");
        let expected = "out of memory on the GPU with batches of 64 images; no batch would fit";
        assert_eq!(say("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"), expected);
        assert_eq!(say("cuDNN: CUDNN_STATUS_ALLOC_FAILED"), expected);
        let error = Error::OutOfMemory { batch_size: 100, fits: Some(32) }.to_string();
        assert!(
            error.ends_with("--batch-size 32 should fit, and --grad-accum 4 with it makes the same steps")
        );
    }
}
