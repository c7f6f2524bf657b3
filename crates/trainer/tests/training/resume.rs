//! A run that was stopped or killed, and resumed, ends as one that never was.

use crate::tiny;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::Duration;
use zoo_data::Augment;
use zoo_trainer::{Outcome, Precision, RunDir, TrainConfig};

fn configs() -> [TrainConfig; 3] {
    [
        TrainConfig {
            grad_accum: 2,
            ema: 0.95,
            clip_grad: 0.5,
            label_smoothing: 0.1,
            log_every: 2,
            ..tiny::config("lenet5")
        },
        TrainConfig {
            dtype: Precision::Bf16,
            augment: Augment::Alternating,
            lookahead: 0.9,
            norm_bias_lr_scale: 2.0,
            ..tiny::config("cifar_resnet20")
        },
        TrainConfig { ema: 0.9, ..tiny::fine_tuning() },
    ]
}

fn assert_same(found: &Path, expected: &Path, what: &str) {
    for name in [RunDir::LAST, RunDir::BEST, RunDir::CONFIG] {
        assert!(tiny::bytes(found, name) == tiny::bytes(expected, name), "{what}: {name} differs");
    }
    assert_eq!(tiny::metrics(found), tiny::metrics(expected), "{what}");
}

/// Trains until the moment, drops the trainer, and resumes.
fn interrupted(config: &TrainConfig, dir: &Path, step: Option<u64>, evaluation: Option<u64>) {
    let mut trainer = tiny::new_trainer(config, dir).unwrap();
    let stop = AtomicBool::new(false);
    let mut at = tiny::StopAt { stop: &stop, step, evaluation, evaluations: 0 };
    let outcome = trainer.run(&stop, &mut at).unwrap();
    let Outcome::Interrupted { step: stopped, .. } = outcome else { panic!("{outcome:?}") };
    assert!(step.is_none_or(|step| step == stopped));
    drop(trainer);
    tiny::finish(tiny::resumed_trainer(dir).unwrap()).unwrap();
}

#[test]
fn stopped_at_any_step_or_evaluation() {
    for config in configs() {
        let folder = tiny::folder();
        let whole = folder.path().join("whole");
        tiny::finish(tiny::new_trainer(&config, &whole).unwrap()).unwrap();
        let per_epoch = if config.grad_accum == 2 { 4 } else { 7 };
        for step in [1, 2, per_epoch, per_epoch + 3, 2 * per_epoch, 3 * per_epoch - 1] {
            let dir = folder.path().join(format!("step-{step}"));
            interrupted(&config, &dir, Some(step), None);
            assert_same(&dir, &whole, &format!("{} stopped at step {step}", config.model));
        }
        for evaluation in [1, 3] {
            let dir = folder.path().join(format!("evaluation-{evaluation}"));
            interrupted(&config, &dir, None, Some(evaluation));
            assert_same(&dir, &whole, &format!("{} stopped in evaluation {evaluation}", config.model));
        }
    }
}

#[test]
fn saving_does_not_change_the_result() {
    let folder = tiny::folder();
    let [config, ..] = configs();
    let (rarely, always) = (folder.path().join("rarely"), folder.path().join("always"));
    tiny::finish(tiny::new_trainer(&config, &rarely).unwrap()).unwrap();
    tiny::finish(tiny::new_trainer(&TrainConfig { save_every: 1, ..config }, &always).unwrap()).unwrap();
    assert!(tiny::bytes(&rarely, RunDir::LAST) == tiny::bytes(&always, RunDir::LAST));
}

#[test]
fn a_finished_run_stays_finished() {
    let folder = tiny::folder();
    let [config, ..] = configs();
    tiny::finish(tiny::new_trainer(&config, folder.path()).unwrap()).unwrap();
    let before = (tiny::bytes(folder.path(), RunDir::LAST), tiny::metrics(folder.path()));
    let losses = tiny::finish(tiny::resumed_trainer(folder.path()).unwrap()).unwrap();
    assert!(losses.0.is_empty());
    assert!(before == (tiny::bytes(folder.path(), RunDir::LAST), tiny::metrics(folder.path())));
}

#[test]
fn killed_at_random_moments() {
    let folder = tiny::folder();
    let config = TrainConfig { epochs: 12, save_every: 1, ..configs()[0].clone() };
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    tiny::finish(tiny::new_trainer(&config, &whole).unwrap()).unwrap();

    drop(tiny::new_trainer(&config, &killed).unwrap());
    let log = killed.join(RunDir::METRICS);
    let logged = || std::fs::metadata(&log).map_or(0, |log| log.len());
    let mut midway = 0;
    for i in 0..200u64 {
        let before = logged();
        let mut child = tiny::child(&[], "resume::train_in_a_child", &killed).spawn().unwrap();
        // Every third kill comes while the run starts, the others soon after it has trained a little. The clock
        // adds its own chance.
        while !i.is_multiple_of(3) && logged() <= before && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_micros(i * 7919 % 20_000));
        let _ = child.kill();
        if child.wait().unwrap().success() {
            break;
        }
        midway += u32::from(logged() > before);
    }
    assert!(midway >= 3, "killed {midway} times amid training");
    tiny::finish(tiny::resumed_trainer(&killed).unwrap()).unwrap();
    assert_same(&killed, &whole, &format!("killed {midway} times amid training"));
}

#[test]
#[ignore = "started by another test in a process of its own"]
fn train_in_a_child() {
    let Some(folder) = tiny::child_folder() else { return };
    tiny::finish(tiny::resumed_trainer(&folder).unwrap()).unwrap();
}
