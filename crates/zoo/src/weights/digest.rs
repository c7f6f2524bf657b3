//! SHA-256 of files, by which published weights are known, and of weights wherever they lie.

use super::StateDict;
use candle_core::{DType, Tensor};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::io::{self, Read};

/// SHA-256 of everything that `source` gives, in 64 lower-case hexadecimal digits.
pub(super) fn sha256(mut source: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hex(hasher))
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

impl StateDict {
    /// SHA-256 of names, shapes and values, in 64 lower-case hexadecimal digits: equal for equal weights, whatever file
    /// they come from.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn sha256(&self) -> candle_core::Result<String> {
        let mut hasher = Sha256::new();
        for (name, tensor) in &self.tensors {
            hasher.update(format!("{name}\n{:?} {:?}\n", tensor.dtype(), tensor.dims()));
            hasher.update(values(tensor)?);
        }
        Ok(hex(hasher))
    }
}

fn values(tensor: &Tensor) -> candle_core::Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::I64 => flat.to_vec1::<i64>()?.iter().flat_map(|value| value.to_le_bytes()).collect(),
        _ => flat.to_dtype(DType::F32)?.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_weights() -> candle_core::Result<()> {
        let of = |name: &str, values: &[f32], shape: &[usize]| {
            let tensor = Tensor::new(values, &candle_core::Device::Cpu)?.reshape(shape)?;
            StateDict { tensors: [(name.to_string(), tensor)].into(), ..StateDict::default() }.sha256()
        };
        let first = of("fc.bias", &[1.0, 2.0], &[2])?;
        assert_eq!(first, of("fc.bias", &[1.0, 2.0], &[2])?);
        for other in [
            of("fc.bias", &[1.0, 2.5], &[2])?,
            of("fc.bias", &[1.0, 2.0], &[2, 1])?,
            of("bias", &[1.0, 2.0], &[2])?,
        ] {
            assert_ne!(first, other);
        }
        Ok(())
    }

    #[test]
    fn of_known_text() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&b"abc"[..]).unwrap(), expected);
    }
}
