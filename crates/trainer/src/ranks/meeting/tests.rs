use super::*;
use std::thread::{JoinHandle, spawn};

pub(in crate::ranks) fn membership(rank: usize, size: usize, port: u16) -> Membership {
    Membership { rank, size, local_rank: rank, host: "127.0.0.1".into(), port, store: None }
}

/// A port that nobody listens at.
pub(in crate::ranks) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(rank: usize, size: usize, port: u16) -> JoinHandle<Result<Vec<TcpStream>>> {
    spawn(move || meet(&membership(rank, size, port), Duration::from_secs(20)))
}

/// Says something to the first rank, as soon as it listens.
fn say(port: u16, words: &[[u8; 8]]) -> TcpStream {
    loop {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.write_all(words.as_flattened()).unwrap();
            return stream;
        }
        std::thread::sleep(PAUSE);
    }
}

#[test]
fn a_rank_that_never_comes_is_not_waited_for_long() {
    let port = free_port();
    let wait = Duration::from_secs(1);
    let message = meet(&membership(0, 3, port), wait).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("rank 1 of 3 did not come to port {port} within 1 s, nor did 1 o")),
        "{message}"
    );
    let message = meet(&membership(2, 3, port), wait).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("rank 2 of 3 did not find rank 0 at 127.0.0.1:{port} wi")),
        "{message}"
    );
}

#[test]
fn strangers_are_left_alone() {
    let port = free_port();
    let first = start(0, 3, port);
    let (silent, odd) = (say(port, &[]), say(port, &[*b"GET / HT", *b"TP/1.1\r\n", [b' '; 8]]));
    // Ranks of another run, and one of this run that knows an earlier place of the first.
    let call = |size: u64, ticket: u64| {
        say(
            port,
            &[WORD, PROTOCOL.to_le_bytes(), 1u64.to_le_bytes(), size.to_le_bytes(), ticket.to_le_bytes()],
        )
    };
    let (other_size, other_ticket) = (call(4, 0), call(3, 7));
    let begun = Instant::now();
    let (one, two) = (start(1, 3, port), start(2, 3, port));
    assert_eq!(first.join().unwrap().unwrap().len(), 2);
    assert_eq!(one.join().unwrap().unwrap().len() + two.join().unwrap().unwrap().len(), 2);
    assert!(begun.elapsed() < INTRODUCTION, "nobody waits for what they say");
    let answer = |mut stream: TcpStream| {
        let mut answer = [0; ANSWER];
        stream.read_exact(&mut answer).map(|()| u64::from_le_bytes(answer.as_chunks::<8>().0[1])).ok()
    };
    assert_eq!([silent, odd, other_size, other_ticket].map(answer), [None, None, Some(OTHER_SIZE), Some(3)]);
}

#[test]
fn ranks_that_count_otherwise_or_twice_are_named() {
    let port = free_port();
    let first = start(0, 2, port);
    let message = start(1, 3, port).join().unwrap().unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "rank 1 of 3 has found a rank 0 of 2 at 127.0.0.1:{port}; WORLD_SIZE must be the same for all"
        )
    );
    start(1, 2, port).join().unwrap().unwrap();
    first.join().unwrap().unwrap();

    let port = free_port();
    let first = start(0, 3, port);
    let twins = [start(1, 3, port), start(1, 3, port)];
    let message = first.join().unwrap().unwrap_err().to_string();
    assert_eq!(message, "two processes say that they are rank 1 of 3");
    drop(twins);
}

#[test]
fn a_rank_that_hung_up_may_call_again() {
    let port = free_port();
    let first = start(0, 3, port);
    drop(start(1, 3, port).join().unwrap().unwrap());
    let others = [start(1, 3, port), start(2, 3, port)];
    assert_eq!(first.join().unwrap().unwrap().len(), 2);
    assert!(others.into_iter().all(|other| other.join().unwrap().is_ok()));
}

#[test]
fn ranks_of_another_version_are_named() {
    let expected = "rank 1 of 2 runs another version of zoo than rank 0; all ranks need the same version";
    // What versions before this protocol said: a word, the rank, the number of ranks.
    let port = free_port();
    let first = start(0, 2, port);
    let _old = say(port, &[OLD_WORD, 1u64.to_le_bytes(), 2u64.to_le_bytes()]);
    assert_eq!(first.join().unwrap().unwrap_err().to_string(), expected);

    let port = free_port();
    let first = start(0, 2, port);
    let mut new = say(port, &[WORD, 3u64.to_le_bytes(), 1u64.to_le_bytes(), 2u64.to_le_bytes(), [0; 8]]);
    assert_eq!(first.join().unwrap().unwrap_err().to_string(), expected);
    let mut answer = [[0; 8]; 3];
    new.read_exact(answer.as_flattened_mut()).unwrap();
    assert_eq!(answer, [WORD, OTHER_PROTOCOL.to_le_bytes(), PROTOCOL.to_le_bytes()]);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let second = start(1, 2, port);
    // What it said is read, because closing with something unread may take the answer back.
    let mut first = listener.accept().unwrap().0;
    first.read_exact(&mut [0; CALL]).unwrap();
    first.write_all(answer.as_flattened()).unwrap();
    assert_eq!(second.join().unwrap().unwrap_err().to_string(), expected);
}

#[test]
fn a_name_of_this_machine_alone_is_listened_at_here_alone() {
    let here = |host: &str| {
        let addresses = listen(host, 0).unwrap().into_iter().map(|socket| socket.local_addr().unwrap());
        let addresses: Vec<SocketAddr> = addresses.collect();
        assert!(addresses.iter().all(|address| address.port() == addresses[0].port()), "{addresses:?}");
        addresses.iter().all(|address| address.ip().is_loopback())
    };
    for host in ["127.0.0.1", "127.0.0.2", "localhost", "LocalHost", "localhost."] {
        assert!(here(host), "{host}");
    }
    // The name of a machine may mean 127.0.1.1 there, and another address everywhere else.
    for host in ["node0", "localhost.example.org", "192.0.2.1", "::"] {
        assert!(!here(host), "{host}");
    }
    if TcpListener::bind("[::1]:0").is_ok() {
        assert!(here("::1"));
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "node0"] {
        assert!(listen(host, port).is_err(), "{host}");
    }
}

#[test]
fn a_place_is_read_as_it_is_written() {
    for address in ["192.0.2.7", "2001:db8::1"] {
        let place = Listening { port: 4321, ticket: u64::MAX, address: address.parse().unwrap() };
        assert_eq!(Listening::parse(place.to_string().as_bytes()), Some(place));
    }
    for other in ["", "3 4321 1 192.0.2.7", "2 4321 1", "2 4321 1 192.0.2.7 ", "2 65536 1 192.0.2.7"] {
        assert_eq!(Listening::parse(other.as_bytes()), None, "{other}");
    }
}
