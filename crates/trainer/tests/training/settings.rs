//! Settings and recipes.

use crate::tiny;
use std::path::PathBuf;
use toml::Table;
use zoo_data::Augment;
use zoo_trainer::{Precision, ScheduleKind, TrainConfig};

fn table(text: &str) -> Table {
    text.parse().unwrap()
}

fn refused(text: &str) -> String {
    let error = TrainConfig::from_toml(text, "recipe.toml").unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn toml_and_back_is_the_identity() {
    let full = TrainConfig {
        model: "lenet5".into(),
        dataset: "mnist".into(),
        data_dir: Some(PathBuf::from("a \"quoted\" folder")),
        epochs: 7,
        batch_size: 33,
        grad_accum: 3,
        lr: 0.1 + 0.2,
        momentum: 1.0 / 3.0,
        nesterov: false,
        weight_decay: 1e-300,
        decay_biases: true,
        schedule: ScheduleKind::OneCycle,
        milestones: vec![0.1, 0.7],
        gamma: 0.25,
        warmup_epochs: 0.35,
        label_smoothing: 0.1,
        drop_path: Some(0.1),
        dropout: Some(0.5),
        augment: Augment::Trivial,
        crop_scale: 0.35,
        mixup: 0.2,
        cutmix: 1.0,
        ema: 0.9999,
        lookahead: 0.0,
        scale_lr: true,
        sync_batch_norm: true,
        clip_grad: 2.5,
        val_fraction: 0.125,
        limit_train: Some(1000),
        limit_test: Some(100),
        shuffle: false,
        weights: Some(PathBuf::from("w.safetensors")),
        pretrained: None,
        freeze: vec!["conv*".into(), "fc".into()],
        backbone_lr_scale: 0.1,
        norm_bias_lr_scale: 64.0,
        layer_decay: 0.75,
        num_classes: Some(12),
        in_chans: Some(3),
        image_size: Some(30),
        resize: Some(34),
        interpolation: Some(zoo_data::Interpolation::Bicubic),
        stem: zoo::Stem::ImageNet,
        mean: Some(vec![0.1, 0.2, 0.3]),
        std: Some(vec![0.4, 0.5, 0.6]),
        seed: i64::MAX as u64,
        dtype: Precision::Bf16,
        strict_f32: true,
        threads: Some(2),
        log_every: 5,
        save_every: 9,
        undecided: Vec::new(),
    };
    let published = TrainConfig {
        weights: None,
        pretrained: Some("imagenet1k_v1".into()),
        ema: 0.0,
        lookahead: 0.95,
        augment: Augment::Alternating,
        ..full.clone()
    };
    for config in [full, published, TrainConfig { model: "mlp".into(), ..TrainConfig::default() }] {
        assert_eq!(TrainConfig::from_toml(&config.to_toml(), "text").unwrap(), config);
    }
}

#[test]
fn flags_beat_the_recipe_and_the_recipe_the_defaults() {
    let folder = tiny::folder();
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, "model = \"cifar_resnet20\"\nlr = 0.7\nepochs = 3\n").unwrap();
    let config = TrainConfig::resolve(Some(&recipe), &table("lr = 0.9\ndataset = \"shapes\"")).unwrap();
    assert_eq!((config.lr, config.epochs, config.dataset.as_str()), (0.9, 3, "shapes"));
    // Its family's weight decay, since there is no recipe for it on shapes.
    assert_eq!(config.weight_decay, 1e-4);
    let config = TrainConfig::resolve(None, &table("model = \"lenet5\"\ndataset = \"mnist\"")).unwrap();
    assert_eq!(config.batch_size, 64);
    // A run's own settings reproduce it.
    std::fs::write(&recipe, config.to_toml()).unwrap();
    assert_eq!(TrainConfig::resolve(Some(&recipe), &Table::new()).unwrap(), config);
}

/// A run that starts from weights takes nothing from a recipe for training from scratch that says how it is optimised,
/// but all else; what it is given goes before what fine-tuning will decide.
#[test]
fn with_weights_only_what_is_given_says_how_to_optimise() {
    let from_scratch = "model = \"cifar_resnet20\"\ndataset = \"cifar10\"";
    let recipe = TrainConfig::resolve(None, &table(from_scratch)).unwrap();
    assert_eq!((recipe.lr, recipe.schedule), (0.2, ScheduleKind::OneCycle));
    assert!(recipe.undecided.is_empty());

    let folder = tiny::folder();
    let file = folder.path().join("recipe.toml");
    std::fs::write(&file, "batch_size = 48\nweights = \"w.safetensors\"\nlr = 0.7").unwrap();
    let config = TrainConfig::resolve(Some(&file), &table(&format!("{from_scratch}\nlr = 0.3"))).unwrap();
    assert_eq!((config.lr, config.batch_size), (0.3, 48));
    assert_eq!(config.schedule, TrainConfig::default().schedule);
    let open = |key: &&str| config.undecided.contains(key);
    assert!(
        ["epochs", "warmup_epochs", "backbone_lr_scale", "clip_grad", "ema", "schedule"].iter().all(&open)
    );
    assert!(!["lr", "batch_size", "augment", "weights", "freeze", "mean"].iter().any(open));

    // What belongs to the network and its images stays: LeNet-5 is not augmented, airbench94's whitening is frozen.
    let with = |model: &str| {
        let flags = format!("model = \"{model}\"\ndataset = \"shapes\"\npretrained = \"some\"\nema = 0.9");
        TrainConfig::resolve(None, &table(&flags)).unwrap()
    };
    assert_eq!(with("lenet5").augment, Augment::None);
    let airbench = with("airbench94");
    assert_eq!(airbench.freeze, ["0.weight", "*.norm?.weight"]);
    assert_eq!((airbench.norm_bias_lr_scale, airbench.lookahead, airbench.ema), (1.0, 0.0, 0.9));
    assert_eq!(TrainConfig::from_toml(&airbench.to_toml(), "text").unwrap().undecided.len(), 0);
}

/// What is given later makes what was given before meaningless: there is one place for weights to come from, and the
/// size before the crop is that of a crop.
#[test]
fn settings_that_belong_together_are_replaced_together() {
    let folder = tiny::folder();
    let recipe = folder.path().join("recipe.toml");
    let base = "model = \"resnet18\"\nimage_size = 224\nresize = 256\npretrained = \"imagenet1k_v1\"";
    std::fs::write(&recipe, base).unwrap();
    let config = |flags: &str| TrainConfig::resolve(Some(&recipe), &table(flags)).unwrap();
    assert_eq!((config("").resize, config("").pretrained.as_deref()), (Some(256), Some("imagenet1k_v1")));
    assert_eq!(config("image_size = 320").resize, None);
    assert_eq!(config("image_size = 320\nresize = 400").resize, Some(400));
    let other = config("weights = \"mine.pth\"");
    assert_eq!((other.pretrained, other.weights), (None, Some(PathBuf::from("mine.pth"))));
}

/// A run of another length warms up for the same share of it, unless told how long.
#[test]
fn warmup_follows_the_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, "model = \"lenet5\"\nepochs = 20\nwarmup_epochs = 3").unwrap();
    let warmup = |flags: &str| TrainConfig::resolve(Some(&recipe), &table(flags)).unwrap().warmup_epochs;
    assert_eq!(warmup(""), 3.0);
    assert_eq!(warmup("epochs = 1"), 0.15);
    assert_eq!(warmup("epochs = 1\nwarmup_epochs = 1"), 1.0);
    let of_defaults = TrainConfig::resolve(None, &table("model = \"mlp\"\nepochs = 5")).unwrap();
    let defaults = TrainConfig::default();
    assert_eq!(of_defaults.warmup_epochs, defaults.warmup_epochs * 5.0 / defaults.epochs as f64);
}

#[test]
fn mistakes_are_named() {
    let unknown = refused("model = \"mlp\"\nlerning_rate = 1.0");
    assert!(unknown.starts_with("recipe.toml: unknown field `lerning_rate`, expected one of"), "{unknown}");
    let wrong_type = refused("model = \"mlp\"\nepochs = \"many\"");
    assert!(wrong_type.starts_with("recipe.toml: epochs: invalid type"), "{wrong_type}");
    let no_toml = refused("model = \"mlp\"\nepochs = = 3");
    assert!(no_toml.starts_with("recipe.toml: line 2: "), "{no_toml}");
    let augment = refused("model = \"mlp\"\naugment = \"auto\"");
    assert!(
        augment.contains("unknown augmentation 'auto'; there are: none, standard, alternating, trivial"),
        "{augment}"
    );
    assert!(refused("epochs = 3").starts_with("model: not given"));

    let flags = |text: &str| TrainConfig::resolve(None, &table(text)).unwrap_err().to_string();
    assert!(flags("epochs = 3").starts_with("model: not given"));
    assert!(flags("model = \"lenet_5\"").contains("unknown model 'lenet_5'; closest are lenet5"));
    assert!(flags("model = \"mlp\"\nx = 1").starts_with("the command line: unknown field `x`"));
    let missing = TrainConfig::resolve(Some("no/such.toml".as_ref()), &Table::new()).unwrap_err().to_string();
    assert!(missing.starts_with("no/such.toml: "), "{missing}");
}

#[test]
fn senseless_values_are_refused() {
    for (key, value, part) in [
        ("batch_size", "0", "must be at least 1, found 0"),
        ("epochs", "0", "must be at least 1, found 0"),
        ("grad_accum", "0", "must be at least 1, found 0"),
        ("threads", "0", "must be at least 1, found 0"),
        ("limit_train", "0", "must be at least 1, found 0"),
        ("lr", "nan", "must be a finite number of at least 0, found NaN"),
        ("lr", "-0.1", "must be a finite number of at least 0, found -0.1"),
        ("lr", "inf", "must be a finite number of at least 0, found inf"),
        ("weight_decay", "-1.0", "must be a finite number of at least 0, found -1"),
        ("warmup_epochs", "nan", "must be a finite number of at least 0, found NaN"),
        ("clip_grad", "-1.0", "must be a finite number of at least 0, found -1"),
        ("momentum", "1.0", "must be at least 0 and below 1, found 1"),
        ("crop_scale", "0.0", "must be above 0 and below 1, found 0"),
        ("crop_scale", "1.0", "must be above 0 and below 1, found 1"),
        ("mixup", "-0.2", "must be a finite number of at least 0, found -0.2"),
        ("cutmix", "inf", "must be a finite number of at least 0, found inf"),
        ("backbone_lr_scale", "-1.0", "must be a finite number of at least 0, found -1"),
        ("layer_decay", "0.0", "must be above 0 and at most 1, found 0"),
        ("layer_decay", "nan", "must be above 0 and at most 1, found NaN"),
        ("resize", "0", "must be at least 1, found 0"),
        ("ema", "nan", "must be at least 0 and below 1, found NaN"),
        ("dropout", "1.0", "must be at least 0 and below 1, found 1"),
        ("drop_path", "-0.1", "must be at least 0 and below 1, found -0.1"),
        ("label_smoothing", "-0.1", "must be at least 0 and below 1, found -0.1"),
        ("milestones", "[0.5, 60.0]", "must be at least 0 and below 1, found 60"),
        ("std", "[0.2, 0.0, 0.1]", "each value must be finite and above 0, found 0"),
        ("mean", "[nan]", "each value must be finite, found NaN"),
    ] {
        let error = refused(&format!("model = \"mlp\"\n{key} = {value}"));
        assert_eq!(error, format!("{key}: {part}"), "{key} = {value}");
    }
    let error = refused("model = \"mlp\"\nweights = \"w\"\npretrained = \"a\"");
    assert_eq!(error, "pretrained: cannot be combined with weights from a file");
    assert!(refused("model = \"mlp\"\nstem = \"vgg\"").contains("stem: unknown variant `vgg`"));
    let error = refused("model = \"mlp\"\nmomentum = 0.0");
    assert_eq!(error, "nesterov: needs a momentum above 0");
    assert!(refused("model = \"mlp\"\nepochs = -1").starts_with("recipe.toml: epochs: "));
}

#[test]
fn settings_that_do_not_fit_the_data_are_refused() {
    let refused = |change: fn(&mut TrainConfig)| {
        let folder = tiny::folder();
        let mut config = tiny::config("lenet5");
        change(&mut config);
        tiny::new_trainer(&config, folder.path()).unwrap_err().to_string()
    };
    let classes = refused(|config| config.num_classes = Some(3));
    assert_eq!(classes, "num_classes: must be at least the 7 classes of stripes, found 3");
    let mean = refused(|config| config.mean = Some(vec![0.5; 3]));
    assert_eq!(mean, "mean: needs a value for each of 1 channels, found 3");
    assert!(refused(|config| config.in_chans = Some(2)).contains("1 or 3 channels, found 2"));
    assert!(refused(|config| config.freeze = vec!["head".into()]).starts_with("freeze: 'head' matches no"));
    assert!(refused(|config| config.image_size = Some(4)).contains("too small"));
    assert!(refused(|config| config.resize = Some(15)).contains("between the crop's 16 and 16384, found 15"));
}
