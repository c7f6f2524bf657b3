//! Checkpoints are read back whatever the length of their header, with which they start.

use crate::command::{Shell, bytes};
use std::fs;
use std::path::Path;

/// Lengths modulo 65,536 whose first two bytes are those of a pickle, and some that other files start with: a mark of
/// byte order, a zip archive, gzip.
const LENGTHS: [usize; 8] = [384, 640, 896, 1152, 1408, 0xbbef, 0x4b50, 0x8b1f];

/// Fills the header of a safetensors file up with blanks, which the format allows: until its length is `len`, modulo
/// 65,536.
fn pad_header(path: &Path, len: usize) {
    let content = bytes(path);
    let (length, rest) = content.split_first_chunk().unwrap();
    let (header, tensors) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let blanks = (len as isize - header.len() as isize).rem_euclid(65_536) as usize;
    let length = ((header.len() + blanks) as u64).to_le_bytes();
    fs::write(path, [&length, header, &vec![b' '; blanks], tensors].concat()).unwrap();
}

#[test]
fn checkpoints_with_headers_of_any_length() {
    let shell = Shell::new();
    let train =
        "train --model softmax --dataset shapes --limit-train 64 --limit-test 32 --batch-size 16 --seed 1";
    shell.zoo(&format!("{train} --epochs 1 --out run")).ok();
    shell.zoo(&format!("{train} --epochs 1 --weights run --out from-weights")).ok();
    let picture = shell.path("picture.png");
    image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8, y as u8, 7])).save(&picture).unwrap();
    let answers = || {
        let eval = shell.zoo("eval run --limit-test 32 --json").json();
        let named =
            shell.zoo("eval --model softmax --weights run/last.safetensors --dataset shapes --json").json();
        let predicted = shell.zoo("predict run picture.png --logits --json").json();
        (eval["loss"].clone(), named["loss"].clone(), predicted)
    };
    let expected = answers();
    shell.zoo("convert run/best.safetensors plain.safetensors").ok();
    let last = bytes(&shell.path("run/last.safetensors"));
    for len in LENGTHS {
        for file in ["best.safetensors", "last.safetensors", "state.safetensors"] {
            pad_header(&shell.path("run").join(file), len);
        }
        assert_eq!(answers(), expected, "{len}");
        shell.zoo("convert run/best.safetensors padded.safetensors").ok();
        assert_eq!(
            bytes(&shell.path("padded.safetensors")),
            bytes(&shell.path("plain.safetensors")),
            "{len}"
        );
        shell.zoo(&format!("{train} --epochs 1 --weights run --out start-{len}")).ok();
        let started = bytes(&shell.path(&format!("start-{len}/last.safetensors")));
        assert_eq!(started, bytes(&shell.path("from-weights/last.safetensors")), "{len}");
        // A state that is read is found to be complete; one that is not is an error.
        shell.zoo("train --resume run").ok();
    }
    assert!(bytes(&shell.path("run/last.safetensors")).len() > last.len());
}

/// A run that is stopped, whose state then has a header like the start of a pickle, goes on to the same bytes.
#[cfg(unix)]
#[test]
fn a_state_with_a_header_like_a_pickle_is_resumed() {
    let shell = Shell::new();
    let train = "train --model softmax --dataset shapes --limit-train 640 --limit-test 32 --batch-size 4 --seed 1 \
                 --save-every 1 --epochs 3";
    shell.zoo(&format!("{train} --out whole")).ok();
    let mut child = shell.start(&format!("{train} --out cut"));
    while !shell.path("cut/state.safetensors").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    pad_header(&shell.path("cut/state.safetensors"), 0x0280);
    shell.zoo("train --resume cut").ok();
    let last = |run: &str| bytes(&shell.path(run).join("last.safetensors"));
    assert_eq!(last("cut"), last("whole"));
}
