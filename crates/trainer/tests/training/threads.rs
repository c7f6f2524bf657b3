//! One seed, one result, for any number of threads; and deep graphs fit the stack.

use crate::tiny;
use std::path::Path;
use std::process::Stdio;
use zoo_trainer::{RunDir, TrainConfig};

fn config(model: &str) -> TrainConfig {
    let config = if model == "cifar_resnet20b" { tiny::fine_tuning() } else { tiny::config(model) };
    TrainConfig { epochs: 1, ..config }
}

/// The final weights and the losses of a run in a process with so many threads.
fn run_with(threads: &str, model: &str, folder: &Path) -> (Vec<u8>, String) {
    let dir = folder.join(format!("{model}-{threads}"));
    let mut child = tiny::child(&[], "threads::train_in_a_child", &dir);
    child.env("ZOO_TEST_MODEL", model);
    child.env("RAYON_NUM_THREADS", threads).env("CANDLE_NUM_THREADS", threads);
    let output = child.stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    // The test harness writes its own words before the line.
    let losses = text.lines().find_map(|line| line.split_once("losses ")).unwrap().1.to_string();
    (tiny::bytes(&dir, RunDir::LAST), losses)
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let folder = tiny::folder();
    for model in ["lenet5", "cifar_resnet20", "cifar_resnet20b"] {
        let one = run_with("1", model, folder.path());
        for threads in ["2", "3", "4"] {
            let more = run_with(threads, model, folder.path());
            assert_eq!(more.1, one.1, "{model}: losses with {threads} threads");
            assert!(more.0 == one.0, "{model}: weights with {threads} threads differ");
        }
    }
}

#[test]
#[ignore = "started by another test in a process of its own"]
fn train_in_a_child() {
    let (Some(folder), Ok(model)) = (tiny::child_folder(), std::env::var("ZOO_TEST_MODEL")) else { return };
    let losses = tiny::finish(tiny::new_trainer(&config(&model), &folder).unwrap()).unwrap();
    let bits: Vec<String> = losses.0.iter().map(|loss| format!("{:016x}", loss.to_bits())).collect();
    println!("losses {}", bits.join(" "));
}

#[test]
fn the_seed_decides() {
    let folder = tiny::folder();
    let losses = |seed, name: &str| {
        let config = TrainConfig { seed, ..config("lenet5") };
        tiny::finish(tiny::new_trainer(&config, &folder.path().join(name)).unwrap()).unwrap().0
    };
    let first = losses(5, "a");
    assert_eq!(first.len(), 7);
    assert_eq!(first, losses(5, "b"));
    assert_ne!(first, losses(6, "c"));
}

#[test]
fn a_deep_network_needs_little_stack() {
    let folder = tiny::folder();
    let train = || {
        let mut data = tiny::data("cifar_resnet110");
        (data.train, data.val) = (data.train.limit(4, 0), data.val.limit(4, 0));
        let dir = RunDir::create(folder.path()).unwrap();
        let trainer =
            zoo_trainer::Trainer::new(config("cifar_resnet110"), &data, dir, &candle_core::Device::Cpu);
        tiny::finish(trainer.unwrap()).unwrap();
    };
    // candle walks and frees a graph by recursion. A quarter of what a thread usually has must hold the deepest
    // network, even without optimisation.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(512 << 10).spawn_scoped(scope, train);
        thread.unwrap().join().unwrap();
    });
}
