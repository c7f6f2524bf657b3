//! Properties that every model has.

use candle_core::{Device, Result, Tensor};
use candle_nn::{Init, ModuleT};
use rand::Rng;
use zoo::weights::StateDict;
use zoo::{Config, Model, Params, Spec, Stem, Summary, find, infer_config, layers, registry};
use zoo_ops::FeatureMap;
use zoo_ops::rng::Noise;

/// Images [n, c, h, w] of uniform noise of unit variance, from a seed.
fn noise(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut rng = zoo_ops::rng::stream(seed, "images", 0);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| (rng.random::<f32>() - 0.5) * 12f32.sqrt()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// A configuration for small images and ten classes.
fn small(spec: &Spec) -> Config {
    let side = spec.input[1].min(32);
    // A block that stochastic depth leaves out gets no gradient.
    Config { num_classes: 10, image_size: (side, side), drop_path: Some(0.0), ..spec.config() }
}

fn seeded(name: &str, config: Config, seed: u64) -> Result<(Model, Params)> {
    let params = Params::new(seed);
    Ok((Model::new(name, config, params.var_builder(&Device::Cpu))?, params))
}

fn state_of(params: &Params) -> StateDict {
    let tensors = params.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor()));
    StateDict { tensors: tensors.collect(), ..Default::default() }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).unwrap_or_default()
}

/// The first line of an error's message: with `RUST_BACKTRACE` set, candle puts a backtrace behind it.
fn message<T>(result: Result<T>) -> String {
    let message = result.err().map(|error| error.to_string()).unwrap_or_default();
    message.lines().next().unwrap_or_default().to_string()
}

#[test]
fn every_parameter_gets_a_gradient() -> Result<()> {
    for spec in registry() {
        let config = small(spec);
        let (h, w) = config.image_size;
        let images = noise(&[2, config.in_chans, h, w], 1)?;
        let (model, params) = seeded(spec.name, config, 2)?;
        let (logits, heads) = model.forward_auxiliary(&FeatureMap::from_nchw(&images)?)?;
        assert_eq!(logits.dims(), [2, 10], "{}", spec.name);
        let targets = Tensor::new(&[3u32, 1], &Device::Cpu)?;
        let mut loss = candle_nn::loss::cross_entropy(&logits, &targets)?;
        for head in heads {
            assert_eq!(head.logits.dims(), [2, 10], "{}", spec.name);
            let auxiliary = candle_nn::loss::cross_entropy(&head.logits, &targets)?;
            loss = (loss + auxiliary.affine(head.loss_weight, 0.0)?)?;
        }
        let grads = loss.backward()?;
        for (name, var) in params.trainable() {
            let Some(grad) = grads.get(&var) else { candle_core::bail!("{}: {name} has none", spec.name) };
            let norm = grad.sqr()?.sum_all()?.to_scalar::<f32>()?;
            assert!(norm > 0.0 && norm.is_finite(), "{}: {name}: squared norm {norm}", spec.name);
        }
        let trained: usize = params.trainable().iter().map(|(_, var)| var.elem_count()).sum();
        let summary = Summary::of(&model)?;
        let rows = summary.layers.iter().chain(&summary.auxiliary);
        assert_eq!(trained, rows.map(|row| row.params).sum::<usize>(), "{}", spec.name);
    }
    Ok(())
}

#[test]
fn initial_values_follow_from_seed_and_name_alone() -> Result<()> {
    let spec = find("cifar_resnet20b")?;
    let (_, first) = seeded(spec.name, small(spec), 5)?;
    let (_, other) = seeded(spec.name, small(spec), 6)?;
    // Another order of creation: the last layer before all others.
    let params = Params::new(5);
    let vb = params.var_builder(&Device::Cpu);
    layers::Linear::new(64, 10, vb.pp("fc"))?;
    vb.get_with_hints((64, 64, 3, 3), "layer3.2.conv2.weight", layers::KAIMING_FAN_OUT)?;
    Model::new(spec.name, small(spec), vb)?;
    for (((name, a), (_, b)), (_, c)) in first.all().iter().zip(params.all()).zip(other.all()) {
        assert_eq!(values(a), values(&b), "{name}");
        let constant = name.contains("bn") || name.contains("downsample.1") || name.contains("running");
        assert_eq!(values(a) != values(&c), !constant, "{name}: seeds 5 and 6");
    }
    Ok(())
}

/// Mean and standard deviation.
fn moments(values: &[f32]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt())
}

#[test]
fn initial_values_have_the_published_distribution() -> Result<()> {
    // torchvision: normal with variance 2 / fan_out; the tolerance is four standard errors.
    let check_of = |model: &str, config: Config, weight: &str, variance: f64| -> Result<()> {
        let (_, params) = seeded(model, config, 3)?;
        let Some((_, var)) = params.all().into_iter().find(|(name, _)| name == weight) else {
            candle_core::bail!("no {weight}")
        };
        let (values, std) = (values(&var), variance.sqrt());
        let error = 4.0 * std / (values.len() as f64).sqrt();
        let (mean, found) = moments(&values);
        assert!(
            mean.abs() < error && (found - std).abs() < error,
            "{model} {weight}: {mean}, {found}, {std}"
        );
        Ok(())
    };
    let check =
        |model: &str, weight: &str, variance: f64| check_of(model, find(model)?.config(), weight, variance);
    check("resnet18", "conv1.weight", 2.0 / (64.0 * 49.0))?;
    check("resnet18", "layer2.0.downsample.0.weight", 2.0 / 128.0)?;
    check("resnet50", "layer1.0.conv3.weight", 2.0 / 256.0)?;
    // nn.Linear and nn.Conv2d: uniform within 1 / √fan_in, whose variance is 1 / (3 fan_in).
    check("resnet18", "fc.weight", 1.0 / (3.0 * 512.0))?;
    check("resnet18", "fc.bias", 1.0 / (3.0 * 512.0))?;
    check("lenet5", "conv2.weight", 1.0 / (3.0 * 150.0))?;
    check("lenet5", "fc1.bias", 1.0 / (3.0 * 400.0))?;
    // torchvision's GoogLeNet and Inception v3: normal, cut off so far away that it makes no difference.
    check("googlenet", "inception4a.branch2.1.conv.weight", 0.01 * 0.01)?;
    check("googlenet", "aux1.fc1.weight", 0.01 * 0.01)?;
    check("inception_v3", "Mixed_6b.branch7x7_2.conv.weight", 0.1 * 0.1)?;
    check("inception_v3", "AuxLogits.fc.weight", 0.001 * 0.001)?;
    check("inception_bn", "inception_4a_3x3.weight", 1.0 / (3.0 * 64.0 * 9.0))?;
    check("inception_v4", "features.10.branch1.2.conv.weight", 1.0 / (3.0 * 224.0 * 9.0))?;
    check("inception_resnet_v2", "repeat.3.conv2d.bias", 1.0 / (3.0 * 128.0))?;
    // akamaster: normal with variance 2 / fan_in, the output layer too; chenyaofo: as torchvision.
    check("cifar_resnet20", "layer2.0.conv1.weight", 2.0 / (16.0 * 9.0))?;
    check("cifar_resnet20", "linear.weight", 2.0 / 64.0)?;
    check("cifar_resnet20b", "layer2.0.conv1.weight", 2.0 / (32.0 * 9.0))?;
    check("cifar_resnet20b", "fc.weight", 1.0 / (3.0 * 64.0))?;
    // torchvision: nn.Conv2d and nn.Linear as they are.
    check("alexnet", "features.3.weight", 1.0 / (3.0 * 64.0 * 25.0))?;
    check("alexnet_2012", "conv2.bias", 1.0 / (3.0 * 48.0 * 25.0))?;
    check("zfnet", "conv2.weight", 1.0 / (3.0 * 96.0 * 25.0))?;
    // Normal with variance 2 / fan_out, and with a deviation of 0.01.
    let small = |name: &str| -> Result<Config> { Ok(small(find(name)?)) };
    check_of("vgg11_bn", small("vgg11_bn")?, "features.4.weight", 2.0 / (128.0 * 9.0))?;
    check_of("vgg11_bn", small("vgg11_bn")?, "classifier.0.weight", 1e-4)?;
    check("nin", "features.8.weight", 2.0 / (96.0 * 25.0))?;
    // kaiming_uniform_: variance 2 / fan_in.
    check("squeezenet1_1", "features.3.squeeze.weight", 2.0 / 64.0)?;
    check("squeezenet1_1", "classifier.1.weight", 1e-4)?;
    // torchvision's DenseNet: fan_in; gpleiss: fan_out, of 12 maps. kuangliu: PyTorch's own.
    check("densenet121", "features.denseblock2.denselayer3.conv2.weight", 2.0 / (128.0 * 9.0))?;
    check("densenet_bc_100_12", "features.denseblock2.denselayer3.conv2.weight", 2.0 / (12.0 * 9.0))?;
    check("resnext50_32x4d", "layer1.0.conv2.weight", 2.0 / (128.0 * 9.0))?;
    check("resnext29_32x4d", "layer1.0.conv2.weight", 1.0 / (3.0 * 4.0 * 9.0))?;
    check("preact_resnet18", "layer2.0.shortcut.0.weight", 1.0 / (3.0 * 64.0))?;
    // timm: fan_out, and PyTorch's own biases.
    check("se_resnet50", "layer1.0.se.fc1.weight", 2.0 / 16.0)?;
    check("resnest50", "layer4.0.conv2.fc2.bias", 1.0 / (3.0 * 256.0))?;
    // xternalz: fan_out. imgclsmob: uniform by fan_in with ReLU's gain.
    check("wrn_16_4", "block2.layer.0.conv1.weight", 2.0 / (128.0 * 9.0))?;
    check("preact_resnet1001", "features.stage1.unit2.body.conv2.conv.weight", 2.0 / (16.0 * 9.0))?;
    // torchvision's fan-out disregards groups, timm's does not.
    check("mobilenet_v2", "features.1.conv.0.0.weight", 2.0 / (32.0 * 9.0))?;
    check("mobilenet_v2", "classifier.1.weight", 1e-4)?;
    check("mobilenet_v1_100", "blocks.1.0.conv_dw.weight", 2.0 / 9.0)?;
    check("mobilenet_v1_100", "blocks.1.0.conv_pw.weight", 2.0 / 128.0)?;
    check("mobilenet_v1_025_leaky", "stage2.1.3.weight", 1.0 / (3.0 * 128.0))?;
    check("mobilenet_v3_small", "features.4.block.2.fc1.weight", 2.0 / 24.0)?;
    check("shufflenet_v2_x0_5", "stage2.1.branch2.0.weight", 1.0 / (3.0 * 24.0))?;
    // megvii-model: the deviation is one over the inputs of a group.
    check("shufflenet_v1", "features.1.branch_main_1.0.weight", 1.0 / (80.0 * 80.0))?;
    check("efficientnet_b0", "classifier.1.weight", 1.0 / (3.0 * 1000.0))?;
    check("mnasnet1_0", "classifier.1.weight", 1.0 / 1000.0)?;
    check("regnet_y_400mf", "trunk_output.block1.block1-0.f.b.0.weight", 2.0 / (48.0 * 9.0))?;
    check("regnet_y_400mf", "trunk_output.block1.block1-0.f.se.fc1.bias", 1.0 / (3.0 * 48.0))?;
    // Uniform within a quarter, as Kim's words without a vector; nn.Conv2d as it is.
    check("textcnn", "embed.weight", 0.25 * 0.25 / 3.0)?;
    check("textcnn", "convs1.2.weight", 1.0 / (3.0 * 5.0 * 300.0))
}

#[test]
fn stochastic_depth_leaves_images_out_in_training_only() -> Result<()> {
    let spec = find("efficientnet_b0")?;
    let images = noise(&[4, 3, 32, 32], 1)?;
    let run = |drop_path, train, calls| {
        let noise = Noise::new(3);
        noise.set_calls(calls);
        let config = Config { drop_path, dropout: Some(0.0), noise: noise.clone(), ..small(spec) };
        let (model, _) = seeded(spec.name, config, 1)?;
        let logits = values(&model.forward_t(&images, train)?);
        Result::Ok((logits, noise.calls() - calls))
    };
    let (plain, masks) = run(Some(0.0), true, 0)?;
    assert_eq!(masks, 0);
    // The nine shortcuts, but not that of a block at depth 0: here it has none.
    let (dropped, masks) = run(Some(0.9), true, 0)?;
    assert_eq!(masks, 9);
    assert_ne!(dropped, plain);
    assert_eq!(run(Some(0.9), true, 0)?.0, dropped);
    assert_ne!(run(Some(0.9), true, 100)?.0, dropped);
    assert_eq!(run(None, true, 0)?.1, 9);
    assert_eq!(run(Some(0.9), false, 0)?, run(Some(0.0), false, 0)?);
    Ok(())
}

#[test]
fn uniform_initial_values_stay_within_their_bound() -> Result<()> {
    let vb = Params::new(4).var_builder(&Device::Cpu);
    let bound = 0.25;
    let weight = vb.get_with_hints((64, 16), "weight", layers::PYTORCH_DEFAULT)?;
    let bias = vb.get_with_hints(512, "bias", Init::Uniform { lo: -bound, up: bound })?;
    for values in [values(&weight), values(&bias)] {
        let largest = values.iter().fold(0f64, |max, v| max.max(f64::from(v.abs())));
        assert!(largest <= bound && largest > 0.95 * bound, "{largest}");
    }
    Ok(())
}

#[test]
fn resnets_take_other_images() -> Result<()> {
    for (name, in_chans, h, w) in [
        ("cifar_resnet20", 1, 28, 28),
        ("cifar_resnet20b", 3, 61, 45),
        ("resnet18", 1, 28, 28),
        ("resnet18", 3, 1, 1),
    ] {
        let config = Config { in_chans, image_size: (h, w), num_classes: 7, ..find(name)?.config() };
        let (model, _) = seeded(name, config, 0)?;
        let logits = model.forward_t(&noise(&[2, in_chans, h, w], 0)?, false)?;
        assert_eq!(logits.dims(), [2, 7], "{name}");
        // Fully convolutional: another size than it was built for.
        assert_eq!(model.forward_t(&noise(&[1, in_chans, 40, 33], 0)?, false)?.dims(), [1, 7], "{name}");
    }
    let config = Config { image_size: (224, 224), ..find("cifar_resnet20")?.config() };
    let last =
        Summary::new("cifar_resnet20", &config)?.layers.into_iter().rev().find(|row| row.kind == "conv2d");
    assert_eq!(last.map(|row| row.output), Some([64, 56, 56]));
    Ok(())
}

#[test]
fn the_stem_follows_the_image_size_unless_told() -> Result<()> {
    let spec = find("resnet18")?;
    let kernel = |stem, side| -> Result<Option<usize>> {
        let config = Config { stem, image_size: (side, side), ..spec.config() };
        Ok(Summary::new(spec.name, &config)?.layers[0].window.map(|window| window.kernel.0))
    };
    for (stem, side, expected) in
        [(Stem::Auto, 64, 3), (Stem::Auto, 65, 7), (Stem::Cifar, 224, 3), (Stem::ImageNet, 32, 7)]
    {
        assert_eq!(kernel(stem, side)?, Some(expected), "{stem:?} at {side}");
    }
    Ok(())
}

#[test]
fn the_form_for_small_images_is_known() -> Result<()> {
    for (name, stem, side, expected) in [
        ("squeezenet1_1", Stem::Auto, 64, true),
        ("squeezenet1_1", Stem::Auto, 65, false),
        // Whose classifier alone differs.
        ("vgg11", Stem::Auto, 32, true),
        // Too small for the published form.
        ("inception_v3", Stem::Auto, 32, true),
        ("resnet18", Stem::ImageNet, 32, false),
        ("resnet18", Stem::Cifar, 224, true),
        // Of one form.
        ("lenet5", Stem::Auto, 28, false),
        ("cifar_resnet20", Stem::Cifar, 32, false),
        ("densenet_bc_100_12", Stem::Auto, 32, false),
    ] {
        let config = Config { stem, image_size: (side, side), ..find(name)?.config() };
        assert_eq!(Summary::new(name, &config)?.small_form, expected, "{name}, {stem:?} at {side}");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() -> Result<()> {
    let build = |name: &str, change: fn(&mut Config)| -> Result<Model> {
        let mut config = find(name)?.config();
        change(&mut config);
        Ok(seeded(name, config, 0)?.0)
    };
    let mlp = build("mlp", |_| {})?;
    for (message, parts) in [
        (message(build("mlp", |c| c.num_classes = 0)), ["mlp", "classes"]),
        (message(build("resnet18", |c| c.image_size = (0, 32))), ["resnet18", "0x32 pixels"]),
        (message(build("lenet5", |c| c.image_size = (7, 28))), ["lenet5", "7x28 pixels are too small"]),
        (
            message(build("alexnet", |c| c.image_size = (62, 90))),
            ["alexnet: images of 62x90 pixels are too small", "smallest are 63x63"],
        ),
        (
            message(build("zfnet", |c| c.image_size = (12, 9))),
            ["zfnet: images of 12x9 pixels are too small", "smallest are 22x22"],
        ),
        (
            message(build("squeezenet1_0", |c| (c.image_size, c.stem) = ((20, 200), Stem::ImageNet))),
            ["squeezenet1_0: images of 20x200 pixels are too small", "smallest are 21x21"],
        ),
        (
            message(build("inception_v3", |c| c.image_size = (74, 80))),
            ["74x80 pixels are too small", "smallest are 75x75"],
        ),
        (
            message(build("googlenet", |c| (c.image_size, c.stem) = ((14, 15), Stem::ImageNet))),
            ["14x15 pixels are too small", "smallest are 15x15"],
        ),
        (
            message(mlp.forward_t(&noise(&[1, 1, 32, 32], 0)?, false)),
            ["mlp", "images of 28x28, was given 32x32"],
        ),
        (message(mlp.forward_t(&noise(&[1, 3, 28, 28], 0)?, false)), ["mlp", "1 channels, found 3"]),
    ] {
        assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
    }
    Ok(())
}

#[test]
fn loading_copies_every_tensor_or_nothing() -> Result<()> {
    let spec = find("cifar_resnet20b")?;
    let (_, source) = seeded(spec.name, small(spec), 1)?;
    let (_, target) = seeded(spec.name, small(spec), 2)?;
    let before = target.all().iter().map(|(_, var)| values(var)).collect::<Vec<_>>();

    let mut wrong = state_of(&source);
    let moved = wrong.tensors.remove("layer1.0.conv1.weight");
    wrong.tensors.insert("extra.weight".into(), noise(&[3], 0)?);
    wrong.tensors.insert("fc.weight".into(), noise(&[5, 64], 0)?);
    let message = message(target.load(&wrong));
    for part in
        ["missing (layer1.0.conv1.weight)", "unexpected (extra.weight)", "fc.weight", "[10, 64]", "[5, 64]"]
    {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert_eq!(target.all().iter().map(|(_, var)| values(var)).collect::<Vec<_>>(), before);

    let mut right = state_of(&source);
    assert!(moved.is_some());
    right.tensors.insert("bn1.num_batches_tracked".into(), Tensor::new(7i64, &Device::Cpu)?);
    target.load(&right)?;
    for ((name, a), (_, b)) in source.all().iter().zip(target.all()) {
        assert_eq!(values(a), values(&b), "{name}");
    }
    Ok(())
}

#[test]
fn auxiliary_heads_are_for_training_and_may_be_missing_in_weights() -> Result<()> {
    let spec = find("googlenet")?;
    let images = noise(&[2, 3, 16, 16], 1)?;
    let config = || Config { image_size: (16, 16), num_classes: 10, dropout: Some(0.0), ..spec.config() };
    let (model, params) = seeded(spec.name, config(), 1)?;
    let (logits, heads) = model.forward_auxiliary(&FeatureMap::from_nchw(&images)?)?;
    assert_eq!(heads.iter().map(|head| head.loss_weight).collect::<Vec<_>>(), [0.3, 0.3]);
    assert!(heads.iter().all(|head| values(&head.logits) != values(&logits)));
    // Batch statistics again, and no heads: the logits stay what they are.
    assert_eq!(values(&model.forward_t(&images, true)?), values(&logits));

    let expected = values(&model.forward_t(&images, false)?);
    let mut without = state_of(&params);
    without.tensors.retain(|name, _| !name.starts_with("aux"));
    let inferred = infer_config(spec, &without, (16, 16))?;
    let (copy, _) = Model::from_state_dict(spec.name, inferred, &without, &Device::Cpu)?;
    assert_eq!(values(&copy.forward_t(&images, false)?), expected);
    // Half a head is a mistake.
    let mut half = state_of(&params);
    half.tensors.remove("aux1.fc1.bias");
    assert!(message(copy_into(&half)).contains("missing (aux1.fc1.bias)"));
    Ok(())
}

/// GoogLeNet for small images with these weights.
fn copy_into(state: &StateDict) -> Result<(Model, Params)> {
    let spec = find("googlenet")?;
    Model::from_state_dict(spec.name, infer_config(spec, state, (16, 16))?, state, &Device::Cpu)
}

#[test]
fn a_model_from_weights_computes_what_their_model_did() -> Result<()> {
    let spec = find("cifar_resnet20")?;
    let (model, params) = seeded(spec.name, small(spec), 1)?;
    let images = noise(&[4, 3, 32, 32], 1)?;
    // So that running statistics are no longer 0 and 1.
    model.forward_t(&images, true)?;
    let state = state_of(&params);
    let (copy, copied) =
        Model::from_state_dict(spec.name, infer_config(spec, &state, (32, 32))?, &state, &Device::Cpu)?;
    assert_eq!(values(&model.forward_t(&images, false)?), values(&copy.forward_t(&images, false)?));
    assert_eq!(copied.trainable().len(), params.trainable().len());
    Ok(())
}

#[test]
fn weights_tell_their_configuration() -> Result<()> {
    for (name, num_classes, in_chans, side, stem) in [
        ("softmax", 7, 3, 32, Stem::Auto),
        ("mlp", 10, 1, 28, Stem::Auto),
        ("lenet5", 4, 3, 40, Stem::Auto),
        ("cifar_resnet20b", 100, 1, 28, Stem::Auto),
        ("resnet18", 10, 3, 32, Stem::Auto),
        // Weights with the CIFAR stem for images that would take the other one by default.
        ("resnet18", 10, 3, 96, Stem::Cifar),
        ("resnet50", 12, 4, 64, Stem::ImageNet),
        ("alexnet", 10, 1, 64, Stem::ImageNet),
        ("zfnet", 10, 3, 64, Stem::ImageNet),
        ("vgg11_bn", 10, 3, 96, Stem::Cifar),
        // Heads of 1x1 convolutions.
        ("nin", 7, 4, 32, Stem::Auto),
        ("nin_imagenet", 7, 3, 96, Stem::Cifar),
        ("squeezenet1_0", 5, 4, 96, Stem::Cifar),
        ("squeezenet1_1", 5, 1, 32, Stem::Auto),
        ("mobilenet_v1_100", 5, 1, 32, Stem::Auto),
        ("mobilenet_v1_025_leaky", 5, 3, 48, Stem::Auto),
        ("mobilenet_v2_x0_5", 10, 3, 32, Stem::Auto),
        ("shufflenet_v1", 7, 4, 32, Stem::Auto),
        ("textcnn", 5, 3, 9, Stem::Auto),
    ] {
        let spec = find(name)?;
        let config = Config { num_classes, in_chans, image_size: (side, side), stem, ..spec.config() };
        let params = Params::zeros();
        Model::new(name, config, params.var_builder(&Device::Cpu))?;
        let found = infer_config(spec, &state_of(&params), (side, side))?;
        assert_eq!((found.num_classes, found.in_chans, found.stem), (num_classes, in_chans, stem), "{name}");
    }
    let params = Params::zeros();
    Model::new("mlp", find("mlp")?.config(), params.var_builder(&Device::Cpu))?;
    let state = state_of(&params);
    let foreign = message(infer_config(find("resnet18")?, &state, (32, 32)));
    assert!(foreign.contains("not weights of resnet18") && foreign.contains("conv1.weight"), "{foreign}");
    let size = message(infer_config(find("mlp")?, &state, (32, 32)));
    assert!(size.contains("784 values") && size.contains("32x32"), "{size}");
    Ok(())
}
