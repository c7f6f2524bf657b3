//! What a run starts from where it starts from no weights.

use crate::tiny;
use candle_core::Tensor;
use zoo_trainer::{Checkpoint, RunDir, TrainConfig};

#[test]
fn whitening_filters_come_from_the_images_and_stay() {
    let folder = tiny::folder();
    let config = TrainConfig {
        image_size: Some(32),
        epochs: 1,
        freeze: vec!["0.weight".into(), "*.norm?.weight".into()],
        norm_bias_lr_scale: 64.0,
        decay_biases: true,
        lookahead: 0.9,
        ..tiny::config("airbench94")
    };
    tiny::finish(tiny::new_trainer(&config, folder.path()).unwrap()).unwrap();
    let trained = Checkpoint::open(&folder.path().join(RunDir::LAST)).unwrap().weights.tensors;
    let values = |name: &str| -> Vec<f32> {
        trained[name].flatten_all().and_then(|tensor: Tensor| tensor.to_vec1()).unwrap()
    };

    // Eigenvectors: at right angles, the longer the less the images vary along them, and each with its opposite.
    let filters = values("0.weight");
    let filters: Vec<&[f32]> = filters.chunks_exact(12).collect();
    assert_eq!(filters.len(), 24);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let length = |i: usize| dot(filters[i], filters[i]).sqrt();
    for i in 0..12 {
        assert!(filters[i].iter().zip(filters[12 + i]).all(|(a, b)| *a == -*b), "{i}");
        assert!((0..i).all(|j| dot(filters[i], filters[j]).abs() < 1e-4 * length(i) * length(j)), "{i}");
        assert!(i == 0 || length(i) >= length(i - 1), "{i}");
    }
    assert!(length(11) > 2.0 * length(0));
    // Scales are frozen, shifts and the rest are not.
    for norm in ["2.norm1", "3.norm2", "4.norm1"] {
        assert!(values(&format!("{norm}.weight")).iter().all(|scale| *scale == 1.0));
        assert!(values(&format!("{norm}.bias")).iter().any(|shift| *shift != 0.0));
    }
    assert!(values("0.bias").iter().any(|shift| *shift != 0.0));
}
