//! A model as a plain candle-nn module: with candle's own variables, loss and optimizer.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ModuleT, Optimizer, SGD, VarBuilder, VarMap, loss};
use zoo::{Config, Model, Params, find};

/// Losses of `steps` steps on one batch.
fn losses(name: &str, lr: f64, steps: usize) -> Result<Vec<f32>> {
    let device = Device::Cpu;
    let mut varmap = VarMap::new();
    let config = Config { num_classes: 4, ..find(name)?.config() };
    let (c, (h, w)) = (config.in_chans, config.image_size);
    let model = Model::new(name, config.clone(), VarBuilder::from_varmap(&varmap, DType::F32, &device))?;
    // Candle cannot seed its generator on the CPU, and a test has to give the same result every time.
    let params = Params::new(1);
    Model::new(name, config, params.var_builder(&device))?;
    for (name, var) in params.all() {
        varmap.set_one(name, var.as_detached_tensor())?;
    }
    let images: Vec<f32> = (0..8 * c * h * w).map(|i| (i as f32 * 0.37 + (i / 97) as f32).sin()).collect();
    let images = Tensor::from_vec(images, (8, c, h, w), &device)?;
    let targets = Tensor::new(&[0u32, 1, 2, 3, 0, 1, 2, 3], &device)?;
    let mut optimizer = SGD::new(varmap.all_vars(), lr)?;
    (0..steps)
        .map(|_| {
            let loss = loss::cross_entropy(&model.forward_t(&images, true)?, &targets)?;
            optimizer.backward_step(&loss)?;
            loss.to_scalar()
        })
        .collect()
}

#[test]
fn candle_trains_it() -> Result<()> {
    for (name, lr) in [("lenet5", 0.02), ("cifar_resnet20b", 0.02)] {
        let losses = losses(name, lr, 3)?;
        assert!(losses[1] < losses[0] && losses[2] < losses[1], "{name}: {losses:?}");
    }
    Ok(())
}

#[test]
fn the_running_statistics_in_a_varmap_move() -> Result<()> {
    let (device, varmap) = (Device::Cpu, VarMap::new());
    let config = find("cifar_resnet20")?.config();
    let model = Model::new("cifar_resnet20", config, VarBuilder::from_varmap(&varmap, DType::F32, &device))?;
    let images = Tensor::ones((2, 3, 32, 32), DType::F32, &device)?;
    let running = || -> Result<Vec<f32>> {
        let data = varmap.data().lock().map_err(|_| candle_core::Error::msg("a poisoned lock"))?;
        data["bn1.running_mean"].to_vec1()
    };
    model.forward_t(&images, false)?;
    assert_eq!(running()?, [0.0; 16]);
    model.forward_t(&images, true)?;
    assert!(running()?.iter().all(|&mean| mean != 0.0), "{:?}", running()?);
    Ok(())
}
