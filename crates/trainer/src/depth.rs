//! How deep in a network each layer lies, and the learning rates that follow from it.

use crate::TrainConfig;
use std::collections::BTreeMap;
use zoo_ops::trace::Row;

/// What the learning rates of the layers are multiplied by.
#[derive(Debug)]
pub(crate) struct LayerRates(BTreeMap<String, f64>);

impl LayerRates {
    /// For the layers in the trace `rows` of a network with output layer `head`, as the settings ask for it.
    ///
    /// As in timm's fine-tuning recipes, layers are taken together by blocks, and the rate of a block is
    /// `layer_decay` times that of the next one; the head has the full rate.
    pub(crate) fn new(rows: &[Row], head: &str, config: &TrainConfig) -> Self {
        let blocks = blocks(rows, head);
        let last = blocks.len() - 1;
        let rates = blocks.into_iter().enumerate().flat_map(|(depth, layers)| {
            let backbone = if depth < last { config.backbone_lr_scale } else { 1.0 };
            let scale = backbone * config.layer_decay.powi((last - depth) as i32);
            layers.into_iter().map(move |layer| (layer, scale))
        });
        Self(rates.collect())
    }

    /// That of a parameter. Layers that the trace does not have, such as auxiliary heads, have the full rate.
    pub(crate) fn of(&self, parameter: &str) -> f64 {
        let layer = parameter.rsplit_once('.').map_or(parameter, |(layer, _)| layer);
        self.0.get(layer).copied().unwrap_or(1.0)
    }
}

/// The layers with parameters in blocks, from the first to the head, which is a block of its own.
fn blocks(rows: &[Row], head: &str) -> Vec<Vec<String>> {
    let layers: Vec<&Row> = rows.iter().filter(|row| row.params > 0 && row.name != head).collect();
    // A container of everything but the head, such as VGG's `features`, is no block.
    let first = layers.first().map_or("", |row| row.name.split('.').next().unwrap_or_default());
    let trunk = layers.iter().all(|row| row.name.split('.').next() == Some(first));
    let mut places: Vec<(&str, bool)> = Vec::new();
    let mut blocks: Vec<Vec<String>> = Vec::new();
    for row in layers {
        let block = block_of(&row.name, trunk);
        let only_norm = row.kind == "batch_norm";
        let place = match places.iter().position(|(known, _)| *known == block) {
            Some(place) => place,
            None => {
                places.push((block, true));
                blocks.push(Vec::new());
                places.len() - 1
            }
        };
        places[place].1 &= only_norm;
        blocks[place].push(row.name.clone());
    }
    // A normalisation that is no part of a block goes with the layers before it.
    for place in (1..blocks.len()).rev().filter(|&place| places[place].1) {
        let norms = blocks.remove(place);
        blocks[place - 1].extend(norms);
    }
    blocks.push(vec![head.to_string()]);
    blocks
}

/// The part of a layer's path that names its block: its first component and the numbered ones that follow at once,
/// as in `layer1.0` of `layer1.0.conv2`. If there is a `trunk`, its name does not count.
fn block_of(layer: &str, trunk: bool) -> &str {
    let ends = layer.match_indices('.').map(|(end, _)| end).chain([layer.len()]);
    let mut block = 0;
    for (i, end) in ends.enumerate() {
        let component = layer[block..end].trim_start_matches('.');
        if i > usize::from(trunk) && !is_numbered(component) {
            break;
        }
        block = end;
    }
    &layer[..block]
}

/// Whether a name is a place in a sequence: `3`, `denselayer12`, `block1-0`. The branches of an Inception block are
/// numbered too, but lie side by side.
fn is_numbered(name: &str) -> bool {
    let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
    word.len() < name.len()
        && (word.is_empty() || ["layer", "block", "stage"].iter().any(|w| word.contains(w)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use zoo::{Model, Params};

    #[test]
    fn blocks_of_paths() {
        for (layer, trunk, block) in [
            ("conv1", false, "conv1"),
            ("layer1.0.conv2", false, "layer1.0"),
            ("layer3.12.downsample.1", false, "layer3.12"),
            ("features.0", true, "features.0"),
            ("features.3.squeeze", true, "features.3"),
            ("features.conv0", true, "features.conv0"),
            ("features.denseblock1.denselayer12.norm1", true, "features.denseblock1.denselayer12"),
            ("features.transition1.conv", true, "features.transition1"),
            ("features.4.1.block.2.fc1", true, "features.4.1"),
            ("inception3a.branch2.0.conv", false, "inception3a"),
            ("stage2.0.branch1.0", false, "stage2.0"),
            ("trunk_output.block2.block2-3.f.a.0", false, "trunk_output.block2.block2-3"),
        ] {
            assert_eq!(block_of(layer, trunk), block, "{layer}");
        }
    }

    fn rates(model: &str, config: &TrainConfig) -> (LayerRates, Vec<String>) {
        let (spec, params) = (zoo::find(model).unwrap(), Params::zeros());
        let model = Model::new(model, spec.config(), params.var_builder(&Device::Cpu)).unwrap();
        let names = params.trainable().into_iter().map(|(name, _)| name).collect();
        (LayerRates::new(&model.trace(1, candle_core::DType::F32).unwrap(), spec.head, config), names)
    }

    #[test]
    fn rates_fall_block_by_block_from_the_head() {
        let config = TrainConfig { layer_decay: 0.5, backbone_lr_scale: 0.1, ..TrainConfig::default() };
        let (rates, _) = rates("resnet18", &config);
        for (name, blocks) in [
            ("fc.weight", 0),
            ("layer4.1.bn2.bias", 1),
            ("layer4.0.downsample.0.weight", 2),
            ("layer1.0.conv1.weight", 8),
            // The normalisation after the first convolution lies as deep as that.
            ("bn1.weight", 9),
            ("conv1.weight", 9),
        ] {
            let expected = 0.5f64.powi(blocks) * if blocks > 0 { 0.1 } else { 1.0 };
            assert!((rates.of(name) / expected - 1.0).abs() < 1e-12, "{name}: {}", rates.of(name));
        }
    }

    /// Nothing but the head and auxiliary heads has the full rate, and there is more than one step in between
    /// wherever there is more than one layer.
    #[test]
    fn every_model_has_an_order_of_blocks() {
        let config = TrainConfig { layer_decay: 0.9, ..TrainConfig::default() };
        for spec in zoo::registry() {
            let (rates, names) = rates(spec.name, &config);
            let auxiliary = |name: &str| name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("aux"));
            for name in names.iter().filter(|name| !auxiliary(name)) {
                let is_head = name.rsplit_once('.').is_some_and(|(layer, _)| layer == spec.head);
                assert_eq!(rates.of(name) == 1.0, is_head, "{}: {name}", spec.name);
            }
            let weights = names.iter().filter(|name| name.ends_with(".weight")).count();
            let steps: std::collections::BTreeSet<u64> =
                rates.0.values().map(|rate| rate.to_bits()).collect();
            assert!(steps.len() >= weights.min(4), "{}: {} steps", spec.name, steps.len());
        }
    }
}
