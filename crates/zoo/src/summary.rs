//! What a student asks of a network: its layers, their sizes and their costs.

use crate::facts::facts;
use crate::model::{Config, Model};
use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use zoo_ops::trace::Row;

/// A model layer by layer, for one image of the configured size.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The model's name.
    pub model: &'static str,
    /// Elements of trainable parameters: of the layers, and of the auxiliary heads if `params_with_auxiliary`.
    pub params: usize,
    /// Multiply-adds per image in inference; convolutions and linear layers only.
    pub macs: u64,
    /// Its layers in the order of execution. A fused operator has a row for each of its parts.
    pub layers: Vec<Row>,
    /// The layers of its auxiliary heads, which are there in training only.
    pub auxiliary: Vec<Row>,
    /// Whether the published number of parameters has those of the auxiliary heads in it: see
    /// [`crate::Facts::params_with_auxiliary`].
    pub params_with_auxiliary: bool,
    /// Whether this is the form for small images of a network that has one.
    pub small_form: bool,
}

impl Summary {
    /// Of the registered model `name` as `config` has it, computing nothing and drawing no weights.
    ///
    /// # Errors
    /// If there is no such model, or it cannot be built for such images.
    pub fn new(name: &str, config: &Config) -> Result<Self> {
        let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
        Self::of(&Model::new(name, config.clone(), vb)?)
    }

    /// Of a model that is there.
    ///
    /// # Errors
    /// If an image of the configured size does not fit the network.
    pub fn of(model: &Model) -> Result<Self> {
        let name = model.spec().name;
        let (layers, auxiliary) = (model.trace(1, DType::F32)?, model.trace_auxiliary(1, DType::F32)?);
        let params_with_auxiliary = facts(name)?.params_with_auxiliary;
        let params = |rows: &[Row]| rows.iter().map(|row| row.params).sum::<usize>();
        Ok(Self {
            model: name,
            params: params(&layers) + if params_with_auxiliary { params(&auxiliary) } else { 0 },
            macs: layers.iter().map(|row| row.macs).sum(),
            layers,
            auxiliary,
            params_with_auxiliary,
            small_form: model.is_small_form(),
        })
    }

    /// Elements of the auxiliary heads' parameters.
    pub fn auxiliary_params(&self) -> usize {
        self.auxiliary.iter().map(|row| row.params).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The receptive fields of the layers of these kinds.
    fn fields(summary: &Summary, kinds: &[&str]) -> Vec<usize> {
        let rows = summary.layers.iter().filter(|row| kinds.contains(&row.kind));
        rows.map(|row| row.receptive_field).collect()
    }

    #[test]
    fn lenet_sees_what_is_worked_out_by_hand() -> Result<()> {
        let summary = Summary::new("lenet5", &crate::find("lenet5")?.config())?;
        // 5; + 1 for the pool; + 4 · 2 for the second convolution; + 2 for its pool.
        assert_eq!(fields(&summary, &["conv2d", "max_pool2d"]), [5, 6, 14, 16]);
        let outputs: Vec<_> = summary.layers.iter().filter(|r| r.params > 0).map(|r| r.output).collect();
        assert_eq!(outputs, [[6, 28, 28], [16, 10, 10], [120, 1, 1], [84, 1, 1], [10, 1, 1]]);
        Ok(())
    }

    #[test]
    fn resnet18_sees_what_is_known() -> Result<()> {
        let summary = Summary::new("resnet18", &crate::find("resnet18")?.config())?;
        let rows = &summary.layers;
        let named = |name: &str| rows.iter().find(|row| row.name == name);
        for (name, output, macs, receptive_field) in [
            ("conv1", [64, 112, 112], 118_013_952, 7),
            ("max_pool2d", [64, 56, 56], 0, 11),
            ("layer1.0.conv1", [64, 56, 56], 115_605_504, 19),
            ("layer2.0.downsample.0", [128, 28, 28], 6_422_528, 43),
            ("layer4.1.conv2", [512, 7, 7], 115_605_504, 435),
            ("fc", [1000, 1, 1], 512_000, 627),
        ] {
            let Some(row) = named(name) else { candle_core::bail!("no row {name}") };
            assert_eq!(
                (row.output, row.macs, row.receptive_field),
                (output, macs, receptive_field),
                "{name}"
            );
        }
        // 20 convolutions and their norms, the linear layer, 8 additions, 17 activations, 2 pools.
        assert_eq!(rows.len(), 20 + 20 + 1 + 8 + 17 + 2);
        Ok(())
    }
}
