//! Weights for other classes and channels: what is kept, what is made anew, what is refused.

use candle_core::{DType, Device, Tensor};
use candle_nn::ModuleT;
use zoo::weights::{self, StateDict};
use zoo::{Config, Model, Params, find};

/// A model of this form and its parameters.
fn model(name: &str, num_classes: usize, in_chans: usize, seed: u64) -> (Model, Params) {
    let spec = find(name).unwrap();
    let config = Config { num_classes, in_chans, image_size: (32, 32), ..spec.config() };
    let params = Params::new(seed);
    (Model::new(name, config, params.var_builder(&Device::Cpu)).unwrap(), params)
}

fn state(params: &Params) -> StateDict {
    let tensors = params.all().into_iter().map(|(name, var)| (name, var.as_tensor().copy().unwrap()));
    StateDict { tensors: tensors.collect(), ..StateDict::default() }
}

/// Images [2, channels, 32, 32] whose channels are equal.
fn grey(channels: usize) -> Tensor {
    let values: Vec<f32> = (0..2 * 32 * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
    Tensor::from_vec(values, (2, 1, 32, 32), &Device::Cpu).unwrap().repeat((1, channels, 1, 1)).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn a_new_head_keeps_its_initial_values_and_the_rest_is_loaded() {
    let (_, source) = model("cifar_resnet20", 10, 3, 1);
    let (_, target) = model("cifar_resnet20", 4, 3, 2);
    let (mut weights, before) = (state(&source), state(&target));
    let spec = find("cifar_resnet20").unwrap();
    let adapted = weights::adapt(spec, &mut weights, &target.shapes()).unwrap();
    assert_eq!((adapted.num_classes, adapted.in_chans), (Some((10, 4)), None));
    assert_eq!(adapted.fresh, ["linear.bias", "linear.weight"]);
    assert_eq!(adapted.to_string(), "new head for 4 classes instead of 10");
    // Without saying that the head is new, it is missed.
    let error = target.load(&weights).unwrap_err().to_string();
    assert!(error.contains("2 missing (linear.bias, linear.weight)"), "{error}");
    target.load_except(&weights, &adapted.fresh).unwrap();
    for (name, tensor) in state(&target).tensors {
        let from = if name.starts_with("linear") { &before } else { &state(&source) };
        assert_eq!(difference(&tensor, &from.tensors[&name]), 0.0, "{name}");
    }
}

#[test]
fn nothing_changes_where_nothing_must() {
    let (_, source) = model("cifar_resnet20", 10, 3, 1);
    let mut weights = state(&source);
    let adapted = weights::adapt(find("cifar_resnet20").unwrap(), &mut weights, &source.shapes()).unwrap();
    assert_eq!(adapted, weights::Adapted::default());
    assert_eq!(weights.tensors.len(), source.all().len());
}

/// On a grey picture, networks of one channel and of six compute what that of three does: sums in another
/// order, so the logits agree up to rounding.
#[test]
fn other_channels_see_the_same_in_a_grey_picture() {
    let spec = find("resnet18").unwrap();
    let (three, source) = model("resnet18", 5, 3, 1);
    let expected = three.forward_t(&grey(3), false).unwrap();
    let scale: f32 = expected.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
    for channels in [1, 6] {
        let (other, target) = model("resnet18", 5, channels, 2);
        let mut weights = state(&source);
        let adapted = weights::adapt(spec, &mut weights, &target.shapes()).unwrap();
        assert_eq!((adapted.in_chans, adapted.fresh.len()), (Some((3, channels)), 0));
        target.load_except(&weights, &adapted.fresh).unwrap();
        let logits = other.forward_t(&grey(channels), false).unwrap();
        let found = difference(&logits, &expected);
        assert!(found <= 1e-5 * scale, "{channels} channels differ by {found}, logits reach {scale}");
    }
}

#[test]
fn channels_are_repeated_in_turn_and_rescaled() {
    let weight = Tensor::from_vec(vec![3f32, 6.0, 9.0], (1, 3, 1, 1), &Device::Cpu).unwrap();
    let spec = find("resnet18").unwrap();
    for (channels, expected) in [
        (1, vec![18.0]),
        (2, vec![4.5, 9.0]),
        (4, vec![2.25, 4.5, 6.75, 2.25]),
        (7, [3.0, 6.0, 9.0, 3.0, 6.0, 9.0, 3.0].map(|v: f32| v * 3.0 / 7.0).to_vec()),
    ] {
        let mut weights = StateDict::default();
        weights.tensors.insert("conv1.weight".into(), weight.clone());
        let expected_shapes = [("conv1.weight".to_string(), vec![1, channels, 1, 1])];
        weights::adapt(spec, &mut weights, &expected_shapes).unwrap();
        let found: Vec<f32> = weights.tensors["conv1.weight"]
            .flatten_all()
            .unwrap()
            .to_dtype(DType::F32)
            .unwrap()
            .to_vec1()
            .unwrap();
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        assert_eq!(found.len(), channels);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_left_alone() {
    let (_, source) = model("cifar_resnet20", 10, 3, 1);
    let (_, deeper) = model("cifar_resnet32", 4, 1, 2);
    let mut weights = state(&source);
    let error = weights::adapt(find("cifar_resnet32").unwrap(), &mut weights, &deeper.shapes())
        .unwrap_err()
        .to_string();
    assert!(error.contains("do not fit the model") && error.contains("missing (layer1.3."), "{error}");
    assert_eq!(weights.tensors["conv1.weight"].dims(), [16, 3, 3, 3]);
    assert_eq!(weights.tensors.len(), source.all().len());

    // A linear first layer has a column per pixel and channel: there is no telling them apart.
    let (_, source) = model("mlp", 10, 3, 1);
    let (_, target) = model("mlp", 10, 1, 1);
    let error =
        weights::adapt(find("mlp").unwrap(), &mut state(&source), &target.shapes()).unwrap_err().to_string();
    assert!(error.contains("fc1.weight: expected [512, 1024], found [512, 3072]"), "{error}");
}

/// Names and shapes of a network with an auxiliary head of `classes` classes, as a state dict.
fn with_auxiliary(classes: usize, auxiliary: bool) -> StateDict {
    let mut state = StateDict::default();
    let mut add = |name: &str, shape: &[usize]| {
        state.tensors.insert(name.into(), Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    };
    add("conv1.weight", &[4, 3, 3, 3]);
    add("fc.weight", &[classes, 4]);
    add("fc.bias", &[classes]);
    if auxiliary {
        add("aux1.conv.weight", &[8, 4, 1, 1]);
        add("aux1.fc2.weight", &[classes, 8]);
        add("AuxLogits.fc.bias", &[classes]);
    }
    state
}

fn shapes(state: &StateDict) -> Vec<(String, Vec<usize>)> {
    state.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect()
}

#[test]
fn auxiliary_heads_may_be_absent_and_are_renewed_with_the_head() {
    let spec = find("resnet18").unwrap();
    let (with, without) = (with_auxiliary(10, true), with_auxiliary(10, false));
    for (expected, found) in [(&with, &without), (&without, &with)] {
        let report = weights::check(&shapes(expected), found);
        assert!(report.is_match(), "{report}");
        assert_eq!(report.auxiliary, ["AuxLogits.fc.bias", "aux1.conv.weight", "aux1.fc2.weight"]);
    }
    let mut half = with_auxiliary(10, true);
    half.tensors.remove("aux1.conv.weight");
    assert_eq!(weights::check(&shapes(&with), &half).missing, ["aux1.conv.weight"]);

    let mut state = with_auxiliary(10, true);
    let adapted = weights::adapt(spec, &mut state, &shapes(&with_auxiliary(3, true))).unwrap();
    assert_eq!(adapted.fresh, ["AuxLogits.fc.bias", "aux1.fc2.weight", "fc.bias", "fc.weight"]);
    assert_eq!(state.tensors.keys().collect::<Vec<_>>(), ["aux1.conv.weight", "conv1.weight"]);

    let mut state = with_auxiliary(10, false);
    let adapted = weights::adapt(spec, &mut state, &shapes(&with)).unwrap();
    assert_eq!(adapted.fresh, ["AuxLogits.fc.bias", "aux1.conv.weight", "aux1.fc2.weight"]);
    assert_eq!(adapted.to_string(), "new auxiliary heads, which the weights lack");

    let mut state = with_auxiliary(10, true);
    let adapted = weights::adapt(spec, &mut state, &shapes(&without)).unwrap();
    assert_eq!((adapted.fresh.len(), state.tensors.len()), (0, 3));
}

#[test]
fn tensors_with_a_row_for_each_class() {
    // As many classes as a hidden layer has outputs.
    for (model, classes, expected) in [
        ("resnet18", 64, &["fc.bias", "fc.weight"][..]),
        ("squeezenet1_0", 64, &["classifier.1.bias", "classifier.1.weight"]),
        (
            "googlenet",
            1024,
            &["aux1.fc2.bias", "aux1.fc2.weight", "aux2.fc2.bias", "aux2.fc2.weight", "fc.bias", "fc.weight"],
        ),
        ("softmax", 10, &["fc.bias", "fc.weight"]),
    ] {
        let spec = find(model).unwrap();
        let config = Config { num_classes: classes, ..spec.config() };
        let mut names = weights::class_tensors(spec, &config).unwrap();
        names.sort();
        assert_eq!(names, expected, "{model}");
    }
}
