//! The program in the README: a network as an ordinary candle-nn module.

use candle_core::{DType, Device, Tensor};
use candle_nn::{ModuleT, Optimizer, SGD};

fn main() -> candle_core::Result<()> {
    let device = Device::Cpu;
    let params = zoo::Params::new(0);
    let config = zoo::Config { num_classes: 10, image_size: (32, 32), ..zoo::find("resnet18")?.config() };
    let model = zoo::Model::new("resnet18", config, params.var_builder(&device))?;

    let images = Tensor::zeros((8, 3, 32, 32), DType::F32, &device)?;
    let labels = Tensor::zeros(8, DType::U32, &device)?;
    let logits = model.forward_t(&images, true)?;
    let loss = candle_nn::loss::cross_entropy(&logits, &labels)?;
    let variables = params.trainable().into_iter().map(|(_, variable)| variable).collect();
    SGD::new(variables, 0.1)?.backward_step(&loss)
}
