//! How ranks that talk over TCP find one another: the first listens, and the others call and say who they are.
//!
//! It listens at `MASTER_PORT`, or, where that port belongs to the store of `torchrun`, at one that the system gives it
//! and that it tells the others through the store.

#[cfg(test)]
pub(super) mod tests;

use super::Membership;
use super::torch_store::Store;
use crate::{Error, Result};
use std::fmt::{self, Display};
use std::hash::{BuildHasher, RandomState};
use std::io::{Error as IoError, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// What both sides say first: a word that no other program says.
const WORD: [u8; 8] = *b"zoo/rank";
/// What ranks of the versions said that had no [`PROTOCOL`].
const OLD_WORD: [u8; 8] = *b"zoo rank";
/// What is said next: the version of what ranks send one another.
const PROTOCOL: u64 = 2;
/// A call: the word, the protocol, the rank, the number of ranks, the ticket.
const CALL: usize = 40;
/// An answer: the word, one of the codes, a number that goes with it.
const ANSWER: usize = 24;
const WELCOME: u64 = 0;
const OTHER_PROTOCOL: u64 = 1;
const OTHER_SIZE: u64 = 2;
const OTHER_TICKET: u64 = 3;

/// Between two looks at what has come.
const PAUSE: Duration = Duration::from_millis(20);
/// How long one who calls may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// How long one attempt to reach the first rank may take.
const ATTEMPT: Duration = Duration::from_secs(10);

/// A machine and a port, as people write them.
pub(super) struct Endpoint<'a>(pub(super) &'a str, pub(super) u16);

impl Display for Endpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The connections of this rank: of the first one those to all others, in their order, of another one that to the
/// first.
///
/// # Errors
/// If one of them does not come in time.
pub(super) fn meet(membership: &Membership, timeout: Duration) -> Result<Vec<TcpStream>> {
    let deadline = Instant::now() + timeout;
    if membership.rank > 0 {
        return Ok(vec![call(membership, timeout, deadline)?]);
    }
    let &Membership { size, ref host, port, ref store, .. } = membership;
    let failed = |error: IoError| {
        Error::Ranks(format!(
            "rank 0 of {size} cannot listen at port {port}: {error}; MASTER_PORT names another"
        ))
    };
    let Some(run) = store else {
        let listeners = listen(host, port).map_err(failed)?;
        return wait(&listeners, size, 0, timeout, deadline);
    };
    let mut store = Store::open(host, port, deadline)?;
    let listeners = listen(host, 0).map_err(|error| {
        Error::Ranks(format!("rank 0 of {size} cannot listen for the others at any port: {error}"))
    })?;
    let place = Listening {
        port: listeners[0].local_addr().map_err(failed)?.port(),
        ticket: RandomState::new().hash_one(std::process::id()),
        address: store.own_address()?,
    };
    store.set(&key(run), place.to_string().as_bytes())?;
    drop(store);
    wait(&listeners, size, place.ticket, timeout, deadline)
}

/// Where the first rank listens, as it tells the others through the store of `torchrun`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listening {
    port: u16,
    /// What a call has to say: the store may still have the place of a rank that is gone, whose port is another's now.
    /// How often `torchrun` has started the ranks again does not tell these apart: its agents count each for itself.
    ticket: u64,
    /// Of its machine, as the store's machine sees it.
    address: IpAddr,
}

impl Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PROTOCOL} {} {} {}", self.port, self.ticket, self.address)
    }
}

impl Listening {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let mut word = || words.next();
        let protocol: u64 = word()?.parse().ok()?;
        let place = Self {
            port: word()?.parse().ok()?,
            ticket: word()?.parse().ok()?,
            address: word()?.parse().ok()?,
        };
        (protocol == PROTOCOL && word().is_none()).then_some(place)
    }
}

/// Where a run of that name has its place in the store.
fn key(run: &str) -> String {
    format!("zoo/{run}/rank0")
}

/// Listens where the others call: on this machine alone if they call it by a name that no other machine knows it by.
fn listen(host: &str, port: u16) -> std::io::Result<Vec<TcpListener>> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    if let Ok(address) = host.parse::<IpAddr>() {
        addresses.extend(Some(address).filter(IpAddr::is_loopback));
    } else if is_localhost(host) {
        let found = (host, port).to_socket_addrs().into_iter().flatten().map(|address| address.ip());
        addresses.extend(found.filter(IpAddr::is_loopback));
        addresses.dedup();
        if addresses.is_empty() {
            addresses.push(Ipv4Addr::LOCALHOST.into());
        }
    }
    if addresses.is_empty() {
        // Most systems take calls of IPv4 there, too.
        return match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
            Ok(both) => {
                let port = both.local_addr()?.port();
                let other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
                Ok([both].into_iter().chain(other).collect())
            }
            Err(_) => Ok(vec![TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?]),
        };
    }
    let (mut listeners, mut problem) = (Vec::<TcpListener>::new(), None);
    for address in addresses {
        // The same port at each.
        let port = listeners.first().map_or(Ok(port), |first| first.local_addr().map(|own| own.port()))?;
        match TcpListener::bind((address, port)) {
            Ok(listener) => listeners.push(listener),
            Err(error) => problem = Some(error),
        }
    }
    match problem {
        // A name may have an address that this machine does not use, such as that of IPv6.
        Some(error) if listeners.is_empty() || (port > 0 && error.kind() == ErrorKind::AddrInUse) => {
            Err(error)
        }
        _ => Ok(listeners),
    }
}

fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    matches!(host.as_str(), "localhost" | "localhost.localdomain" | "ip6-localhost" | "ip6-loopback")
        || host.ends_with(".localhost")
}

/// One who has called and has not yet said who it is.
struct Caller {
    stream: TcpStream,
    said: Vec<u8>,
    since: Instant,
}

/// The connections of the first rank, in the order of the others.
fn wait(
    listeners: &[TcpListener],
    size: usize,
    ticket: u64,
    timeout: Duration,
    deadline: Instant,
) -> Result<Vec<TcpStream>> {
    let failed = |error| Error::Ranks(format!("rank 0 of {size} cannot listen for the others: {error}"));
    for listener in listeners {
        listener.set_nonblocking(true).map_err(failed)?;
    }
    let mut callers: Vec<Caller> = Vec::new();
    let mut peers: Vec<Option<TcpStream>> = (1..size).map(|_| None).collect();
    while peers.iter().any(Option::is_none) {
        for listener in listeners {
            while let Some(stream) = accept(listener).map_err(failed)? {
                callers.push(Caller { stream, said: Vec::new(), since: Instant::now() });
            }
        }
        for mut caller in std::mem::take(&mut callers) {
            match caller.hear() {
                // What is no rank of this run is left alone.
                Some(true) => {
                    if let Some((rank, stream)) = greet(caller, size, ticket)? {
                        take(&mut peers[rank - 1], stream, rank, size)?;
                    }
                }
                Some(false) => callers.push(caller),
                None => {}
            }
        }
        if Instant::now() > deadline {
            return absent(&peers, listeners, timeout);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(peers.into_iter().flatten().collect())
}

/// Who has called, if somebody has.
fn accept(listener: &TcpListener) -> std::io::Result<Option<TcpStream>> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                return Ok(Some(stream));
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => return Ok(None),
                ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}

impl Caller {
    /// Whether it has said all that it has to; `None` if it is gone or takes too long.
    fn hear(&mut self) -> Option<bool> {
        let mut bytes = [0; CALL];
        loop {
            match self.stream.read(&mut bytes[self.said.len()..]) {
                Ok(0) => return None,
                Ok(n) => {
                    let from = self.said.len();
                    self.said.extend_from_slice(&bytes[from..from + n]);
                    if self.said.len() == CALL || self.said.starts_with(&OLD_WORD) {
                        return Some(true);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return (self.since.elapsed() < INTRODUCTION).then_some(false);
                }
                Err(_) => return None,
            }
        }
    }
}

/// Which rank has called, and answers it.
fn greet(caller: Caller, size: usize, ticket: u64) -> Result<Option<(usize, TcpStream)>> {
    let Caller { mut stream, said, .. } = caller;
    let number = |place: usize| said.as_chunks::<8>().0.get(place).map(|bytes| u64::from_le_bytes(*bytes));
    let (protocol, rank) = (number(1), number(2));
    let mut answer = |code: u64, more: u64| {
        let answer = [WORD, code.to_le_bytes(), more.to_le_bytes()];
        let ready = stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(ATTEMPT)));
        ready.and_then(|()| stream.write_all(answer.as_flattened())).is_ok()
    };
    let other_version = |rank: Option<u64>| {
        let who = rank.map_or("another rank".into(), |rank| format!("rank {rank} of {size}"));
        Error::Ranks(format!(
            "{who} runs another version of zoo than rank 0; all ranks need the same version"
        ))
    };
    if said.starts_with(&OLD_WORD) {
        return Err(other_version(number(1)));
    }
    if !said.starts_with(&WORD) {
        return Ok(None);
    }
    if number(4) != Some(ticket) {
        answer(OTHER_TICKET, 0);
        return Ok(None);
    }
    if protocol != Some(PROTOCOL) {
        answer(OTHER_PROTOCOL, PROTOCOL);
        return Err(other_version(rank));
    }
    if number(3) != Some(size as u64) {
        answer(OTHER_SIZE, size as u64);
        return Ok(None);
    }
    let rank = rank.and_then(|rank| usize::try_from(rank).ok()).filter(|rank| (1..size).contains(rank));
    Ok(rank.filter(|_| answer(WELCOME, 0)).map(|rank| (rank, stream)))
}

/// Keeps the connection of a rank that has just come.
fn take(place: &mut Option<TcpStream>, stream: TcpStream, rank: usize, size: usize) -> Result<()> {
    // One that heard its answer too late has hung up and calls again.
    let gone = |old: &TcpStream| {
        let closed = old.set_nonblocking(true).and_then(|()| old.peek(&mut [0]));
        closed.is_ok_and(|n| n == 0)
    };
    if place.as_ref().is_some_and(|old| !gone(old)) {
        return Err(Error::Ranks(format!("two processes say that they are rank {rank} of {size}")));
    }
    *place = Some(stream);
    Ok(())
}

fn absent<T>(peers: &[Option<TcpStream>], listeners: &[TcpListener], timeout: Duration) -> Result<T> {
    let size = peers.len() + 1;
    let absent = peers.iter().position(Option::is_none).unwrap_or_default() + 1;
    let missing = peers.iter().filter(|peer| peer.is_none()).count();
    let port = listeners.first().and_then(|listener| listener.local_addr().ok()).map_or(0, |own| own.port());
    Err(Error::Ranks(format!(
        "rank {absent} of {size} did not come to port {port} within {} s{}; ZOO_RANK_TIMEOUT_SECONDS lets the others \
         wait longer",
        timeout.as_secs(),
        if missing > 1 { format!(", nor did {} others", missing - 1) } else { String::new() },
    )))
}

/// The connection of another rank to the first, which may not be there yet.
fn call(membership: &Membership, timeout: Duration, deadline: Instant) -> Result<TcpStream> {
    let &Membership { rank, size, ref host, port, ref store, .. } = membership;
    let mut store = match store {
        Some(run) => Some((Store::open(host, port, deadline)?, key(run))),
        None => None,
    };
    let seconds = timeout.as_secs();
    loop {
        let mut said = None;
        if let Some((store, key)) = &mut store {
            said = store
                .get(key)?
                .map(|text| Listening::parse(&text).ok_or_else(|| other_place(rank, size, &text)));
        }
        let place = said.transpose()?;
        let problem = if store.is_some() && place.is_none() {
            format!(
                "rank {rank} of {size} did not find rank 0 within {seconds} s: it has not told torchrun's store at {} \
                 where it is; ZOO_RANK_TIMEOUT_SECONDS lets the others wait longer",
                Endpoint(host, port)
            )
        } else {
            let (port, ticket) = place.map_or((port, 0), |place| (place.port, place.ticket));
            // The machine of the store is that of the first rank in all that torchrun does by itself.
            let named = (host.as_str(), port).to_socket_addrs();
            let own = place.map(|place| SocketAddr::new(place.address, port));
            let (addresses, unknown) = match named {
                Ok(named) => (named.chain(own).collect(), None),
                Err(error) => (Vec::from_iter(own), Some(error)),
            };
            let mut error =
                unknown.unwrap_or_else(|| IoError::new(ErrorKind::NotFound, "the name has no address"));
            for address in addresses {
                match introduce(membership, &address, ticket)? {
                    Ok(stream) => return Ok(stream),
                    Err(problem) => error = problem,
                }
            }
            let (at, remedy) = (Endpoint(host, port), if store.is_some() { "" } else { REMEDY });
            format!("rank {rank} of {size} did not find rank 0 at {at} within {seconds} s: {error}{remedy}")
        };
        if Instant::now() > deadline {
            return Err(Error::Ranks(problem));
        }
        std::thread::sleep(PAUSE);
    }
}

const REMEDY: &str = "; MASTER_ADDR and MASTER_PORT say where it is";

fn other_place(rank: usize, size: usize, text: &[u8]) -> Error {
    Error::Ranks(format!(
        "rank {rank} of {size} does not understand where rank 0 says that it is ('{}'); all ranks need the same \
         version of zoo",
        String::from_utf8_lossy(text).escape_debug()
    ))
}

/// Calls at an address and says who this is. The first rank may not be there, or something else may be; what it
/// answers may be final.
fn introduce(
    membership: &Membership,
    address: &SocketAddr,
    ticket: u64,
) -> Result<std::io::Result<TcpStream>> {
    let &Membership { rank, size, .. } = membership;
    let call = [PROTOCOL, rank as u64, size as u64, ticket].map(u64::to_le_bytes);
    let mut answer = [0; ANSWER];
    let spoken = TcpStream::connect_timeout(address, ATTEMPT).and_then(|mut stream| {
        stream.set_read_timeout(Some(ATTEMPT))?;
        stream.set_write_timeout(Some(ATTEMPT))?;
        stream.write_all(&WORD)?;
        stream.write_all(call.as_flattened())?;
        stream.read_exact(&mut answer)?;
        Ok(stream)
    });
    let stranger = || IoError::new(ErrorKind::InvalidData, "what answers there is no rank 0 of this run");
    let stream = match spoken {
        Ok(stream) => stream,
        Err(error) => {
            let silent = matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::WouldBlock);
            return Ok(Err(if silent { stranger() } else { error }));
        }
    };
    let [word, code, more] = *answer.as_chunks::<8>().0 else { return Ok(Err(stranger())) };
    match u64::from_le_bytes(code) {
        _ if word != WORD => Ok(Err(stranger())),
        WELCOME => Ok(Ok(stream)),
        OTHER_PROTOCOL => Err(Error::Ranks(format!(
            "rank {rank} of {size} runs another version of zoo than rank 0; all ranks need the same version"
        ))),
        OTHER_SIZE => Err(Error::Ranks(format!(
            "rank {rank} of {size} has found a rank 0 of {} at {address}; WORLD_SIZE must be the same for all",
            u64::from_le_bytes(more)
        ))),
        _ => Ok(Err(stranger())),
    }
}
