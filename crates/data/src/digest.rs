//! Fingerprints of data: MD5, because that is what the data sets' authors published, and an order-independent
//! digest of decoded records for copies in other containers.

use md5::{Digest, Md5};
use std::fmt::Write;
use std::io::Read;

/// MD5 in lower-case hexadecimal and number of bytes of everything `source` gives.
pub(crate) fn md5(source: &mut dyn Read) -> std::io::Result<(String, u64)> {
    let mut hasher = Md5::new();
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let n = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..n]);
        total += n as u64;
    }
    let hex = hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Ok((hex, total))
}

/// The sum of a hash of each record (label, then pixels [h, w, c]): equal for equal sets in any order.
///
/// FNV-1a with a final mix: it finds damage and mix-ups, it is no defence against an attacker.
#[cfg(any(feature = "hub", test))]
pub(crate) fn content(pixels: &[u8], labels: &[u32]) -> u64 {
    let size = pixels.len() / labels.len().max(1);
    labels.iter().zip(pixels.chunks_exact(size.max(1))).fold(0, |sum: u64, (label, record)| {
        let bytes = label.to_le_bytes().into_iter().chain(record.iter().copied());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        sum.wrapping_add((hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_of_known_text() {
        // RFC 1321, A.5.
        let (hex, n) = md5(&mut &b"message digest"[..]).unwrap();
        assert_eq!((hex.as_str(), n), ("f96b697d7cb7938d525a2f31aaf161d0", 14));
    }

    #[test]
    fn content_ignores_order_and_nothing_else() {
        let a = content(&[1, 2, 3, 4], &[0, 1]);
        assert_eq!(a, content(&[3, 4, 1, 2], &[1, 0]));
        assert_ne!(a, content(&[1, 2, 3, 4], &[1, 0]));
        assert_ne!(a, content(&[2, 1, 3, 4], &[0, 1]));
        assert_ne!(a, content(&[1, 2, 3, 5], &[0, 1]));
        assert_eq!(content(&[], &[]), 0);
    }
}
