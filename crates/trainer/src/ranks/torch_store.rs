//! The store that `torchrun` keeps at `MASTER_PORT`, from which its processes learn where the others are: as much of the
//! protocol of PyTorch's `TCPStore` as that needs (torch/csrc/distributed/c10d/TCPStoreBackend.hpp).

use super::meeting::Endpoint;
use crate::{Error, Result};
use std::io::{Error as IoError, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// What a client of torch from 2.2 on says first, behind the query `VALIDATE`.
const MAGIC: u32 = 0x3C85_F7CE;

/// Queries as torch from 2.2 on numbers them.
const VALIDATE: u8 = 0;
const SET: u8 = 1;
const GET: u8 = 3;
const CHECK: u8 = 5;
const COUNT_KEYS: u8 = 7;
/// What the answer to `CHECK` is.
const READY: u8 = 0;
const NOT_READY: u8 = 1;

/// How long the store may take to answer at first, and later, when it is known to be one.
const FIRST_ANSWER: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(30);
/// How long it is looked for. It is there before the processes are.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest value that is taken.
const MAX_VALUE: u64 = 1 << 16;

/// Which protocol a store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// That of torch from 2.2 on.
    Validated,
    /// That of earlier versions, which have no `VALIDATE`; the other queries have numbers that are less by one.
    Plain,
}

/// A connection to the store.
pub(super) struct Store {
    stream: TcpStream,
    dialect: Dialect,
    at: String,
}

impl Store {
    /// Connects to the store at a machine and port, before the deadline if that comes early.
    ///
    /// # Errors
    /// If there is none, or what is there is something else.
    pub(super) fn open(host: &str, port: u16, deadline: Instant) -> Result<Self> {
        let at = Endpoint(host, port).to_string();
        let deadline = deadline.min(Instant::now() + PATIENCE);
        // A store of either kind says nothing to the other's clients.
        let mut dialects = [Dialect::Validated, Dialect::Plain].into_iter().cycle();
        loop {
            let dialect = dialects.next().unwrap_or(Dialect::Validated);
            let problem = match Self::attempt(host, port, dialect, &at) {
                Ok(store) => return Ok(store),
                Err(error) => error,
            };
            if Instant::now() > deadline {
                let found = match problem.kind() {
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => "it hangs up".into(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => "it does not answer".into(),
                    _ => problem.to_string(),
                };
                return Err(Error::Ranks(format!(
                    "cannot use the store of torchrun at {at}: {found}; TORCHELASTIC_USE_AGENT_STORE=True says that it \
                     is there, so unset it where torchrun has not started this process"
                )));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn attempt(host: &str, port: u16, dialect: Dialect, at: &str) -> std::io::Result<Self> {
        let mut last = IoError::new(ErrorKind::NotFound, "the name has no address");
        for address in (host, port).to_socket_addrs()? {
            let opened = TcpStream::connect_timeout(&address, PATIENCE)
                .and_then(|stream| Self { stream, dialect, at: at.into() }.greeted());
            match opened {
                Ok(store) => return Ok(store),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// This, once it has answered as a store does.
    fn greeted(mut self) -> std::io::Result<Self> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(FIRST_ANSWER))?;
        self.stream.set_write_timeout(Some(FIRST_ANSWER))?;
        let mut first = Vec::new();
        if self.dialect == Dialect::Validated {
            first.push(VALIDATE);
            // Numbers are sent as they lie in memory.
            first.extend(MAGIC.to_ne_bytes());
        }
        first.extend(self.query(COUNT_KEYS));
        self.stream.write_all(&first)?;
        let mut keys = [0; 8];
        self.stream.read_exact(&mut keys)?;
        // The agents of torchrun have keys of their own there, though not many.
        if !(0..1 << 32).contains(&i64::from_ne_bytes(keys)) {
            return Err(IoError::new(ErrorKind::InvalidData, "what it answers makes no sense"));
        }
        self.stream.set_read_timeout(Some(ANSWER))?;
        self.stream.set_write_timeout(Some(ANSWER))?;
        Ok(self)
    }

    /// The address of this machine, as the store sees it.
    ///
    /// # Errors
    /// If the connection is gone.
    pub(super) fn own_address(&self) -> Result<IpAddr> {
        self.stream.local_addr().map(|own| own.ip().to_canonical()).map_err(|error| self.lost(&error))
    }

    /// Gives a key a value, and looks whether it has it then.
    ///
    /// # Errors
    /// If the connection is gone.
    pub(super) fn set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let mut query = self.query(SET);
        append(&mut query, key.as_bytes());
        append(&mut query, value);
        self.stream.write_all(&query).map_err(|error| self.lost(&error))?;
        match self.get(key)? {
            Some(kept) if kept == value => Ok(()),
            _ => Err(self.lost(&IoError::new(ErrorKind::InvalidData, "it does not keep what it is given"))),
        }
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// If the connection is gone.
    pub(super) fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        self.try_get(key).map_err(|error| self.lost(&error))
    }

    fn try_get(&mut self, key: &str) -> std::io::Result<Option<Vec<u8>>> {
        let mut query = self.query(CHECK);
        query.extend(1u64.to_ne_bytes());
        append(&mut query, key.as_bytes());
        self.stream.write_all(&query)?;
        let mut found = [0];
        self.stream.read_exact(&mut found)?;
        match found {
            [READY] => {}
            [NOT_READY] => return Ok(None),
            _ => return Err(IoError::new(ErrorKind::InvalidData, "what it answers makes no sense")),
        }
        let mut query = self.query(GET);
        append(&mut query, key.as_bytes());
        self.stream.write_all(&query)?;
        let mut length = [0; 8];
        self.stream.read_exact(&mut length)?;
        let length = u64::from_ne_bytes(length);
        if length > MAX_VALUE {
            return Err(IoError::new(ErrorKind::InvalidData, "what it answers makes no sense"));
        }
        let mut value = vec![0; length as usize];
        self.stream.read_exact(&mut value)?;
        Ok(Some(value))
    }

    /// The start of a query.
    fn query(&self, number: u8) -> Vec<u8> {
        vec![if self.dialect == Dialect::Plain { number - 1 } else { number }]
    }

    fn lost(&self, error: &IoError) -> Error {
        Error::Ranks(format!("lost the store of torchrun at {}: {error}", self.at))
    }
}

/// Text or bytes as the protocol has them.
fn append(query: &mut Vec<u8>, bytes: &[u8]) {
    query.extend((bytes.len() as u64).to_ne_bytes());
    query.extend(bytes);
}
