//! Ranks over TCP: every rank has a connection to the first, which adds up and tells the sums.
//!
//! For a few processes on CPUs, where a step takes long beside the exchange; what many machines need is MPI.

use super::Membership;
use crate::{Error, Result};
use candle_core::{DType, Tensor, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use zoo_ops::ranks::{Communicator, check_sum};

/// What a rank says first: who it is among how many, behind a word that no other program says.
const HELLO: [u8; 8] = *b"zoo rank";
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Tcp {
    rank: usize,
    size: usize,
    timeout: Duration,
    /// Of the first rank those to all others in their order; of another one that to the first.
    peers: Mutex<Vec<TcpStream>>,
}

impl Tcp {
    /// Meets the other ranks.
    pub(super) fn connect(membership: &Membership, timeout: Duration) -> Result<Self> {
        let &Membership { rank, size, ref host, port, .. } = membership;
        let peers = if rank == 0 { wait(size, port, timeout)? } else { vec![call(membership, timeout)?] };
        let failed = |error| Error::Ranks(format!("cannot prepare the connection to {host}:{port}: {error}"));
        for peer in &peers {
            let ready = peer.set_nodelay(true).and_then(|()| peer.set_nonblocking(false));
            let ready = ready.and_then(|()| peer.set_read_timeout(Some(timeout)));
            ready.and_then(|()| peer.set_write_timeout(Some(timeout))).map_err(failed)?;
        }
        Ok(Self { rank, size, timeout, peers: Mutex::new(peers) })
    }

    /// What to say of a connection that failed.
    fn lost(&self, peer: usize, error: &std::io::Error) -> candle_core::Error {
        let peer = if self.rank == 0 { peer + 1 } else { 0 };
        let (rank, size) = (self.rank, self.size);
        candle_core::Error::Msg(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
                "rank {rank} of {size} has waited {} s for rank {peer}; ZOO_RANK_TIMEOUT_SECONDS lets it wait longer",
                self.timeout.as_secs()
            ),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                format!("rank {peer} of {size} has ended, and rank {rank} cannot go on without it")
            }
            _ => format!("rank {rank} of {size} cannot reach rank {peer}: {error}"),
        })
    }

    /// Sums values of eight or four bytes, which `add` adds up.
    fn exchange(&self, own: &mut [u8], add: impl Fn(&mut [u8], &[u8])) -> candle_core::Result<()> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.rank > 0 {
            let peer = &mut peers[0];
            let exchanged = peer.write_all(own).and_then(|()| peer.read_exact(own));
            return exchanged.map_err(|error| self.lost(0, &error));
        }
        let mut theirs = vec![0; own.len()];
        for (i, peer) in peers.iter_mut().enumerate() {
            peer.read_exact(&mut theirs).map_err(|error| self.lost(i, &error))?;
            add(own, &theirs);
        }
        for (i, peer) in peers.iter_mut().enumerate() {
            peer.write_all(own).map_err(|error| self.lost(i, &error))?;
        }
        Ok(())
    }
}

impl Communicator for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        macro_rules! sum {
            ($type:ty) => {{
                const BYTES: usize = size_of::<$type>();
                let values = xs.to_vec1::<$type>()?;
                let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let value = |bytes: &[u8; BYTES]| <$type>::from_le_bytes(*bytes);
                self.exchange(&mut bytes, |sum, terms| {
                    let (sum, terms) = (sum.as_chunks_mut::<BYTES>().0, terms.as_chunks::<BYTES>().0);
                    for (sum, term) in sum.iter_mut().zip(terms) {
                        *sum = (value(sum) + value(term)).to_le_bytes();
                    }
                })?;
                let sums: Vec<$type> = bytes.as_chunks::<BYTES>().0.iter().map(value).collect();
                Tensor::from_vec(sums, xs.shape(), xs.device())
            }};
        }
        check_sum(xs)?;
        match xs.dtype() {
            DType::F32 => sum!(f32),
            DType::F64 => sum!(f64),
            dtype => bail!("ranks do not add up {dtype:?}"),
        }
    }
}

/// The connections of the first rank, in the order of the others.
fn wait(size: usize, port: u16, timeout: Duration) -> Result<Vec<TcpStream>> {
    let failed = |error| {
        Error::Ranks(format!(
            "rank 0 of {size} cannot listen at port {port}: {error}; MASTER_PORT names another"
        ))
    };
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let deadline = Instant::now() + timeout;
    let mut peers: Vec<Option<TcpStream>> = (1..size).map(|_| None).collect();
    while peers.iter().any(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => {
                // What is no rank of this run is left alone.
                if let Some((rank, stream)) = greet(stream, size) {
                    let place = &mut peers[rank - 1];
                    if place.is_some() {
                        return Err(Error::Ranks(format!(
                            "two processes say that they are rank {rank} of {size}"
                        )));
                    }
                    *place = Some(stream);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    let absent = peers.iter().position(Option::is_none).unwrap_or_default() + 1;
                    let missing = peers.iter().filter(|peer| peer.is_none()).count();
                    return Err(Error::Ranks(format!(
                        "rank {absent} of {size} did not come to port {port} within {} s{}; ZOO_RANK_TIMEOUT_SECONDS \
                         lets the others wait longer",
                        timeout.as_secs(),
                        if missing > 1 { format!(", nor did {} others", missing - 1) } else { String::new() },
                    )));
                }
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(peers.into_iter().flatten().collect())
}

/// Which rank has called.
fn greet(mut stream: TcpStream, size: usize) -> Option<(usize, TcpStream)> {
    let mut hello = [0; 24];
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.read_exact(&mut hello).ok()?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hello[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let rank = usize::try_from(number(8)).ok()?;
    let known = hello.starts_with(&HELLO) && number(16) == size as u64 && (1..size).contains(&rank);
    known.then_some((rank, stream))
}

/// The connection of another rank to the first, which may not be there yet.
fn call(membership: &Membership, timeout: Duration) -> Result<TcpStream> {
    let &Membership { rank, size, ref host, port, .. } = membership;
    let deadline = Instant::now() + timeout;
    loop {
        let error = match connected(host, port, timeout) {
            Ok(mut stream) => {
                let hello = [HELLO, (rank as u64).to_le_bytes(), (size as u64).to_le_bytes()];
                match stream.write_all(hello.as_flattened()) {
                    Ok(()) => return Ok(stream),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(Error::Ranks(format!(
                "rank {rank} of {size} did not find rank 0 at {host}:{port} within {} s: {error}; MASTER_ADDR and \
                 MASTER_PORT say where it is",
                timeout.as_secs()
            )));
        }
        std::thread::sleep(PAUSE);
    }
}

fn connected(host: &str, port: u16, timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn membership(rank: usize, size: usize, port: u16) -> Membership {
        Membership { rank, size, local_rank: rank, host: "127.0.0.1".into(), port }
    }

    /// A port that nobody listens at.
    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn sums_are_the_same_on_every_rank() {
        let port = free_port();
        let rank = |rank: usize| {
            let tcp = Tcp::connect(&membership(rank, 3, port), Duration::from_secs(20)).unwrap();
            let own: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37 + rank as f32).sin()).collect();
            let sum = tcp.sum(&Tensor::new(own.as_slice(), &Device::Cpu).unwrap()).unwrap();
            let double = tcp.sum(&Tensor::new(&[rank as f64, 0.5], &Device::Cpu).unwrap()).unwrap();
            (own, sum.to_vec1::<f32>().unwrap(), double.to_vec1::<f64>().unwrap())
        };
        let all: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..3).map(|r| scope.spawn(move || rank(r))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let expected: Vec<f32> = (0..1000).map(|i| all[0].0[i] + all[1].0[i] + all[2].0[i]).collect();
        for (_, sum, double) in &all {
            assert_eq!(sum, &expected);
            assert_eq!(double, &[3.0, 1.5]);
        }
    }

    #[test]
    fn a_rank_that_ends_is_named() {
        let port = free_port();
        let (first, second) = std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let tcp = Tcp::connect(&membership(1, 2, port), Duration::from_secs(20)).unwrap();
                drop(tcp);
            });
            let tcp = Tcp::connect(&membership(0, 2, port), Duration::from_secs(20)).unwrap();
            (tcp.sum(&Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap()), second.join())
        });
        second.unwrap();
        let message = first.unwrap_err().to_string();
        assert!(message.starts_with("rank 1 of 2 has ended, and rank 0 cannot go on"), "{message}");
    }

    #[test]
    fn a_rank_that_never_comes_is_not_waited_for_long() {
        let port = free_port();
        let wait = Duration::from_secs(1);
        let message = Tcp::connect(&membership(0, 3, port), wait).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("rank 1 of 3 did not come to port {port} within 1 s, nor did 1 o")),
            "{message}"
        );
        let message = Tcp::connect(&membership(2, 3, port), wait).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("rank 2 of 3 did not find rank 0 at 127.0.0.1:{port} wi")),
            "{message}"
        );
    }
}
