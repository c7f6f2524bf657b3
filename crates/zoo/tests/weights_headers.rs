//! Safetensors files are known as such whatever the length of their header, with which they start.

use std::io::Cursor;
use zoo::weights::{self, Reason};

const VALUES: [f32; 4] = [1., 2., 3., 4.];

/// A safetensors file of this header and [`VALUES`].
fn with_header(header: &[u8]) -> Vec<u8> {
    let values = VALUES.map(f32::to_le_bytes);
    [(header.len() as u64).to_le_bytes().as_slice(), header, values.as_flattened()].concat()
}

/// The same with a header of exactly `len` bytes.
fn with_header_of(len: usize) -> Vec<u8> {
    let mut header = br#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#.to_vec();
    header.resize(len, b' ');
    with_header(&header)
}

#[track_caller]
fn assert_read(content: &[u8], what: &str) {
    let found = weights::read_from(Cursor::new(content)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(found.tensors["w"].to_vec1::<f32>().unwrap(), VALUES, "{what}");
}

/// The length of the header is at the start of the file, where other formats have what they are known by: every pair
/// of first bytes occurs here, those of a pickle and of a mark of byte order among them.
#[test]
fn safetensors_headers_of_every_length() {
    for len in 55..55 + 65_536 {
        assert_read(&with_header_of(len), &format!("a header of {len} bytes"));
    }
}

/// Lengths whose four bytes are what other formats start with, and that of the largest header.
#[test]
fn safetensors_headers_that_start_like_other_files() {
    let pickle = |protocol| u32::from_le_bytes([0x80, protocol, b'}', 0]);
    let lengths = [
        u32::from_le_bytes(*b"PK\x03\x04"),
        u32::from_le_bytes(*b"PK\x05\x00"),
        pickle(1),
        pickle(2),
        pickle(5),
        u32::from_le_bytes([0xef, 0xbb, 0xbf, 0]),
        u32::from_le_bytes(*b"\x1f\x8b\x08\0"),
        100_000_000,
    ];
    for len in lengths {
        assert_read(&with_header_of(len as usize), &format!("a header of {len:#x} bytes"));
    }
}

/// What tells tar archives lies inside the header.
#[test]
fn safetensors_headers_with_the_magic_of_tar() {
    let start = r#"{"__metadata__":{"k":""#;
    let name = "x".repeat(257 - 8 - start.len()) + "ustar";
    let header = format!(r#"{start}{name}"}},"w":{{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}}}"#);
    let content = with_header(header.as_bytes());
    assert_eq!(&content[257..262], b"ustar");
    assert_read(&content, "the magic of tar");
}

/// A file that was cut off is what it was, whatever its header's length looks like.
#[test]
fn cut_safetensors_files_are_not_taken_for_pickles() {
    for len in [0x0180, 0x0280, 0x0580, 0x0403_4b50] {
        let content = &with_header_of(len)[..300];
        let reason = weights::read_from(Cursor::new(content)).expect_err("this file must be refused");
        assert!(matches!(reason, Reason::Truncated { .. }), "{len:#x}: {reason}");
    }
}
