//! The facts files against the code, and against what the peers report.

use candle_core::Result;
use zoo::{Config, Summary, facts, registry};

#[test]
fn counts_are_those_of_the_code() -> Result<()> {
    for spec in registry() {
        let facts = facts(spec.name)?;
        let summary = Summary::new(spec.name, &spec.config())?;
        assert_eq!((facts.params, facts.macs), (summary.params, summary.macs), "{}", spec.name);
    }
    Ok(())
}

#[test]
fn models_are_as_large_as_torchvision_says() -> Result<()> {
    // torchvision 0.22.1: parameters, and billions of multiply-adds to three places.
    for (name, params, gmacs) in [
        ("resnet18", 11_689_512, 1.814),
        ("resnet34", 21_797_672, 3.664),
        ("resnet50", 25_557_032, 4.089),
        ("resnet101", 44_549_160, 7.801),
        ("resnet152", 60_192_808, 11.514),
        ("wide_resnet50_2", 68_883_240, 11.398),
        ("wide_resnet101_2", 126_886_696, 22.753),
        ("resnext50_32x4d", 25_028_904, 4.230),
        ("resnext101_32x8d", 88_791_336, 16.414),
        ("resnext101_64x4d", 83_455_272, 15.460),
        ("alexnet", 61_100_840, 0.714),
        ("vgg11", 132_863_336, 7.609),
        ("vgg13", 133_047_848, 11.308),
        ("vgg16", 138_357_544, 15.470),
        ("vgg19", 143_667_240, 19.632),
        ("vgg11_bn", 132_868_840, 7.609),
        ("vgg13_bn", 133_053_736, 11.308),
        ("vgg16_bn", 138_365_992, 15.470),
        ("vgg19_bn", 143_678_248, 19.632),
        ("squeezenet1_0", 1_248_424, 0.819),
        ("squeezenet1_1", 1_235_496, 0.349),
    ] {
        let facts = facts(name)?;
        assert_eq!(facts.params, params, "{name}");
        assert_eq!((facts.macs as f64 / 1e6).round() / 1e3, gmacs, "{name}");
    }
    Ok(())
}

#[test]
fn inceptions_are_as_large_as_torchvision_and_timm_say() -> Result<()> {
    // torchvision counts Inception v3's auxiliary head and not GoogLeNet's; multiply-adds never have them.
    for (name, params, gmacs, auxiliary) in [
        ("googlenet", 6_624_904, 1.498, 6_379_984),
        ("inception_v3", 27_161_264, 5.713, 3_326_696),
        // timm 1.0.31
        ("inception_v4", 42_679_816, 12.254, 0),
        ("inception_resnet_v2", 55_843_464, 13.156, 0),
        // Cadene/pretrained-models.pytorch
        ("inception_bn", 11_295_240, 2.033, 0),
    ] {
        let facts = facts(name)?;
        assert_eq!(facts.params, params, "{name}");
        assert_eq!((facts.macs as f64 / 1e6).round() / 1e3, gmacs, "{name}");
        let summary = Summary::new(name, &zoo::find(name)?.config())?;
        assert_eq!(summary.auxiliary_params(), auxiliary, "{name}");
    }
    Ok(())
}

#[test]
fn densenets_are_as_large_as_torchvision_says() -> Result<()> {
    for (name, params, gmacs) in [
        ("densenet121", 7_978_856, 2.834),
        ("densenet161", 28_681_000, 7.728),
        ("densenet169", 14_149_480, 3.360),
        ("densenet201", 20_013_928, 4.291),
    ] {
        let facts = facts(name)?;
        assert_eq!(facts.params, params, "{name}");
        assert_eq!((facts.macs as f64 / 1e6).round() / 1e3, gmacs, "{name}");
    }
    Ok(())
}

#[test]
fn networks_for_cifar_are_as_large_as_their_papers_say() -> Result<()> {
    // Millions of parameters: wide residual networks, table 5; DenseNet, table 2; identity mappings, table 4,
    // whose 10.2 million do not count normalisations.
    for (name, millions) in [("wrn_28_10", 36.5), ("densenet_bc_100_12", 0.8), ("preact_resnet1001", 10.3)] {
        assert_eq!((facts(name)?.params as f64 / 1e5).round() / 1e1, millions, "{name}");
    }
    Ok(())
}

#[test]
fn mobile_networks_are_as_large_as_published() -> Result<()> {
    // Parameters, and millions of multiply-adds: torchvision 0.29.2 for its models, else the papers.
    for (name, params, mmacs) in [
        ("mobilenet_v2", 3_504_872, 301),
        ("mobilenet_v3_small", 2_542_856, 57),
        ("mobilenet_v3_large", 5_483_032, 217),
        ("shufflenet_v2_x0_5", 1_366_792, 40),
        ("shufflenet_v2_x1_0", 2_278_604, 145),
        ("shufflenet_v2_x1_5", 3_503_624, 296),
        ("shufflenet_v2_x2_0", 7_393_996, 583),
        ("efficientnet_b0", 5_288_548, 386),
        ("mnasnet1_0", 4_383_312, 314),
        ("regnet_x_400mf", 5_495_976, 414),
        ("regnet_y_400mf", 4_344_144, 402),
        // Tables 6 and 7 of arXiv 1704.04861 have 41, 149, 325 and 569 million; timm has the parameters.
        ("mobilenet_v1_025", 470_072, 41),
        ("mobilenet_v1_050", 1_331_592, 149),
        ("mobilenet_v1_075", 2_585_560, 325),
        ("mobilenet_v1_100", 4_231_976, 569),
    ] {
        let facts = facts(name)?;
        assert_eq!(facts.params, params, "{name}");
        assert_eq!((facts.macs as f64 / 1e6).round() as u64, mmacs, "{name}");
    }
    // The authors of ShuffleNet report 1.9 and 138 million, of which the latter includes more than is counted here.
    let shufflenet = facts("shufflenet_v1")?;
    assert_eq!((shufflenet.params + 50_000) / 100_000, 19);
    assert_eq!(shufflenet.macs / 1_000_000, 137);
    Ok(())
}

#[test]
fn cifar_resnets_are_as_large_as_the_paper_says() -> Result<()> {
    // Table 6: millions of parameters.
    for (name, millions) in [("20", 0.27), ("32", 0.46), ("44", 0.66), ("56", 0.85), ("110", 1.73)]
        .map(|(d, m)| (format!("cifar_resnet{d}"), m))
    {
        assert_eq!((facts(&name)?.params as f64 / 1e4).round() / 1e2, millions, "{name}");
    }
    Ok(())
}

#[test]
fn models_of_papers_without_counts_are_as_large_as_their_definitions_say() -> Result<()> {
    // Weights and biases, layer by layer.
    let conv = |kernel: usize, c_in: usize, c_out: usize| (kernel * kernel * c_in + 1) * c_out;
    let linears = conv(1, 256 * 6 * 6, 4096) + conv(1, 4096, 4096) + conv(1, 4096, 1000);
    let alexnet = conv(11, 3, 96)
        + conv(5, 48, 256)
        + conv(3, 256, 384)
        + conv(3, 192, 384)
        + conv(3, 192, 256)
        + linears;
    let zfnet = conv(7, 3, 96)
        + conv(5, 96, 256)
        + conv(3, 256, 384)
        + conv(3, 384, 384)
        + conv(3, 384, 256)
        + linears;
    let nin = conv(5, 3, 192)
        + conv(1, 192, 160)
        + conv(1, 160, 96)
        + conv(5, 96, 192)
        + 3 * conv(1, 192, 192)
        + conv(3, 192, 192)
        + conv(1, 192, 10);
    let textcnn = 20_000 * 300 + (3 + 4 + 5) * 300 * 100 + 300 + conv(1, 300, 2);
    for (name, params) in [("alexnet_2012", alexnet), ("zfnet", zfnet), ("nin", nin), ("textcnn", textcnn)] {
        assert_eq!(facts(name)?.params, params, "{name}");
    }
    Ok(())
}

#[test]
fn published_weights_are_described_in_full() -> Result<()> {
    for spec in registry() {
        let facts = facts(spec.name)?;
        assert!((1980..2030).contains(&facts.year) && !facts.source.is_empty(), "{}", spec.name);
        let mut tags: Vec<_> = facts.weights.iter().map(|weights| &weights.tag).collect();
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), facts.weights.len(), "{}: a tag twice", spec.name);
        for weights in &facts.weights {
            let what = format!("{} {}", spec.name, weights.tag);
            let digits = weights.sha256.len();
            assert!(digits == 8 || digits == 64, "{what}: {digits} digits of SHA-256");
            assert!(
                weights.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                "{what}"
            );
            assert!(
                weights.url.starts_with("https://") && weights.url.contains(&weights.sha256[..8]),
                "{what}"
            );
            assert!(weights.top1 > 50.0 && weights.top1 < 100.0, "{what}");
            let preprocessing = &weights.preprocessing;
            assert_eq!(preprocessing.mean.len(), preprocessing.std.len(), "{what}");
            assert_eq!(preprocessing.resize.is_some(), preprocessing.interpolation.is_some(), "{what}");
            // The model can be built for them.
            let config = Config {
                num_classes: weights.num_classes,
                in_chans: preprocessing.mean.len(),
                image_size: (preprocessing.image_size, preprocessing.image_size),
                ..spec.config()
            };
            Summary::new(spec.name, &config)?;
        }
    }
    Ok(())
}
