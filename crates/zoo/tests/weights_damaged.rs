//! Damaged weight files: every truncation is an error, no changed byte causes a panic or takes much memory.
//!
//! One test in a process of its own, because it watches the memory of the process.

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use zoo::weights;

/// The most memory this process has ever asked for, in bytes. It counts what was reserved and never touched.
#[cfg(target_os = "linux")]
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[cfg(not(target_os = "linux"))]
fn peak_memory() -> u64 {
    0
}

fn safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensor = |shape: &[usize]| Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([("a".to_string(), tensor(&[2, 3])), ("b".to_string(), tensor(&[4]))]);
    let metadata = BTreeMap::from([("model".to_string(), "lenet5".to_string())]);
    weights::write_safetensors(&path, &tensors, &metadata).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn no_damage_is_read_or_fatal() {
    let fixture = |name: &str| {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
    };
    let files = [
        ("safetensors", safetensors()),
        ("legacy.pth", fixture("legacy.pth")),
        ("legacy_protocol4.pth", fixture("legacy_protocol4.pth")),
        ("zip.pth", fixture("zip.pth")),
    ];
    let before = peak_memory();
    for (name, content) in files {
        for len in 0..content.len() {
            let result = weights::read_from(Cursor::new(&content[..len]));
            let error = result.err().unwrap_or_else(|| panic!("{name} cut to {len} bytes was read"));
            assert!(!error.to_string().contains('\n'), "{name} cut to {len} bytes: {error}");
        }
        let mut damaged = content.clone();
        for position in 0..content.len() {
            // The lowest and the highest bit, all bits, and the values that numbers grow largest with.
            for value in [content[position] ^ 1, content[position] ^ 0x80, !content[position], 0x7f, 0xff] {
                damaged[position] = value;
                if let Err(error) = weights::read_from(Cursor::new(&damaged)) {
                    let line = error.to_string();
                    assert!(!line.contains('\n'), "{name} with {value:#x} at {position}: {line}");
                }
            }
            damaged[position] = content[position];
        }
    }
    let taken = peak_memory() - before;
    assert!(taken < 256 << 20, "reading small damaged files took {taken} bytes");
}
