//! Reading the files of torch.save: all formats, dtypes and layouts, and what is refused.
//!
//! The files in `fixtures/` were made by `scripts/make_pth_fixtures.py`, which states their values.

use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zoo::weights::{self, Reason, StateDict};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Reads `content` from a file of the given name.
fn read_bytes(name: &str, content: &[u8]) -> weights::Result<StateDict> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    weights::read(&path)
}

fn reason(content: &[u8]) -> (Reason, String) {
    let error = read_bytes("file.pth", content).expect_err("this file must be refused");
    let line = error.to_string();
    assert!(line.contains("file.pth: "), "the path is missing in: {line}");
    assert!(!line.contains('\n'), "more than one line: {line}");
    (error.reason, line)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    assert_eq!(tensor.dtype(), DType::I64);
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Element k of every float tensor of the fixtures.
fn quarters(numel: usize) -> Vec<f32> {
    (0..numel).map(|k| (k as f32 - 3.0) / 4.0).collect()
}

fn assert_floats(found: &StateDict, name: &str, shape: &[usize], expected: &[f32]) {
    let tensor = &found.tensors[name];
    assert_eq!(tensor.dims(), shape, "{name}");
    assert_eq!(floats(tensor), expected, "{name}");
}

fn assert_all_layouts(found: &StateDict) {
    assert_floats(found, "contiguous", &[2, 3, 2, 2], &quarters(24));
    assert_floats(found, "transposed", &[2, 1, 3, 2], &quarters(12));
    assert_floats(found, "shared_offset", &[2, 3], &quarters(6));
    assert_floats(found, "shared_strided", &[4], &quarters(4));
}

fn assert_all(found: &StateDict) {
    assert_all_layouts(found);
    assert_floats(found, "parameter", &[3], &quarters(3));
    assert_floats(found, "expanded", &[4, 2], &[-0.75; 8]);
    assert_floats(found, "scalar", &[], &quarters(1));
    assert_floats(found, "empty", &[0, 3], &[]);
    for name in ["f64", "f16", "bf16"] {
        assert_floats(found, name, &[5], &quarters(5));
    }
    for name in ["i64", "i32", "i8"] {
        assert_eq!(integers(&found.tensors[name]), [-3, -2, -1, 0, 1], "{name}");
    }
    assert_eq!(integers(&found.tensors["u8"]), [0, 1, 2, 3, 4]);
    assert_eq!(integers(&found.tensors["bool"]), [1, 0, 1, 0, 1]);
    // All of the above and no more: num_batches_tracked is dropped.
    assert_eq!(found.tensors.len(), 16);
    assert!(found.metadata.is_empty());
}

#[test]
fn zip_state_dict() {
    assert_all(&weights::read(&fixture("zip.pth")).unwrap());
}

#[test]
fn legacy_checkpoint_is_unwrapped() {
    assert_all(&weights::read(&fixture("legacy.pth")).unwrap());
}

#[test]
fn pickle_protocol_4() {
    let found = weights::read(&fixture("legacy_protocol4.pth")).unwrap();
    assert_all_layouts(&found);
}

#[test]
fn the_format_is_found_by_content() {
    let legacy = std::fs::read(fixture("legacy.pth")).unwrap();
    assert_all(&read_bytes("weights.safetensors", &legacy).unwrap());
    let zip = std::fs::read(fixture("zip.pth")).unwrap();
    assert_all(&read_bytes("weights", &zip).unwrap());
}

// A writer of legacy files, as small as the tests below need.

/// The three pickles before the object: magic number, protocol version, system.
const LEGACY_START: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.";

fn text(value: &str) -> Vec<u8> {
    [b"X".as_slice(), &(value.len() as u32).to_le_bytes(), value.as_bytes()].concat()
}

/// Python 2's str.
fn python2_text(value: &str) -> Vec<u8> {
    [b"U".as_slice(), &[value.len() as u8], value.as_bytes()].concat()
}

fn tuple(items: &[&[u8]]) -> Vec<u8> {
    [b"(", items.concat().as_slice(), b"t"].concat()
}

fn int(value: i32) -> Vec<u8> {
    [b"J".as_slice(), &value.to_le_bytes()].concat()
}

fn ints(values: &[i32]) -> Vec<u8> {
    let items: Vec<Vec<u8>> = values.iter().map(|&value| int(value)).collect();
    tuple(&items.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// `_rebuild_tensor_v2` of a view of a storage under key "0".
fn tensor(class: &str, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let class = format!("ctorch\n{class}\n");
    let storage = tuple(&[&text("storage"), class.as_bytes(), &text("0"), &text("cpu"), &int(4), b"N"]);
    let args = tuple(&[
        &[storage.as_slice(), b"Q"].concat(),
        &int(offset),
        &ints(shape),
        &ints(strides),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    ]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n", args.as_slice(), b"R"].concat()
}

fn dict(items: &[(&str, &[u8])]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.to_vec()].concat()).collect();
    [b"}(", items.as_slice(), b"u"].concat()
}

/// A legacy file of the pickled `object`, whose tensors share the float storage 1, 2, 3, 4 under key "0".
fn legacy(object: &[u8]) -> Vec<u8> {
    let keys = [b"\x80\x02](".as_slice(), &text("0"), b"e."].concat();
    let values: Vec<u8> = [1f32, 2., 3., 4.].iter().flat_map(|value| value.to_le_bytes()).collect();
    [LEGACY_START, b"\x80\x02", object, b".", &keys, &4i64.to_le_bytes(), &values].concat()
}

#[test]
fn views_of_one_storage() {
    let content = legacy(&dict(&[
        ("all", &tensor("FloatStorage", 0, &[4], &[1])),
        ("columns", &tensor("FloatStorage", 0, &[2, 2], &[1, 2])),
        ("last", &tensor("FloatStorage", 3, &[1, 1], &[77, 5])),
    ]));
    let found = read_bytes("file", &content).unwrap();
    assert_floats(&found, "all", &[4], &[1., 2., 3., 4.]);
    assert_floats(&found, "columns", &[2, 2], &[1., 3., 2., 4.]);
    assert_floats(&found, "last", &[1, 1], &[4.]);
}

#[test]
fn python_2_strings_and_items() {
    // Python 2 wrote str as SHORT_BINSTRING and gave OrderedDict a list of [key, value] lists.
    let pair = [b"](".as_slice(), &python2_text("w"), &tensor("FloatStorage", 0, &[4], &[1]), b"e"].concat();
    let object = [b"ccollections\nOrderedDict\n](".as_slice(), &pair, b"e\x85R"].concat();
    let found = read_bytes("file", &legacy(&object)).unwrap();
    assert_floats(&found, "w", &[4], &[1., 2., 3., 4.]);
}

#[test]
fn a_dict_filled_after_it_was_memoized() {
    // The memo refers to the object, not to its content at that time.
    let entries = [text("w"), tensor("FloatStorage", 0, &[4], &[1])].concat();
    let object = [b"}q\x01(".as_slice(), &entries, b"u0}", &text("state_dict"), b"h\x01s"].concat();
    let found = read_bytes("file", &legacy(&object)).unwrap();
    assert_floats(&found, "w", &[4], &[1., 2., 3., 4.]);
}

#[test]
fn views_into_storages_of_old_files() {
    let view = tuple(&[&text("1"), &int(2), &int(2)]);
    let storage = tuple(&[
        &text("storage"),
        b"ctorch.cuda\nFloatStorage\n",
        &text("0"),
        &text("cuda:0"),
        &int(4),
        &view,
    ]);
    let args = tuple(&[&[storage.as_slice(), b"Q"].concat(), &int(0), &ints(&[2]), &ints(&[1])]);
    let tensor = [b"ctorch._utils\n_rebuild_tensor\n".as_slice(), &args, b"R"].concat();
    let found = read_bytes("file", &legacy(&dict(&[("w", &tensor)]))).unwrap();
    assert_floats(&found, "w", &[2], &[3., 4.]);
}

#[test]
fn wrappers_and_prefixes() {
    let weights = tensor("FloatStorage", 0, &[4], &[1]);
    // The last one is none of the usual keys, but the only dict with tensors.
    for key in ["state_dict", "model_state_dict", "model", "net", "model_ema", "ema", "generator_1"] {
        let object = dict(&[("epoch", &int(3)), (key, &dict(&[("_orig_mod.module.w", &weights)]))]);
        let found = read_bytes("file", &legacy(&object)).unwrap();
        assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["w"], "{key}");
    }
    // A moving average of torch.optim.swa_utils counts its updates beside the weights of its `module`; weights
    // go before their average.
    let average = dict(&[("n_averaged", &weights), ("module.model.v", &weights)]);
    let object = dict(&[("model_ema", &average)]);
    let found = read_bytes("file", &legacy(&object)).unwrap();
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["v"]);
    let object = dict(&[("state_dict_ema", &average), ("state_dict", &dict(&[("w", &weights)]))]);
    let found = read_bytes("file", &legacy(&object)).unwrap();
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["w"]);
    // Of two unusual dicts neither is chosen.
    let object = dict(&[("a", &dict(&[("w", &weights)])), ("b", &dict(&[("w", &weights)]))]);
    let (reason, line) = reason(&legacy(&object));
    assert!(matches!(reason, Reason::NotAStateDict { .. }), "{line}");
    // A prefix that only some names have is part of them.
    let object = dict(&[("module.w", &weights), ("v", &weights)]);
    let found = read_bytes("file", &legacy(&object)).unwrap();
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["module.w", "v"]);
}

#[test]
fn calls_are_never_made() {
    let folder = tempfile::tempdir().unwrap();
    let proof = folder.path().join("executed");
    let command = text(&format!("touch {}", proof.display()));
    let call = [b"cposix\nsystem\n".as_slice(), &command, b"\x85R"].concat();

    let (reason, line) = reason(&legacy(&call));
    assert!(matches!(reason, Reason::NotAStateDict { .. }), "{line}");
    assert!(line.contains("posix.system"), "{line}");

    // Beside tensors the call is a value like any other that is no tensor.
    let weights = tensor("FloatStorage", 0, &[4], &[1]);
    let found = read_bytes("file", &legacy(&dict(&[("evil", &call), ("w", &weights)]))).unwrap();
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["w"]);
    assert!(!proof.exists());
}

#[test]
fn tensors_outside_of_their_storage() {
    let i32_max = i32::MAX;
    let outside: [(i32, &[i32], &[i32]); 6] = [
        (1, &[4], &[1]),
        (0, &[2, 2], &[2, 2]),
        (4, &[1], &[1]),
        (-1, &[4], &[1]),
        (0, &[i32_max, i32_max, i32_max], &[1, 1, 1]),
        (0, &[4], &[1, 1]),
    ];
    for (offset, shape, strides) in outside {
        let (reason, line) =
            reason(&legacy(&dict(&[("conv1.weight", &tensor("FloatStorage", offset, shape, strides))])));
        assert!(matches!(reason, Reason::Tensor { .. }), "{line}");
        assert!(line.contains("`conv1.weight`"), "{line}");
    }
}

#[test]
fn expanding_one_element_to_gigabytes() {
    let (reason, line) =
        reason(&legacy(&dict(&[("w", &tensor("FloatStorage", 0, &[1 << 20, 1 << 20], &[0, 0]))])));
    assert!(matches!(reason, Reason::Tensor { .. }), "{line}");
    assert!(line.contains("out of proportion"), "{line}");
}

#[test]
fn unsupported_element_types() {
    let (reason, line) = reason(&legacy(&dict(&[("w", &tensor("ComplexFloatStorage", 0, &[2], &[1]))])));
    assert!(matches!(reason, Reason::Dtype { .. }), "{line}");
    assert!(line.contains("`w`") && line.contains("ComplexFloatStorage"), "{line}");

    let sparse = b"ctorch._utils\n_rebuild_sparse_tensor\n)R";
    let (reason, line) = self::reason(&legacy(&dict(&[("w", sparse)])));
    assert!(matches!(reason, Reason::Unsupported { .. }), "{line}");
    assert!(line.contains("_rebuild_sparse_tensor"), "{line}");
}

#[test]
fn names_that_would_break_the_line() {
    let name = "conv\n1\u{1b}[31m".repeat(100);
    for tensor in [
        tensor("FloatStorage", 9, &[4], &[1]),
        tensor("Complex\tStorage", 0, &[4], &[1]),
        b"ctorch._utils\n_rebuild_qtensor\n)R".to_vec(),
        b"ctorch._utils\n_rebuild_tensor_v2\n)R".to_vec(),
    ] {
        let (_, line) = reason(&legacy(&dict(&[(&name, &tensor)])));
        assert!(line.contains("`conv?1?[31m") && line.len() < 600 && !line.contains('\u{1b}'), "{line}");
    }
    let found =
        read_bytes("file", &legacy(&dict(&[(&name, &tensor("FloatStorage", 0, &[4], &[1]))]))).unwrap();
    let report = weights::check(&[], &found).to_string();
    assert!(report.starts_with("1 unexpected (conv?1?[31m") && !report.contains('\n'), "{report}");
}

/// A safetensors file of this header and 16 bytes of data.
fn safetensors(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 16]].concat()
}

#[test]
fn safetensors_headers_are_not_trusted() {
    let valid = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    assert_floats(&read_bytes("file", &safetensors(valid)).unwrap(), "w", &[4], &[0.; 4]);
    let cases = [
        // More than the address space holds: taking the memory first would end the process.
        (
            r#"{"w":{"dtype":"U8","shape":[1152921504606846976],"data_offsets":[0,1152921504606846976]}}"#,
            "ends early",
        ),
        (r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#, "4 bytes follow the last tensor"),
        (r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,12]}}"#, "header is invalid"),
        (r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, "header is invalid"),
        (r#"{"w":{"dtype":"F\n32","shape":[4],"data_offsets":[0,16]}}"#, "header is invalid"),
        (r#"{"w\n":{"dtype":"C64","shape":[2],"data_offsets":[0,16]}}"#, "`w?` has elements of type C64"),
        (r#"{"w":{"dtype":"F32","shape":[4]"#, "header is invalid"),
    ];
    for (header, expected) in cases {
        let (_, line) = reason(&safetensors(header));
        assert!(line.contains(expected), "expected {expected:?} in: {line}");
    }
}

#[test]
fn every_protocol_of_pickles_is_recognised() {
    let object = dict(&[("w", &tensor("FloatStorage", 0, &[4], &[1]))]);
    let mut content = legacy(&object);
    for protocol in 1..=5 {
        content[1] = protocol;
        assert_floats(&read_bytes("file", &content).unwrap(), "w", &[4], &[1., 2., 3., 4.]);
    }
}

#[test]
fn hostile_pickles() {
    let unbalanced: [&[u8]; 10] = [b"t", b"u", b"R", b"(R", b"h\x07", b"Q", b"N(b", b"](Nu", b"}Nu", b"2"];
    for object in unbalanced {
        let (reason, line) = reason(&legacy(object));
        assert!(matches!(reason, Reason::Malformed { .. }), "{object:?}: {line}");
    }
    // A million lists within one another, and a dict within itself.
    let nested = [vec![b']'; 1_000_000], vec![b'a'; 999_999]].concat();
    assert!(matches!(reason(&legacy(&nested)).0, Reason::NotAStateDict { .. }));
    let own_state = [b"}q\x01".as_slice(), &text("state_dict"), b"h\x01s"].concat();
    assert!(matches!(reason(&legacy(&own_state)).0, Reason::NotAStateDict { .. }));
    // A string of 4 GB in a short file.
    assert!(matches!(reason(&legacy(b"X\xff\xff\xff\xffab")).0, Reason::Truncated { .. }));
    // An opcode that no version of torch writes.
    let (reason, line) = reason(&legacy(b"I12\n"));
    assert!(matches!(reason, Reason::Unsupported { .. }), "{line}");
    assert!(line.contains("0x49"), "{line}");
}

#[test]
fn memory_of_a_pickle_is_limited() {
    // One list of 100 000 pairs, copied by each of 100 000 OrderedDicts.
    let pairs = [b"]q\x01(".as_slice(), &b"NN\x86".repeat(100_000), b"e"].concat();
    let copies = b"ccollections\nOrderedDict\nh\x01\x85R".repeat(100_000);
    let (reason, line) = reason(&legacy(&[pairs, copies].concat()));
    assert!(matches!(reason, Reason::Unsupported { .. }), "{line}");
}

#[test]
fn not_a_weight_file() {
    let tar = [vec![b'x'; 257], b"ustar\0".to_vec(), vec![0; 300]].concat();
    let cases: [(&[u8], &str); 9] = [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n", "Git LFS pointer"),
        (b"Not Found", "text that starts with \"Not Found\""),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "unknown binary content"),
        (b"\x80\x04K\x01.", "a pickle that torch.save did not write"),
        (b"PK\x03\x04 and no more", "the zip directory at its end is missing"),
        (&tar, "tar format"),
        (&"é".repeat(300).into_bytes(), "text that starts with"),
    ];
    for (content, expected) in cases {
        let (_, line) = reason(content);
        assert!(line.contains(expected), "expected {expected:?} in: {line}");
    }
}

#[test]
fn no_state_dict_inside() {
    let module = tuple(&[&text("module"), b"c__main__\nNet\n", &text("net.py"), &text("class Net: ...")]);
    let module = [module.as_slice(), b"Q)\x81}b"].concat();
    let cases: [(&[u8], &str); 6] = [
        (&module, "a whole pickled module"),
        (b"]", "a list"),
        (b"}", "an empty dict"),
        (b"ctorchvision.models.resnet\nResNet\n)\x81}b", "torchvision.models.resnet.ResNet"),
        (&tensor("FloatStorage", 0, &[4], &[1]), "a single tensor"),
        (&dict(&[("epoch", b"K\x03"), ("lr", b"N")]), "epoch, lr"),
    ];
    for (object, expected) in cases {
        let (reason, line) = reason(&legacy(object));
        assert!(matches!(reason, Reason::NotAStateDict { .. }), "{line}");
        assert!(line.contains(expected), "expected {expected:?} in: {line}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = weights::read(Path::new("no/such/file.pth")).unwrap_err();
    assert!(matches!(error.reason, Reason::Io(_)));
    assert!(error.to_string().starts_with("no/such/file.pth: "), "{error}");
}

/// A stored zip archive of `entries`.
fn zip_archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn zip_archives() {
    let object = dict(&[("w", &tensor("FloatStorage", 0, &[4], &[1]))]);
    let pickle = [b"\x80\x02".as_slice(), &object, b"."].concat();
    let big: Vec<u8> = [1f32, 2., 3., 4.].iter().flat_map(|value| value.to_be_bytes()).collect();

    let archive = zip_archive(&[
        ("any name/data.pkl", &pickle),
        ("any name/byteorder", b"big"),
        ("any name/data/0", &big),
    ]);
    let found = read_bytes("file", &archive).unwrap();
    assert_floats(&found, "w", &[4], &[1., 2., 3., 4.]);

    let (reason, line) = reason(&zip_archive(&[("m/data.pkl", &pickle)]));
    assert!(matches!(&reason, Reason::MissingEntry { entry } if entry == "m/data/0"), "{line}");

    let (reason, line) = self::reason(&zip_archive(&[("m/data.pkl", &pickle), ("m/data/0", &big[..12])]));
    assert!(matches!(reason, Reason::Tensor { .. }), "{line}");

    let (reason, line) = self::reason(&zip_archive(&[("word/document.xml", b"<xml/>")]));
    assert!(matches!(reason, Reason::NotWeights { .. }), "{line}");

    let (reason, line) = self::reason(&zip_archive(&[("m/data.pkl", &pickle), ("m/constants.pkl", b"")]));
    assert!(matches!(reason, Reason::Unsupported { .. }), "{line}");
    assert!(line.contains("TorchScript"), "{line}");
}

#[test]
fn a_changed_byte_in_a_zip_is_noticed() {
    let mut content = std::fs::read(fixture("zip.pth")).unwrap();
    let values: Vec<u8> = quarters(24).iter().flat_map(|value| value.to_le_bytes()).collect();
    let start = content.windows(values.len()).position(|window| window == values).unwrap();
    content[start + 50] ^= 1;
    let (reason, line) = reason(&content);
    assert!(matches!(reason, Reason::Malformed { .. }), "{line}");
}

#[test]
fn errors_become_candle_errors() {
    fn load() -> candle_core::Result<BTreeMap<String, Tensor>> {
        Ok(weights::read(Path::new("no/such/file.pth"))?.tensors)
    }
    assert!(load().unwrap_err().to_string().contains("no/such/file.pth"));
}
