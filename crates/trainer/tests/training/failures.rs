//! What goes wrong ends in one line, and what was saved stays.

use crate::tiny;
#[cfg(unix)]
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use zoo_trainer::{Checkpoint, Error, RunDir, ScheduleKind, TrainConfig};

/// Both epochs of a run whose rate explodes after the first.
fn exploding() -> TrainConfig {
    TrainConfig {
        epochs: 2,
        schedule: ScheduleKind::Step,
        milestones: vec![0.5],
        gamma: 1e30,
        warmup_epochs: 0.0,
        ..tiny::config("lenet5")
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let folder = tiny::folder();
    let error = tiny::finish(tiny::new_trainer(&exploding(), folder.path()).unwrap()).err().unwrap();
    let line = error.to_string();
    let Error::Diverged { step, lr, loss, last_good } = error else { panic!("{line}") };
    // The rate jumps at step 8, whose loss is still that of good weights.
    assert!((9..=14).contains(&step) && lr > 1e20 && !loss.is_finite(), "{line}");
    assert!(!line.contains('\n') && line.contains(&format!("step {step}")), "{line}");
    let good = Checkpoint::open(&last_good.unwrap()).unwrap();
    assert_eq!((good.meta.epoch, good.meta.step), (1, 7));
    assert!(good.meta.metrics.unwrap().val_loss.is_finite());
}

#[test]
fn without_a_checkpoint_none_is_named() {
    let folder = tiny::folder();
    let config = TrainConfig { lr: 1e30, warmup_epochs: 0.0, ..tiny::config("lenet5") };
    let error = tiny::finish(tiny::new_trainer(&config, folder.path()).unwrap()).err().unwrap();
    assert!(matches!(error, Error::Diverged { last_good: None, .. }), "{error}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tiny::folder();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = tiny::new_trainer(&tiny::config("lenet5"), &file.join("run")).unwrap_err();
    assert!(error.to_string().contains("file/run"), "{error}");
}

#[test]
fn a_run_is_not_overwritten_and_not_trained_twice() {
    let folder = tiny::folder();
    let config = tiny::config("lenet5");
    let running = tiny::new_trainer(&config, folder.path()).unwrap();
    assert!(matches!(tiny::new_trainer(&config, folder.path()), Err(Error::RunExists(_))));
    assert!(matches!(tiny::resumed_trainer(folder.path()), Err(Error::Busy(_))));
    drop(running);
    assert!(tiny::resumed_trainer(folder.path()).is_ok());
    let empty = tiny::folder();
    let error = tiny::resumed_trainer(empty.path()).unwrap_err().to_string();
    assert!(error.contains("there is no run; expected a folder with config.toml"), "{error}");
}

#[test]
fn a_resumed_run_keeps_its_settings() {
    let folder = tiny::folder();
    let config = TrainConfig { epochs: 1, ..tiny::config("lenet5") };
    tiny::finish(tiny::new_trainer(&config, folder.path()).unwrap()).unwrap();
    let resume = |change: fn(&mut TrainConfig)| {
        let dir = RunDir::open(folder.path())?;
        let mut config = dir.config()?;
        change(&mut config);
        zoo_trainer::Trainer::resume(config, &tiny::data("lenet5"), dir, &candle_core::Device::Cpu)
    };
    assert!(resume(|config| config.log_every = 5).is_ok());
    let error = resume(|config| config.lr = 0.5).unwrap_err().to_string();
    assert!(error.ends_with("lr was 0.05 and is now 0.5; a run keeps its settings"), "{error}");
}

#[test]
#[cfg(unix)]
fn a_save_that_fails_leaves_the_old_files() {
    let folder = tiny::folder();
    let config = TrainConfig { epochs: 2, ..tiny::config("lenet5") };
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    tiny::finish(tiny::new_trainer(&config, &whole).unwrap()).unwrap();

    let mut trainer = tiny::new_trainer(&config, &broken).unwrap();
    let stop = AtomicBool::new(false);
    let mut at = tiny::StopAt { stop: &stop, step: Some(9), evaluation: None, evaluations: 0 };
    trainer.run(&stop, &mut at).unwrap();
    drop(trainer);
    let files = [RunDir::STATE, RunDir::LAST, RunDir::BEST];
    let before = files.map(|name| tiny::bytes(&broken, name));

    // A limit on the size of files stands for a full disk: writing fails in the middle of the file.
    let shell = ["sh", "-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""];
    let output =
        tiny::child(&shell, "failures::resume_in_a_child", &broken).stdout(Stdio::piped()).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("File too large"), "{text}");
    assert!(before == files.map(|name| tiny::bytes(&broken, name)), "a file changed");
    let left: Vec<_> = std::fs::read_dir(&broken).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "{left:?}");

    tiny::finish(tiny::resumed_trainer(&broken).unwrap()).unwrap();
    assert!(tiny::bytes(&broken, RunDir::LAST) == tiny::bytes(&whole, RunDir::LAST));
    assert_eq!(tiny::metrics(&broken), tiny::metrics(&whole));
}

#[test]
#[ignore = "started by other tests in a process of its own"]
fn resume_in_a_child() {
    let Some(folder) = tiny::child_folder() else { return };
    if let Err(error) = tiny::resumed_trainer(&folder).and_then(tiny::finish) {
        panic!("{error}");
    }
}
