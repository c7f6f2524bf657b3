//! Ranks over TCP: every rank has a connection to the first, which adds up and tells the sums.
//!
//! For a few processes on CPUs, where a step takes long beside the exchange; what many machines need is MPI.

use super::Membership;
use super::meeting::{Endpoint, meet};
use crate::{Error, Result};
use candle_core::{DType, Tensor, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use zoo_ops::ranks::{Communicator, check_sum};

/// How long a rank may take to hear why a run cannot go on.
const FAREWELL: Duration = Duration::from_secs(2);
/// The longest reason that is read.
const MAX_REASON: u64 = 1 << 16;

#[derive(Debug)]
pub(super) struct Tcp {
    rank: usize,
    size: usize,
    timeout: Duration,
    links: Mutex<Links>,
}

#[derive(Debug)]
struct Links {
    /// Of the first rank those to all others in their order; of another one that to the first.
    peers: Vec<TcpStream>,
    /// Exchanges so far.
    exchanges: u64,
}

/// What goes before the values of an exchange, so that ranks which do not do the same notice it and add nothing up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Bytes of a value, or [`Header::FAILURE`].
    width: u64,
    /// Which exchange this is, from 0.
    number: u64,
    /// Bytes that follow.
    length: u64,
}

impl Header {
    const BYTES: usize = 24;
    /// In place of a width: what follows is why the run cannot go on.
    const FAILURE: u64 = u64::MAX;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let numbers = [self.width, self.number, self.length].map(u64::to_le_bytes);
        bytes.copy_from_slice(numbers.as_flattened());
        bytes
    }

    fn read(from: &mut impl Read) -> std::io::Result<Self> {
        let mut bytes = [[0; 8]; Self::BYTES / 8];
        from.read_exact(bytes.as_flattened_mut())?;
        let [width, number, length] = bytes.map(u64::from_le_bytes);
        Ok(Self { width, number, length })
    }
}

impl Tcp {
    /// Meets the other ranks.
    pub(super) fn connect(membership: &Membership, timeout: Duration) -> Result<Self> {
        let &Membership { rank, size, ref host, port, .. } = membership;
        let peers = meet(membership, timeout)?;
        let failed = |error| {
            let at = Endpoint(host, port);
            Error::Ranks(format!("cannot prepare the connection to {at}: {error}"))
        };
        for peer in &peers {
            let ready = peer.set_nodelay(true).and_then(|()| peer.set_nonblocking(false));
            let ready = ready.and_then(|()| peer.set_read_timeout(Some(timeout)));
            ready.and_then(|()| peer.set_write_timeout(Some(timeout))).map_err(failed)?;
        }
        Ok(Self { rank, size, timeout, links: Mutex::new(Links { peers, exchanges: 0 }) })
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

    /// Sums values of `width` bytes, which `add` adds up.
    fn exchange(
        &self,
        width: usize,
        values: impl Iterator<Item = u8>,
        add: impl Fn(&mut [u8], &[u8]),
    ) -> candle_core::Result<Vec<u8>> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let Links { peers, exchanges } = &mut *links;
        let mut own = vec![0; Header::BYTES];
        own.extend(values);
        let length = (own.len() - Header::BYTES) as u64;
        let header = Header { width: width as u64, number: *exchanges, length };
        *exchanges += 1;
        own[..Header::BYTES].copy_from_slice(&header.to_bytes());
        if self.rank > 0 {
            let peer = &mut peers[0];
            let sent = peer.write_all(&own).and_then(|()| Header::read(peer));
            let answer = sent.map_err(|error| self.lost(0, &error))?;
            if answer.width == Header::FAILURE {
                return Err(candle_core::Error::Msg(
                    reason(peer, answer.length).map_err(|error| self.lost(0, &error))?,
                ));
            }
            if answer != header {
                bail!("{}", self.out_of_step(self.rank, header, answer));
            }
            own.drain(..Header::BYTES);
            peer.read_exact(&mut own).map_err(|error| self.lost(0, &error))?;
            return Ok(own);
        }
        let mut theirs = vec![0; length as usize];
        for i in 0..peers.len() {
            let found = Header::read(&mut peers[i]).map_err(|error| self.lost(i, &error))?;
            if found != header {
                let reason = self.out_of_step(i + 1, found, header);
                dismiss(peers, i, found.length, &reason);
                bail!("{reason}");
            }
            peers[i].read_exact(&mut theirs).map_err(|error| self.lost(i, &error))?;
            add(&mut own[Header::BYTES..], &theirs);
        }
        for (i, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&own).map_err(|error| self.lost(i, &error))?;
        }
        own.drain(..Header::BYTES);
        Ok(own)
    }

    fn out_of_step(&self, rank: usize, theirs: Header, first: Header) -> String {
        let at = |header: Header| format!("at exchange {} with {} bytes", header.number, header.length);
        format!(
            "rank {rank} of {} is {}, rank 0 {}: they do not do the same; all ranks need the same program, settings \
             and data",
            self.size,
            at(theirs),
            at(first)
        )
    }
}

/// Tells all ranks why the run cannot go on: those before `peer` have been heard, that one has `unread` bytes to say.
/// What they have sent is taken first, because a connection that is closed over it loses what was sent the other way.
fn dismiss(peers: &mut [TcpStream], peer: usize, unread: u64, reason: &str) {
    let header = Header { width: Header::FAILURE, number: 0, length: reason.len() as u64 };
    for (i, stream) in peers.iter_mut().enumerate() {
        // Best effort: who does not hear it hears that this rank has ended.
        let _ =
            stream.set_read_timeout(Some(FAREWELL)).and_then(|()| stream.set_write_timeout(Some(FAREWELL)));
        let unread = match i.cmp(&peer) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => unread,
            std::cmp::Ordering::Greater => Header::read(stream).map_or(0, |header| header.length),
        };
        let _ = std::io::copy(&mut stream.take(unread), &mut std::io::sink());
        let _ = stream.write_all(&[&header.to_bytes(), reason.as_bytes()].concat());
    }
}

/// Why the first rank says that the run cannot go on.
fn reason(peer: &mut TcpStream, length: u64) -> std::io::Result<String> {
    let mut text = Vec::new();
    peer.take(length.min(MAX_REASON)).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
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
                let value = |bytes: &[u8; BYTES]| <$type>::from_le_bytes(*bytes);
                let values = values.iter().flat_map(|value| value.to_le_bytes());
                let bytes = self.exchange(BYTES, values, |sum, terms| {
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

#[cfg(test)]
mod tests {
    use super::super::meeting::tests::{free_port, membership};
    use super::*;
    use candle_core::Device;

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

    /// What three ranks hear if each does what `run` does.
    fn three(run: impl Fn(&Tcp) -> candle_core::Result<Tensor> + Sync) -> Vec<String> {
        let port = free_port();
        let rank = |rank: usize| {
            let tcp = Tcp::connect(&membership(rank, 3, port), Duration::from_secs(20)).unwrap();
            // Behind the first line may be where it happened.
            run(&tcp).unwrap_err().to_string().lines().next().unwrap().to_string()
        };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..3).map(|r| scope.spawn(move || rank(r))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn ranks_out_of_step_are_named_and_nothing_is_added_up() {
        let zeros = |n: usize, dtype| Tensor::zeros(n, dtype, &Device::Cpu);
        let rest = ": they do not do the same; all ranks need the same program, settings and data";
        for odd in [1, 2] {
            // As many values are not the same values.
            for n in [6, 5, 500_000, 2_000_000] {
                let said = three(|tcp| {
                    tcp.sum(&zeros(3, DType::F64)?)?;
                    let (n, dtype) = if tcp.rank() == odd { (n, DType::F32) } else { (3, DType::F64) };
                    tcp.sum(&zeros(n, dtype)?)
                });
                let expected = format!(
                    "rank {odd} of 3 is at exchange 1 with {} bytes, rank 0 at exchange 1 with 24 bytes{rest}",
                    n * 4
                );
                assert_eq!(said, [expected.as_str(); 3]);
            }
        }
        // One has added up once more.
        let said = three(|tcp| {
            if tcp.rank() == 2 {
                tcp.links.lock().unwrap().exchanges += 1;
            }
            tcp.sum(&zeros(4, DType::F32)?)
        });
        let expected =
            format!("rank 2 of 3 is at exchange 1 with 16 bytes, rank 0 at exchange 0 with 16 bytes{rest}");
        assert_eq!(said, [expected.as_str(); 3]);
    }
}
