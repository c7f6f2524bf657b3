//! Ranks that would not train the same: all refuse at the start, and say in what they differ.

use crate::command::{Done, Shell, bytes};
use std::ffi::OsStr;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TRAIN: &str = "train --quiet --dataset shapes --model mlp --limit-train 48 --limit-test 16 --batch-size 4 \
                     --epochs 2 --threads 1";

/// Two ranks, each with its command.
fn two(commands: [Command; 2]) -> [Done; 2] {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let begun = Instant::now();
    let mut rank = 0;
    let children = commands.map(|mut command| {
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("MASTER_PORT", &port);
        command.env("ZOO_RANK_TIMEOUT_SECONDS", "60");
        rank += 1;
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let done = children.map(|child| Done::from(child.wait_with_output().unwrap()));
    assert!(begun.elapsed() < Duration::from_secs(60), "nobody waits for a timeout");
    done
}

fn lines(shell: &Shell, first: &str, second: &str) -> [Done; 2] {
    two([first, second].map(|line| shell.command(line.split_whitespace())))
}

/// That both have trained.
#[track_caller]
fn accepted(done: &[Done; 2]) {
    for done in done {
        done.ok();
    }
}

/// That both say this, and nothing else.
#[track_caller]
fn refused(done: &[Done; 2], expected: &str) {
    assert_eq!([done[0].error(), done[1].error()], [expected; 2]);
}

/// A folder of pictures, each a file that a picture's decoder takes.
fn pictures(shell: &Shell, folder: &str, names: &[&str]) {
    for name in names {
        let shade = name.bytes().fold(0u8, u8::wrapping_add);
        let pixels: Vec<u8> = (0..8 * 8 * 3).map(|i| shade.wrapping_add(i)).collect();
        let picture = [b"P6 8 8 255\n", pixels.as_slice()].concat();
        for split in ["train", "val"] {
            shell.write(&format!("{folder}/{split}/{name}"), &picture);
        }
    }
}

#[test]
fn in_their_settings() {
    let shell = Shell::new();
    for (options, own, first) in [
        ("--no-shuffle", "shuffle = false", "shuffle = true"),
        (
            "--sync-batch-norm --clip-grad 2",
            "clip_grad = 2.0 and sync_batch_norm = true",
            "clip_grad = 0.0 and sync_batch_norm = false",
        ),
        // What one has given is found in the data by the other, and is something else there.
        ("--mean 0.4,0.4,0.4", "mean = [0.4, 0.4, 0.4]", "mean = [0.449, 0.4575, 0.4492]"),
        ("--dropout 0.5", "dropout = 0.5", "dropout not set"),
    ] {
        let done = lines(&shell, &format!("{TRAIN} --out run"), &format!("{TRAIN} {options}"));
        let needed = "all ranks need the same settings";
        refused(&done, &format!("rank 1 trains with {own}, rank 0 with {first}; {needed}"));
        assert!(!shell.path("run").exists(), "{options}: nothing is left behind");
    }
    // What one has given is what the other finds.
    let done = lines(&shell, &format!("{TRAIN} --out run"), &format!("{TRAIN} --num-classes 10"));
    accepted(&done);
}

#[test]
fn what_each_machine_may_have_for_itself() {
    let shell = Shell::new();
    let done = lines(
        &shell,
        &format!("{TRAIN} --out run --log-every 3"),
        &format!("{} --threads 2 --save-every 5 --out elsewhere", TRAIN.replace(" --threads 1", "")),
    );
    accepted(&done);
    shell.zoo(&format!("{TRAIN} --devices 2 --out same")).ok();
    assert!(bytes(&shell.path("run/last.safetensors")) == bytes(&shell.path("same/last.safetensors")));
    assert!(!shell.path("elsewhere").exists());
}

#[test]
fn in_their_data() {
    let shell = Shell::new();
    pictures(&shell, "a", &["ant/1.ppm", "ant/2.ppm", "bee/3.ppm", "bee/4.ppm"]);
    pictures(&shell, "copy", &["ant/1.ppm", "ant/2.ppm", "bee/3.ppm", "bee/4.ppm"]);
    pictures(&shell, "more", &["ant/1.ppm", "ant/2.ppm", "bee/3.ppm", "bee/4.ppm", "bee/5.ppm"]);
    pictures(&shell, "classes", &["ant/1.ppm", "ant/2.ppm", "cow/3.ppm", "cow/4.ppm"]);
    pictures(&shell, "third", &["ant/1.ppm", "ant/2.ppm", "bee/3.ppm", "cow/4.ppm"]);
    pictures(&shell, "files", &["ant/1.ppm", "ant/2.ppm", "bee/3.ppm", "bee/9.ppm"]);
    pictures(&shell, "moved", &["ant/1.ppm", "bee/2.ppm", "bee/3.ppm", "bee/4.ppm"]);
    let line = |folder: &str| {
        format!(
            "train --quiet --model softmax --dataset folder --data-dir {folder} --image-size 8 --epochs 1 --batch-size 2 \
             --threads 1 --out run-{folder}"
        )
    };
    let with = |folder: &str| lines(&shell, &line("a"), &line(folder));
    let data = "all ranks need the same data";
    refused(&with("more"), &format!("rank 1 has 5 training images, rank 0 4 training images; {data}"));
    refused(&with("classes"), &format!("rank 1 has \"cow\" as class 1, rank 0 \"bee\" as class 1; {data}"));
    let third = "trains with num_classes = 3, rank 0 with num_classes = 2; all ranks need the same settings";
    refused(&with("third"), &format!("rank 1 {third}"));
    for folder in ["files", "moved"] {
        let done = with(folder);
        let said = done[0].error();
        assert!(said.starts_with("rank 1 has training images of MD5 ") && said.ends_with(data), "{said}");
        refused(&done, said);
    }
    assert!(!shell.path("run-a").exists());
    accepted(&with("copy"));
}

#[test]
fn in_the_weights_that_they_start_from() {
    let shell = Shell::new();
    for (run, seed) in [("a", 1), ("b", 2)] {
        shell.zoo(&format!("{TRAIN} --seed {seed} --out {run}")).ok();
    }
    std::fs::copy(shell.path("a/best.safetensors"), shell.path("copy.safetensors")).unwrap();
    let start = |weights: &str| format!("{TRAIN} --lr 0.001 --out run{} {weights}", weights.len());
    let with = |first: &str, second: &str| lines(&shell, &start(first), &start(second));
    let weights = "all ranks need the same weights";
    for (first, second) in [("--weights a", "--weights b"), ("--weights a", ""), ("", "--weights b")] {
        let done = with(first, second);
        let said = done[0].error();
        assert!(said.starts_with("rank 1 starts from ") && said.ends_with(weights), "{said}");
        assert_eq!(said.contains("random weights"), first.is_empty() || second.is_empty(), "{said}");
        refused(&done, said);
    }
    // The same weights may lie elsewhere.
    accepted(&with("--weights a", "--weights copy.safetensors"));
}

#[test]
fn in_the_run_that_they_go_on_with() {
    let shell = Shell::new();
    let run = |name: &str, seed: u64, epochs: usize| {
        let line = TRAIN.replace("--epochs 2", &format!("--epochs {epochs}"));
        shell.zoo(&format!("{line} --seed {seed} --devices 2 --out {name}")).ok();
    };
    let copy = |from: &str, to: &str| {
        for file in ["config.toml", "state.safetensors", "metrics.jsonl"] {
            shell.write(&format!("{to}/{file}"), bytes(&shell.path(from).join(file)));
        }
    };
    run("run", 1, 2);
    run("seed", 2, 2);
    run("again", 1, 2);
    copy("run", "copy");
    // The same run, stopped before it had taken a step, and with other settings, whose state has another step.
    shell.write("fresh/config.toml", bytes(&shell.path("run/config.toml")));
    let with = |first: &str, second: &str| {
        lines(&shell, &format!("train -q {first}"), &format!("train -q {second}"))
    };
    refused(
        &with("--resume run", "--resume seed"),
        "rank 1 trains with seed = 2, rank 0 with seed = 1; all ranks need the same settings",
    );
    let state = "all ranks need the same state of the same run";
    refused(
        &with("--resume run", "--resume fresh"),
        &format!("rank 1 goes on from the start, rank 0 after step 12; {state}"),
    );
    let done = with("--resume run", "--resume again");
    let said = done[0].error();
    assert!(said.starts_with("rank 1 goes on after ") && said.ends_with(state), "{said}");
    refused(&done, said);
    let new = format!("{TRAIN} --seed 1 --out new");
    refused(
        &with("--resume run", &new.replace("train --quiet", "")),
        "rank 1 starts a new run, rank 0 goes on with a run; all ranks need to do the same",
    );
    refused(
        &lines(&shell, &new, "train -q --resume run"),
        "rank 1 goes on with a run, rank 0 starts a new run; all ranks need to do the same",
    );
    // A rank of its own machine may have a copy of the run.
    accepted(&with("--resume run", "--resume copy"));
}

/// A program that says that it is of another version.
#[test]
fn in_their_version() {
    let shell = Shell::new();
    let version = concat!("zoo version ", env!("CARGO_PKG_VERSION"));
    let other = "zoo version 9.9.9";
    assert_eq!(version.len(), other.len());
    let mut program = bytes(env!("CARGO_BIN_EXE_zoo").as_ref());
    let places: Vec<usize> = (0..program.len() - version.len())
        .filter(|&i| program[i] == b'z' && program[i..].starts_with(version.as_bytes()))
        .collect();
    assert!(!places.is_empty());
    for place in places {
        program[place..place + other.len()].copy_from_slice(other.as_bytes());
    }
    std::fs::copy(env!("CARGO_BIN_EXE_zoo"), shell.path("other")).unwrap();
    std::fs::write(shell.path("other"), program).unwrap();
    let line = format!("{TRAIN} --out run");
    let mut second = Command::new(shell.path("other"));
    second
        .args(line.split_whitespace())
        .current_dir(shell.path(""))
        .env_remove("TORCHELASTIC_USE_AGENT_STORE");
    let first = shell.command(line.split_whitespace().map(OsStr::new));
    refused(
        &two([first, second]),
        &format!("rank 1 runs zoo version 9.9.9, rank 0 {version}; all ranks need the same version"),
    );
}
