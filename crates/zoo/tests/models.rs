//! Properties that every model has.

use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use zoo::{Config, Model, Spec, Stem};

/// A model for a number of classes and images of [c, h, w], with weights of zero.
fn hollow(name: &str, num_classes: usize, [c, h, w]: [usize; 3]) -> Result<Model> {
    let config = Config {
        num_classes,
        in_chans: c,
        image_size: (h, w),
        dropout: None,
        stem: Stem::Auto,
        noise: Default::default(),
    };
    Model::new(name, config, VarBuilder::zeros(DType::F32, &Device::Cpu))
}

fn params(spec: &Spec) -> Result<usize> {
    let rows = hollow(spec.name, spec.num_classes, spec.input)?.trace()?;
    Ok(rows.iter().map(|row| row.params).sum())
}

#[test]
fn resnets_have_the_parameters_of_torchvision() -> Result<()> {
    let expected = [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ];
    for (name, count) in expected {
        assert_eq!(params(zoo::find(name)?)?, count, "{name}");
    }
    Ok(())
}
