//! Frozen parameters: constants to the models that are built after, variables to everyone else.

use candle_core::{Device, Result, Tensor};
use candle_nn::ModuleT;
use std::collections::BTreeSet;
use zoo::{Config, Model, Params, find};

fn images() -> Result<Tensor> {
    let values: Vec<f32> = (0..4 * 3 * 16 * 16).map(|i| (i as f32 * 0.37 + (i / 97) as f32).sin()).collect();
    Tensor::from_vec(values, (4, 3, 16, 16), &Device::Cpu)
}

/// A ResNet of which the parameters that `frozen` picks are frozen. Its running statistics are not those of images
/// like these.
fn model(frozen: impl Fn(&str) -> bool) -> Result<(Model, Params, BTreeSet<String>)> {
    let (device, params) = (Device::Cpu, Params::new(3));
    let config = Config { num_classes: 5, image_size: (16, 16), ..find("cifar_resnet20b")?.config() };
    Model::new("cifar_resnet20b", config.clone(), params.var_builder(&device))?;
    for (name, var) in params.all().iter().filter(|(name, _)| name.contains("running_")) {
        let value = if name.ends_with("mean") { 0.1 } else { 1.5 };
        var.set(&var.ones_like()?.affine(value, 0.0)?)?;
    }
    let frozen: BTreeSet<String> =
        params.trainable().into_iter().map(|(name, _)| name).filter(|name| frozen(name)).collect();
    params.freeze(frozen.iter().cloned());
    let model = Model::new("cifar_resnet20b", config, params.var_builder(&device))?;
    Ok((model, params, frozen))
}

fn loss(logits: &Tensor) -> Result<Tensor> {
    candle_nn::loss::cross_entropy(logits, &Tensor::new(&[0u32, 1, 2, 3], &Device::Cpu)?)
}

fn statistics(params: &Params) -> Result<Vec<(String, Vec<f32>)>> {
    let all = params.all().into_iter().filter(|(name, _)| name.contains("running_"));
    all.map(|(name, var)| Ok((name, var.to_vec1()?))).collect()
}

#[test]
fn a_frozen_backbone_is_the_network_of_inference() -> Result<()> {
    let (model, params, frozen) = model(|name| !name.starts_with("fc."))?;
    let before = statistics(&params)?;
    let logits = model.forward_t(&images()?, true)?;
    assert_eq!(logits.to_vec2::<f32>()?, model.forward_t(&images()?, false)?.to_vec2::<f32>()?);
    let gradients = zoo_ops::backward(&loss(&logits)?)?;
    for (name, var) in params.trainable() {
        assert_eq!(gradients.get(&var).is_none(), frozen.contains(&name), "{name}");
    }
    assert_eq!(statistics(&params)?, before);
    // What is loaded or set reaches the model.
    let zero = params.all().into_iter().find(|(name, _)| name == "bn1.weight").unwrap().1;
    zero.set(&zero.zeros_like()?)?;
    assert_ne!(model.forward_t(&images()?, true)?.to_vec2::<f32>()?, logits.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn gradients_pass_through_what_is_frozen() -> Result<()> {
    let (model, params, frozen) = model(|name| name.starts_with("layer2.0.bn1.") || name == "bn1.bias")?;
    let before = statistics(&params)?;
    let gradients = loss(&model.forward_t(&images()?, true)?)?.backward()?;
    for (name, var) in params.trainable() {
        assert_eq!(gradients.get(&var).is_none(), frozen.contains(&name), "{name}");
    }
    for ((name, after), (_, before)) in statistics(&params)?.iter().zip(&before) {
        assert_eq!(after == before, name.starts_with("layer2.0.bn1."), "{name}");
    }
    Ok(())
}

/// Frozen or not, a parameter that the others' gradients depend on has the same influence: gradients with some
/// frozen are those of the whole.
#[test]
fn the_other_gradients_stay_the_same() -> Result<()> {
    let (all, all_params, _) = model(|_| false)?;
    let (some, some_params, frozen) = model(|name| name.contains("conv2") || name.starts_with("fc."))?;
    let all = zoo_ops::backward(&loss(&all.forward_t(&images()?, true)?)?)?;
    let some = zoo_ops::backward(&loss(&some.forward_t(&images()?, true)?)?)?;
    for ((name, a), (_, b)) in all_params.trainable().into_iter().zip(some_params.trainable()) {
        let values =
            |tensor: Option<&Tensor>| tensor.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        if !frozen.contains(&name) {
            assert_eq!(values(all.get(&a)), values(some.get(&b)), "{name}");
        }
    }
    Ok(())
}
