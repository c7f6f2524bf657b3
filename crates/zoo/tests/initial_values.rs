//! Initial values that no distribution says.

use candle_core::{DType, Device};
use zoo::{Model, Params};
use zoo_ops::FeatureMap;

#[test]
fn convolutions_pass_their_input_on_at_first() {
    let params = Params::new(0);
    let spec = zoo::find("airbench94").unwrap();
    let model = Model::new(spec.name, spec.config(), params.var_builder(&Device::Cpu)).unwrap();
    let pixels: Vec<u8> = (0..8 * 3072u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let images = || {
        let (mean, std) = (vec![0.5; 3], vec![0.25; 3]);
        FeatureMap::from_bytes(&pixels, (8, 32, 32, 3), (&mean, &std), DType::F32, &Device::Cpu)
    };
    let drawn = params.get("3.conv1.weight").unwrap();
    model.initialise(&params, &images).unwrap();
    let weight = params.get("3.conv1.weight").unwrap();
    assert_eq!(weight.dims(), [256, 64, 3, 3]);
    let values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (i, value) in values[..64 * 64 * 9].iter().enumerate() {
        let (filter, channel, tap) = (i / (64 * 9), i / 9 % 64, i % 9);
        assert_eq!(*value, f32::from(u8::from(filter == channel && tap == 4)), "{i}");
    }
    let rest = drawn.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values[64 * 64 * 9..], rest[64 * 64 * 9..]);
    // The variables of the model itself changed.
    assert!(model.forward(&images().unwrap(), false).is_ok());
    assert_eq!(params.get("0.weight").unwrap().dims(), [24, 3, 2, 2]);
}
