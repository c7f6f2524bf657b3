//! Under the conditions of `torchrun`: its agent keeps a store at `MASTER_PORT`, so rank 0 cannot listen there.
//!
//! The store here speaks as much of the protocol of PyTorch's `TCPStore` (torch 2.2 and newer) as a client may need, and hangs
//! up on whatever the real one hangs up on. `scripts/torchrun_check.sh` does the same with a real `torchrun`.

use crate::command::{Done, Shell, bytes};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex};

/// What clients say first.
const MAGIC: u32 = 0x3C85_F7CE;

/// Keys and values, and a signal that there are new ones.
#[derive(Default)]
struct Store {
    values: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    changed: Condvar,
}

impl Store {
    /// Starts one, and gives its port.
    fn start() -> (Arc<Self>, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let store = Arc::new(Self::default());
        let served = Arc::clone(&store);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let store = Arc::clone(&served);
                std::thread::spawn(move || drop(store.serve(stream)));
            }
        });
        (store, port)
    }

    /// Answers a client until it is gone or says something that the real store does not take.
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut validated = false;
        loop {
            let [query] = read(&mut stream)?;
            match (query, validated) {
                (0, false) => {
                    validated = u32::from_ne_bytes(read(&mut stream)?) == MAGIC;
                    if !validated {
                        return Ok(());
                    }
                }
                (1, true) => {
                    let (key, value) = (text(&mut stream)?, text(&mut stream)?);
                    self.values.lock().unwrap().insert(key, value);
                    self.changed.notify_all();
                }
                // A client waits for a value that is not there.
                (3, true) => {
                    let key = text(&mut stream)?;
                    let absent = |values: &mut HashMap<Vec<u8>, Vec<u8>>| !values.contains_key(&key);
                    let values = self.changed.wait_while(self.values.lock().unwrap(), absent).unwrap();
                    let value = values[&key].clone();
                    drop(values);
                    stream.write_all(&(value.len() as u64).to_ne_bytes())?;
                    stream.write_all(&value)?;
                }
                (5, true) => {
                    let mut all = true;
                    for _ in 0..u64::from_ne_bytes(read(&mut stream)?) {
                        all &= self.values.lock().unwrap().contains_key(&text(&mut stream)?);
                    }
                    stream.write_all(&[u8::from(!all)])?;
                }
                (7, true) => {
                    let keys = self.values.lock().unwrap().len() as i64;
                    stream.write_all(&keys.to_ne_bytes())?;
                }
                _ => return Ok(()),
            }
        }
    }
}

fn read<const N: usize>(stream: &mut TcpStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

fn text(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; u64::from_ne_bytes(read(stream)?) as usize];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

const TRAIN: &str = "train --model mlp --dataset shapes --limit-train 60 --limit-test 20 --batch-size 8 --epochs 1 --threads 1 \
                     --quiet";

/// Trains in so many processes with the variables that `torchrun` sets, and a store of its at this port.
fn under_torchrun(shell: &Shell, processes: usize, port: u16, run: &str) -> Vec<Done> {
    let start = |rank: usize| {
        let mut command = shell.command(format!("{TRAIN} --out {run}").split_whitespace());
        let number = |n: usize| n.to_string();
        command.env("RANK", number(rank)).env("LOCAL_RANK", number(rank)).env("GROUP_RANK", "0");
        command.env("WORLD_SIZE", number(processes)).env("LOCAL_WORLD_SIZE", number(processes));
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("TORCHELASTIC_USE_AGENT_STORE", "True").env("TORCHELASTIC_RUN_ID", "none");
        command.env("TORCHELASTIC_RESTART_COUNT", "0").env("TORCHELASTIC_MAX_RESTARTS", "0");
        command.env("ZOO_RANK_TIMEOUT_SECONDS", "30").stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..processes).map(start).collect();
    children.into_iter().map(|child| Done::from(child.wait_with_output().unwrap())).collect()
}

#[test]
fn ranks_meet_through_the_store_of_torchrun() {
    let shell = Shell::new();
    for processes in [2, 3] {
        shell.zoo(&format!("{TRAIN} --out own{processes} --devices {processes}")).ok();
        let (store, port) = Store::start();
        for attempt in ["first", "again"] {
            // At the second attempt the store still says where rank 0 of the first one was.
            let run = format!("{attempt}{processes}");
            under_torchrun(&shell, processes, port, &run).iter().for_each(|done| drop(done.ok().to_owned()));
            let weights = |run: &str| bytes(&shell.path(run).join("last.safetensors"));
            assert!(weights(&run) == weights(&format!("own{processes}")), "{run}");
        }
        assert_eq!(store.values.lock().unwrap().len(), 1, "one key for a run");
    }
}

#[test]
fn what_is_no_store_is_said() {
    // A program at that port that says nothing and hangs up.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let shell = Shell::new();
    for done in under_torchrun(&shell, 2, port, "run") {
        let error = done.error();
        assert!(error.contains(&format!("cannot use the store of torchrun at 127.0.0.1:{port}")), "{error}");
        assert!(error.contains("TORCHELASTIC_USE_AGENT_STORE"), "{error}");
    }
}
