//! Weights under other names than the zoo's: translated, they give the logits of the network they are from.
//!
//! The files in `golden_foreign/` are made by scripts/golden/foreign.py.

mod formula;

use candle_core::{DType, Device, Tensor};
use candle_nn::ModuleT;
use serde::Deserialize;
use std::collections::BTreeMap;
use zoo::weights::{StateDict, translate};
use zoo::{Config, Model, Params, find};

#[derive(Deserialize)]
struct Golden {
    source: String,
    model: String,
    num_classes: usize,
    input: [usize; 4],
    logits: Vec<Vec<f64>>,
    keys: Vec<(String, Vec<usize>)>,
}

fn goldens() -> Vec<Golden> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden_foreign");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()).collect()
}

#[test]
fn translated_weights_give_the_same_logits() {
    let mut tested = 0;
    for golden in goldens() {
        let spec = find(&golden.model).unwrap();
        let [_, in_chans, h, w] = golden.input;
        let tensors =
            golden.keys.iter().map(|(name, shape)| (name.clone(), formula::state(name, shape).unwrap()));
        let mut state = StateDict { tensors: tensors.collect(), ..StateDict::default() };
        let translated = translate(spec, &mut state).unwrap().expect("another naming");
        assert_eq!((translated.source, translated.differs), (golden.source.as_str(), None));
        let config =
            Config { num_classes: golden.num_classes, in_chans, image_size: (h, w), ..spec.config() };
        let (model, _) = Model::from_state_dict(spec.name, config, &state, &Device::Cpu)
            .unwrap_or_else(|error| panic!("{}: {error}", golden.model));
        let images = formula::tensor("input", &golden.input, DType::F32).unwrap();
        let logits: Vec<Vec<f32>> = model.forward_t(&images, false).unwrap().to_vec2().unwrap();
        let pairs = logits.iter().flatten().zip(golden.logits.iter().flatten());
        let scale = golden.logits.iter().flatten().fold(0f64, |scale, logit| scale.max(logit.abs()));
        let worst = pairs.fold(0f64, |worst, (&found, &logit)| worst.max((f64::from(found) - logit).abs()));
        assert!(worst <= 5e-5 * scale, "{}: logits differ by {worst}, they reach {scale}", golden.model);
        tested += 1;
    }
    assert!(tested > 0);
}

/// A scalar for each name.
fn named(names: &[&str]) -> StateDict {
    let scalar = Tensor::new(1f32, &Device::Cpu).unwrap();
    let tensors: BTreeMap<String, Tensor> =
        names.iter().map(|name| ((*name).to_string(), scalar.clone())).collect();
    StateDict { tensors, ..StateDict::default() }
}

#[test]
fn names_of_cifar_collections() {
    let spec = find("resnet18").unwrap();
    for (source, names, expected) in [
        (
            "kuangliu/pytorch-cifar",
            ["conv1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.0.weight", "linear.weight"],
            ["conv1.weight", "fc.weight", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"],
        ),
        (
            "weiaicunzai/pytorch-cifar100",
            [
                "conv1.0.weight",
                "conv1.1.running_var",
                "conv2_x.0.residual_function.0.weight",
                "conv5_x.1.residual_function.4.bias",
            ],
            ["bn1.running_var", "conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.bias"],
        ),
    ] {
        let mut state = named(&names);
        assert_eq!(translate(spec, &mut state).unwrap().map(|t| t.source), Some(source));
        assert_eq!(state.tensors.keys().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn the_zoos_own_names_are_left_alone() {
    for name in ["resnet18", "cifar_resnet20", "lenet5"] {
        let spec = find(name).unwrap();
        let params = Params::zeros();
        Model::new(name, spec.config(), params.var_builder(&Device::Cpu)).unwrap();
        let tensors = params.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone()));
        let mut state = StateDict { tensors: tensors.collect(), ..StateDict::default() };
        let before: Vec<String> = state.tensors.keys().cloned().collect();
        assert_eq!(translate(spec, &mut state).unwrap(), None);
        assert_eq!(state.tensors.into_keys().collect::<Vec<_>>(), before);
    }
}

#[test]
fn two_tensors_never_get_one_name() {
    let mut state = named(&[
        "layer1.0.conv1.weight",
        "layer2.0.shortcut.0.weight",
        "layer2.0.downsample.0.weight",
        "linear.weight",
    ]);
    let error = translate(find("resnet18").unwrap(), &mut state).unwrap_err().to_string();
    assert!(error.contains("`layer2.0.downsample.0.weight`, which is the name of another"), "{error}");
    assert_eq!(state.tensors.len(), 4);
}
