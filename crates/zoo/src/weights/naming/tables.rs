//! The namings that are known, a line per rule.
//!
//! timm's are those of version 1.0, whose names have been the same since its first release.

use super::{Naming, Rule};

const fn rule(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, having: None, flatten: false }
}

const fn rule_if(having: &'static str, from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, having: Some(having), flatten: false }
}

/// A convolution over a whole map, or over a single pixel, that is a linear layer in the zoo.
const fn linear(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, having: None, flatten: true }
}

const PLAIN: Naming =
    Naming { source: "", models: &[], signs: &[], depths: &[], rules: &[], eps: None, differs: None };

/// In the gate of squeeze-and-excitation, which shifts what follows it by one.
const SE: &str = "blocks.{s}.{b}.se.conv_reduce.weight";

/// Every naming, in no order: which one a file has is told by its signs.
pub(super) static NAMINGS: &[Naming] = &[
    // Module names could have dots before PyTorch 0.4, and the files were never replaced.
    Naming {
        source: "torchvision before 0.2",
        models: &["densenet*"],
        signs: &["features.{block}.{layer}.norm.1.weight"],
        rules: &[
            rule("features.{block}.{layer}.norm.{n}.*", "features.{block}.{layer}.norm{n}.*"),
            rule("features.{block}.{layer}.conv.{n}.*", "features.{block}.{layer}.conv{n}.*"),
        ],
        ..PLAIN
    },
    Naming {
        source: "timm",
        models: &["vgg*"],
        signs: &["pre_logits.fc1.weight", "head.fc.weight"],
        rules: &[
            linear("pre_logits.fc1.*", "classifier.0.*"),
            linear("pre_logits.fc2.*", "classifier.3.*"),
            rule("head.fc.*", "classifier.6.*"),
        ],
        ..PLAIN
    },
    Naming {
        source: "timm",
        models: &["mobilenet_v2*"],
        signs: &["conv_stem.weight", "blocks.1.0.conv_pwl.weight"],
        depths: &[1, 2, 3, 4, 3, 3, 1],
        rules: &[
            rule("conv_stem.*", "features.0.0.*"),
            rule("bn1.*", "features.0.1.*"),
            rule("blocks.0.0.conv_dw.*", "features.1.conv.0.0.*"),
            rule("blocks.0.0.bn1.*", "features.1.conv.0.1.*"),
            rule("blocks.0.0.conv_pw.*", "features.1.conv.1.*"),
            rule("blocks.0.0.bn2.*", "features.1.conv.2.*"),
            rule("blocks.{s}.{b}.conv_pw.*", "features.{s:b+1}.conv.0.0.*"),
            rule("blocks.{s}.{b}.bn1.*", "features.{s:b+1}.conv.0.1.*"),
            rule("blocks.{s}.{b}.conv_dw.*", "features.{s:b+1}.conv.1.0.*"),
            rule("blocks.{s}.{b}.bn2.*", "features.{s:b+1}.conv.1.1.*"),
            rule("blocks.{s}.{b}.conv_pwl.*", "features.{s:b+1}.conv.2.*"),
            rule("blocks.{s}.{b}.bn3.*", "features.{s:b+1}.conv.3.*"),
            rule("conv_head.*", "features.18.0.*"),
            rule("bn2.*", "features.18.1.*"),
            rule("classifier.*", "classifier.1.*"),
        ],
        ..PLAIN
    },
    Naming {
        source: "timm",
        models: &["efficientnet_b*"],
        signs: &["conv_stem.weight", "blocks.1.0.conv_pwl.weight"],
        rules: &[
            rule("conv_stem.*", "features.0.0.*"),
            rule("bn1.*", "features.0.1.*"),
            rule("blocks.0.{b}.conv_dw.*", "features.1.{b}.block.0.0.*"),
            rule("blocks.0.{b}.bn1.*", "features.1.{b}.block.0.1.*"),
            rule("blocks.0.{b}.se.conv_reduce.*", "features.1.{b}.block.1.fc1.*"),
            rule("blocks.0.{b}.se.conv_expand.*", "features.1.{b}.block.1.fc2.*"),
            rule("blocks.0.{b}.conv_pw.*", "features.1.{b}.block.2.0.*"),
            rule("blocks.0.{b}.bn2.*", "features.1.{b}.block.2.1.*"),
            rule("blocks.{s}.{b}.conv_pw.*", "features.{s+1}.{b}.block.0.0.*"),
            rule("blocks.{s}.{b}.bn1.*", "features.{s+1}.{b}.block.0.1.*"),
            rule("blocks.{s}.{b}.conv_dw.*", "features.{s+1}.{b}.block.1.0.*"),
            rule("blocks.{s}.{b}.bn2.*", "features.{s+1}.{b}.block.1.1.*"),
            rule("blocks.{s}.{b}.se.conv_reduce.*", "features.{s+1}.{b}.block.2.fc1.*"),
            rule("blocks.{s}.{b}.se.conv_expand.*", "features.{s+1}.{b}.block.2.fc2.*"),
            rule("blocks.{s}.{b}.conv_pwl.*", "features.{s+1}.{b}.block.3.0.*"),
            rule("blocks.{s}.{b}.bn3.*", "features.{s+1}.{b}.block.3.1.*"),
            rule("conv_head.*", "features.8.0.*"),
            rule("bn2.*", "features.8.1.*"),
            rule("classifier.*", "classifier.1.*"),
        ],
        ..PLAIN
    },
    Naming {
        source: "timm",
        models: &["mnasnet*"],
        signs: &["conv_stem.weight", "blocks.1.0.conv_pwl.weight"],
        rules: &[
            rule("conv_stem.*", "layers.0.*"),
            rule("bn1.*", "layers.1.*"),
            rule("blocks.0.0.conv_dw.*", "layers.3.*"),
            rule("blocks.0.0.bn1.*", "layers.4.*"),
            rule("blocks.0.0.conv_pw.*", "layers.6.*"),
            rule("blocks.0.0.bn2.*", "layers.7.*"),
            rule("blocks.{s}.{b}.conv_pw.*", "layers.{s+7}.{b}.layers.0.*"),
            rule("blocks.{s}.{b}.bn1.*", "layers.{s+7}.{b}.layers.1.*"),
            rule("blocks.{s}.{b}.conv_dw.*", "layers.{s+7}.{b}.layers.3.*"),
            rule("blocks.{s}.{b}.bn2.*", "layers.{s+7}.{b}.layers.4.*"),
            rule("blocks.{s}.{b}.conv_pwl.*", "layers.{s+7}.{b}.layers.6.*"),
            rule("blocks.{s}.{b}.bn3.*", "layers.{s+7}.{b}.layers.7.*"),
            rule("conv_head.*", "layers.14.*"),
            rule("bn2.*", "layers.15.*"),
            rule("classifier.*", "classifier.1.*"),
        ],
        ..PLAIN
    },
    Naming {
        source: "timm",
        models: &["mobilenet_v3_large"],
        depths: &[1, 2, 3, 4, 2, 3, 1],
        ..MOBILENET_V3
    },
    Naming { source: "timm", models: &["mobilenet_v3_small"], depths: &[1, 2, 3, 2, 3, 1], ..MOBILENET_V3 },
    Naming {
        source: "timm",
        models: &["regnet_*"],
        signs: &["stem.conv.weight", "s1.b1.conv1.conv.weight"],
        rules: &[
            rule("stem.conv.*", "stem.0.*"),
            rule("stem.bn.*", "stem.1.*"),
            rule("s{i}.b{j}.conv1.conv.*", "trunk_output.block{i}.block{i}-{j-1}.f.a.0.*"),
            rule("s{i}.b{j}.conv1.bn.*", "trunk_output.block{i}.block{i}-{j-1}.f.a.1.*"),
            rule("s{i}.b{j}.conv2.conv.*", "trunk_output.block{i}.block{i}-{j-1}.f.b.0.*"),
            rule("s{i}.b{j}.conv2.bn.*", "trunk_output.block{i}.block{i}-{j-1}.f.b.1.*"),
            rule("s{i}.b{j}.se.*", "trunk_output.block{i}.block{i}-{j-1}.f.se.*"),
            rule("s{i}.b{j}.conv3.conv.*", "trunk_output.block{i}.block{i}-{j-1}.f.c.0.*"),
            rule("s{i}.b{j}.conv3.bn.*", "trunk_output.block{i}.block{i}-{j-1}.f.c.1.*"),
            rule("s{i}.b{j}.downsample.conv.*", "trunk_output.block{i}.block{i}-{j-1}.proj.0.*"),
            rule("s{i}.b{j}.downsample.bn.*", "trunk_output.block{i}.block{i}-{j-1}.proj.1.*"),
            rule("head.fc.*", "fc.*"),
        ],
        ..PLAIN
    },
    Naming {
        source: "kuangliu/pytorch-cifar",
        models: &["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
        signs: &["layer1.0.conv1.weight", "layer2.0.shortcut.0.weight", "linear.weight"],
        rules: &[rule("{l}.{b}.shortcut.*", "{l}.{b}.downsample.*"), rule("linear.*", "fc.*")],
        ..PLAIN
    },
    Naming {
        source: "weiaicunzai/pytorch-cifar100",
        models: &["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
        signs: &["conv2_x.0.residual_function.0.weight"],
        rules: &[
            rule("conv1.0.*", "conv1.*"),
            rule("conv1.1.*", "bn1.*"),
            rule("conv{i}_x.{b}.residual_function.0.*", "layer{i-1}.{b}.conv1.*"),
            rule("conv{i}_x.{b}.residual_function.1.*", "layer{i-1}.{b}.bn1.*"),
            rule("conv{i}_x.{b}.residual_function.3.*", "layer{i-1}.{b}.conv2.*"),
            rule("conv{i}_x.{b}.residual_function.4.*", "layer{i-1}.{b}.bn2.*"),
            rule("conv{i}_x.{b}.residual_function.6.*", "layer{i-1}.{b}.conv3.*"),
            rule("conv{i}_x.{b}.residual_function.7.*", "layer{i-1}.{b}.bn3.*"),
            rule("conv{i}_x.{b}.shortcut.*", "layer{i-1}.{b}.downsample.*"),
        ],
        ..PLAIN
    },
];

/// What both of timm's MobileNetV3 have in common.
const MOBILENET_V3: Naming = Naming {
    signs: &["conv_stem.weight", "blocks.1.0.conv_pwl.weight", "conv_head.bias"],
    rules: &[
        rule("conv_stem.*", "features.0.0.*"),
        rule("bn1.*", "features.0.1.*"),
        rule("blocks.0.0.conv_dw.*", "features.1.block.0.0.*"),
        rule("blocks.0.0.bn1.*", "features.1.block.0.1.*"),
        rule("blocks.0.0.se.conv_reduce.*", "features.1.block.1.fc1.*"),
        rule("blocks.0.0.se.conv_expand.*", "features.1.block.1.fc2.*"),
        rule_if("blocks.0.0.se.conv_reduce.weight", "blocks.0.0.conv_pw.*", "features.1.block.2.0.*"),
        rule_if("blocks.0.0.se.conv_reduce.weight", "blocks.0.0.bn2.*", "features.1.block.2.1.*"),
        rule("blocks.0.0.conv_pw.*", "features.1.block.1.0.*"),
        rule("blocks.0.0.bn2.*", "features.1.block.1.1.*"),
        rule("blocks.{s}.{b}.conv.*", "features.{s:b+1}.0.*"),
        rule_if("blocks.{s}.{b}.conv.weight", "blocks.{s}.{b}.bn1.*", "features.{s:b+1}.1.*"),
        rule("blocks.{s}.{b}.conv_pw.*", "features.{s:b+1}.block.0.0.*"),
        rule("blocks.{s}.{b}.bn1.*", "features.{s:b+1}.block.0.1.*"),
        rule("blocks.{s}.{b}.conv_dw.*", "features.{s:b+1}.block.1.0.*"),
        rule("blocks.{s}.{b}.bn2.*", "features.{s:b+1}.block.1.1.*"),
        rule("blocks.{s}.{b}.se.conv_reduce.*", "features.{s:b+1}.block.2.fc1.*"),
        rule("blocks.{s}.{b}.se.conv_expand.*", "features.{s:b+1}.block.2.fc2.*"),
        rule_if(SE, "blocks.{s}.{b}.conv_pwl.*", "features.{s:b+1}.block.3.0.*"),
        rule_if(SE, "blocks.{s}.{b}.bn3.*", "features.{s:b+1}.block.3.1.*"),
        rule("blocks.{s}.{b}.conv_pwl.*", "features.{s:b+1}.block.2.0.*"),
        rule("blocks.{s}.{b}.bn3.*", "features.{s:b+1}.block.2.1.*"),
        linear("conv_head.*", "classifier.0.*"),
        rule("classifier.*", "classifier.3.*"),
    ],
    // timm leaves PyTorch's 1e-5 where torchvision and the paper's authors have 1e-3.
    eps: Some((1e-5, 1e-3)),
    ..PLAIN
};
