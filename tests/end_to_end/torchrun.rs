//! Runs that `torchrun` starts, but for `torchrun`: its environment variables, and a store that says and refuses what its
//! own does (`scripts/torchrun_check.sh` takes the real one).

use crate::command::{Done, Shell, bytes};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const TRAIN: &str = "train --quiet --dataset shapes --model mlp --limit-train 48 --limit-test 16 --batch-size 4 \
                     --epochs 2 --threads 1";

/// PyTorch's `TCPStore`, as far as a client can tell, of torch from 2.2 on or of an earlier version.
#[derive(Clone)]
struct Store {
    port: u16,
    values: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Store {
    fn start(validated: bool) -> Self {
        // As torch does: at all addresses of this machine.
        let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
        let store = Self { port: listener.local_addr().unwrap().port(), values: Arc::default() };
        let served = store.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, store) = (client.unwrap(), served.clone());
                // Who says what makes no sense is hung up on.
                std::thread::spawn(move || store.serve(&mut client, validated));
            }
        });
        store
    }

    fn serve(&self, client: &mut TcpStream, validated: bool) -> Option<()> {
        if validated && (byte(client)?, number::<4>(client)?) != (0, 0x3C85_F7CE) {
            // A client of no kind that is known: nothing more is read, and nothing said.
            std::thread::sleep(Duration::from_secs(600));
        }
        loop {
            // Earlier versions count from the query after VALIDATE on.
            match byte(client)? + u8::from(!validated) {
                1 => {
                    let key = key(client)?;
                    let value = text(client, 8 << 20)?;
                    self.values.lock().unwrap().insert(key, value);
                }
                3 => {
                    let value = self.values.lock().unwrap().get(&key(client)?)?.clone();
                    client.write_all(&(value.len() as u64).to_ne_bytes()).ok()?;
                    client.write_all(&value).ok()?;
                }
                5 => {
                    let n = number::<8>(client)?;
                    let keys = (0..n).map(|_| key(client)).collect::<Option<Vec<_>>>()?;
                    let values = self.values.lock().unwrap();
                    let missing = keys.iter().any(|key| !values.contains_key(key));
                    client.write_all(&[u8::from(missing)]).ok()?;
                }
                7 => {
                    let n = self.values.lock().unwrap().len();
                    client.write_all(&(n as u64).to_ne_bytes()).ok()?;
                }
                _ => return None,
            }
        }
    }
}

fn byte(client: &mut TcpStream) -> Option<u8> {
    number::<1>(client).map(|byte| byte as u8)
}

fn number<const BYTES: usize>(client: &mut TcpStream) -> Option<u64> {
    let mut number = [0; BYTES];
    client.read_exact(&mut number).ok()?;
    Some(match BYTES {
        1 => number[0].into(),
        4 => u32::from_ne_bytes(number[..].try_into().unwrap()).into(),
        _ => u64::from_ne_bytes(number[..].try_into().unwrap()),
    })
}

fn text(client: &mut TcpStream, longest: u64) -> Option<Vec<u8>> {
    let length = number::<8>(client).filter(|&length| length <= longest)?;
    let mut text = vec![0; length as usize];
    client.read_exact(&mut text).ok()?;
    Some(text)
}

fn key(client: &mut TcpStream) -> Option<String> {
    String::from_utf8(text(client, 8 << 10)?).ok()
}

/// `zoo LINE` as `torchrun` starts it.
fn rank(shell: &Shell, rank: usize, size: usize, port: u16, line: &str) -> Command {
    let mut command = shell.command(line.split_whitespace());
    let (rank, size, port) = (rank.to_string(), size.to_string(), port.to_string());
    let variables = [
        ("RANK", rank.as_str()),
        ("LOCAL_RANK", &rank),
        ("GROUP_RANK", "0"),
        ("WORLD_SIZE", &size),
        ("LOCAL_WORLD_SIZE", &size),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", &port),
        ("TORCHELASTIC_RESTART_COUNT", "0"),
        ("TORCHELASTIC_RUN_ID", "job"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("ZOO_RANK_TIMEOUT_SECONDS", "60"),
    ];
    command.envs(variables).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(mut command: Command) -> Child {
    command.spawn().unwrap()
}

fn end(child: Child) -> Done {
    child.wait_with_output().unwrap().into()
}

/// Waits for ranks that all train to the end.
#[track_caller]
fn all_end(ranks: impl IntoIterator<Item = Child>) {
    for rank in ranks {
        end(rank).ok();
    }
}

fn same(shell: &Shell, a: &str, b: &str) {
    let weights = |run: &str| bytes(&shell.path(run).join("last.safetensors"));
    assert!(weights(a) == weights(b), "{a} and {b}");
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn ranks_meet_through_the_store() {
    let shell = Shell::new();
    let hosts = ["localhost", "127.0.0.1", "::1"];
    let hosts = hosts.iter().filter(|host| **host != "::1" || TcpListener::bind("[::1]:0").is_ok());
    for size in [2, 3] {
        shell.zoo(&format!("{TRAIN} --devices {size} --out devices{size}")).ok();
        for (i, host) in hosts.clone().enumerate().take(if size == 2 { 3 } else { 1 }) {
            // Stores of earlier versions take two seconds to be known.
            for &validated in if i == 0 { &[true, false][..] } else { &[true] } {
                let store = Store::start(validated);
                let run = format!("run{size}{i}{validated}");
                let line = format!("{TRAIN} --out {run}");
                // The first comes last.
                let ranks = (0..size).rev().map(|r| {
                    let mut command = rank(&shell, r, size, store.port, &line);
                    command.env("MASTER_ADDR", host);
                    start(command)
                });
                let ranks: Vec<Child> = ranks.collect();
                all_end(ranks);
                same(&shell, &run, &format!("devices{size}"));
                let keys: Vec<String> = store.values.lock().unwrap().keys().cloned().collect();
                assert_eq!(keys, ["zoo/job/rank0"]);
            }
        }
    }
}

/// The agents of two machines count restarts each for itself, and their store keeps what an earlier attempt has said.
#[test]
fn ranks_meet_again_after_a_restart() {
    let shell = Shell::new();
    let store = Store::start(true);
    let line = |run: &str| format!("{TRAIN} --out {run}");
    let place = || store.values.lock().unwrap().get("zoo/job/rank0").cloned();
    let mut first = start(rank(&shell, 0, 2, store.port, &line("killed")));
    let begun = Instant::now();
    while place().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let stale = place().unwrap();
    // The other rank comes first, and finds the place of the one that is gone, where a stranger listens now.
    let port: u16 = String::from_utf8(stale.clone()).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let stranger = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (told, called) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut caller in stranger.incoming().flatten() {
            let _ = caller.write_all(b"220 mail.example.org, at your service\r\n");
            let _ = told.send(());
        }
    });
    let mut second = rank(&shell, 1, 2, store.port, &line("run"));
    second.env("TORCHELASTIC_RESTART_COUNT", "1").env("GROUP_RANK", "1");
    let second = start(second);
    called.recv_timeout(Duration::from_secs(60)).unwrap();
    let first = start(rank(&shell, 0, 2, store.port, &line("run")));
    end(first).ok();
    end(second).ok();
    assert_ne!(place().unwrap(), stale);
    shell.zoo(&format!("{TRAIN} --devices 2 --out devices")).ok();
    same(&shell, "run", "devices");
    // Runs of another name do not see it.
    let mut other = rank(&shell, 1, 2, store.port, &line("other"));
    other.env("TORCHELASTIC_RUN_ID", "another").env("ZOO_RANK_TIMEOUT_SECONDS", "1");
    assert_eq!(
        end(start(other)).error(),
        format!(
            "rank 1 of 2 did not find rank 0 within 1 s: it has not told torchrun's store at localhost:{} where it is; \
             ZOO_RANK_TIMEOUT_SECONDS lets the others wait longer",
            store.port
        )
    );
}

#[test]
fn what_is_no_store_of_torchrun() {
    let shell = Shell::new();
    let answering = |answer: Option<&'static [u8]>| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut client in listener.incoming().flatten() {
                match answer {
                    Some(answer) => drop(client.read(&mut [0; 64]).and_then(|_| client.write_all(answer))),
                    None => kept.push(client),
                }
            }
        });
        port
    };
    let cases = [
        (answering(Some(b"")), "it hangs up"),
        (answering(None), "it does not answer"),
        (answering(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n")), "what it answers makes no sense"),
        (free_port(), "Connection refused (os error 111)"),
    ];
    for (port, problem) in cases {
        let ranks = [0, 1].map(|r| {
            let mut command = rank(&shell, r, 2, port, &format!("{TRAIN} --out run"));
            command.env("ZOO_RANK_TIMEOUT_SECONDS", "1");
            start(command)
        });
        for done in ranks.map(end) {
            let problem =
                if cfg!(target_os = "linux") { problem } else { problem.split(" (").next().unwrap() };
            let said = done.error();
            let expected = format!("cannot use the store of torchrun at localhost:{port}: {problem}");
            assert!(said.starts_with(&expected), "{said}");
            assert!(said.ends_with("unset it where torchrun has not started this process"), "{said}");
        }
        assert!(!shell.path("run").exists());
    }
}

/// What another version, or another program, has put where the first rank says where it is.
#[test]
fn a_place_that_is_none() {
    let shell = Shell::new();
    let store = Store::start(true);
    store.values.lock().unwrap().insert("zoo/job/rank0".into(), b"7 \x1b[31m".to_vec());
    let done = end(start(rank(&shell, 1, 2, store.port, &format!("{TRAIN} --out run"))));
    assert_eq!(
        done.error(),
        "rank 1 of 2 does not understand where rank 0 says that it is ('7 \\u{1b}[31m'); all ranks need the same version \
         of zoo"
    );
}

#[test]
fn without_a_store_the_first_rank_listens_at_the_port_itself() {
    let shell = Shell::new();
    let hosts = ["localhost", "127.0.0.1", "::1"];
    let hosts = hosts.iter().filter(|host| **host != "::1" || TcpListener::bind("[::1]:0").is_ok());
    shell.zoo(&format!("{TRAIN} --devices 2 --out devices")).ok();
    for (i, host) in hosts.enumerate() {
        for (j, store) in ["False", "", "0"].iter().enumerate().take(if i == 0 { 3 } else { 1 }) {
            let port = free_port();
            let run = format!("run{i}{j}");
            let ranks = [0, 1].map(|r| {
                let mut command = rank(&shell, r, 2, port, &format!("{TRAIN} --out {run}"));
                command.env("MASTER_ADDR", host).env("TORCHELASTIC_USE_AGENT_STORE", store);
                start(command)
            });
            all_end(ranks);
            same(&shell, &run, "devices");
        }
    }
}

/// A world of one, whatever the store is, commands that have no ranks, and `--devices` in such a world.
#[test]
fn where_no_store_is_needed_none_is_asked() {
    let shell = Shell::new();
    let nobody = free_port();
    let alone = |line: &str| end(start(rank(&shell, 0, 1, nobody, line)));
    alone(&format!("{TRAIN} --out one")).ok();
    alone(&format!("{TRAIN} --devices 2 --out two")).ok();
    shell.zoo(&format!("{TRAIN} --devices 2 --out devices")).ok();
    same(&shell, "two", "devices");
    for line in ["eval one", "bench --model lenet5 --steps 1 --warmup 0 --batch-size 1", "list lenet5"] {
        for r in [0, 1] {
            end(start(rank(&shell, r, 2, nobody, line))).ok();
        }
    }
    // Slurm's variables, and what is left of a torchrun.
    let port = free_port().to_string();
    let ranks = [0, 1].map(|r| {
        let mut command = rank(&shell, r, 2, nobody, &format!("{TRAIN} --out slurm"));
        command.env_remove("RANK").env_remove("WORLD_SIZE").env("MASTER_PORT", &port);
        command.env("SLURM_PROCID", r.to_string()).env("SLURM_STEP_NUM_TASKS", "2");
        start(command)
    });
    all_end(ranks);
    same(&shell, "slurm", "devices");
}

/// Whoever says that it is rank 1 is: so none but this machine may say it where no other has a part in the run.
#[cfg(target_os = "linux")]
#[test]
fn a_run_of_one_machine_does_not_listen_to_others() {
    let shell = Shell::new();
    // The addresses at which a process of this machine listens at a port, as the system has them.
    let listening = |port: u16| -> Vec<String> {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"]
            .map(|table| std::fs::read_to_string(table).unwrap_or_default());
        let lines: Vec<&str> = tables.iter().flat_map(|table| table.lines()).collect();
        let at = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let at =
            at.filter(|words| words.get(3) == Some(&"0A") && words[1].ends_with(&format!(":{port:04X}")));
        at.map(|words| words[1].split(':').next().unwrap().to_string()).collect()
    };
    for (host, alone) in [("127.0.0.1", true), ("localhost", true), ("node0", false)] {
        let port = free_port();
        let mut command = rank(&shell, 0, 2, port, &format!("{TRAIN} --out run"));
        command.env("MASTER_ADDR", host).env("TORCHELASTIC_USE_AGENT_STORE", "False");
        let mut first = start(command);
        let begun = Instant::now();
        while listening(port).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        let here = ["0100007F", "00000000000000000000000001000000"];
        let found = listening(port);
        assert_eq!(found.iter().all(|address| here.contains(&address.as_str())), alone, "{host}: {found:?}");
        first.kill().unwrap();
        first.wait().unwrap();
    }
}
