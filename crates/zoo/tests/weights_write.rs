//! Writing safetensors: content, determinism, and that a failure leaves everything as it was.

use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::Path;
use zoo::weights::{self, Mismatch, Reason, StateDict};

fn quarters(shape: &[usize]) -> Tensor {
    let numel: usize = shape.iter().product();
    let values: Vec<f32> = (0..numel).map(|k| (k as f32 - 3.0) / 4.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn metadata() -> BTreeMap<String, String> {
    (0..20).map(|k| (format!("key {k}"), format!("\"value\" {k}\n"))).collect()
}

/// One tensor of each dtype, out of order, with one that is not contiguous.
fn tensors() -> Vec<(String, Tensor)> {
    let dtypes =
        [DType::F32, DType::U8, DType::I64, DType::F16, DType::U32, DType::BF16, DType::F64, DType::I32];
    let mut tensors: Vec<(String, Tensor)> = dtypes
        .into_iter()
        .map(|dtype| {
            let values = Tensor::from_vec(vec![0f32, 1., 2., 3., 4., 5.], (2, 3), &Device::Cpu).unwrap();
            (format!("{}.weight", dtype.as_str()), values.to_dtype(dtype).unwrap())
        })
        .collect();
    tensors.push(("transposed".to_string(), quarters(&[3, 4]).t().unwrap()));
    tensors.push(("narrowed".to_string(), quarters(&[3, 4]).narrow(1, 1, 2).unwrap()));
    tensors.push(("row".to_string(), quarters(&[3, 4]).narrow(0, 1, 1).unwrap()));
    tensors.push(("empty".to_string(), quarters(&[0, 4])));
    tensors.push(("scalar".to_string(), quarters(&[1]).squeeze(0).unwrap()));
    // Longer than the buffer it is written through.
    tensors.push(("long".to_string(), quarters(&[5000, 3])));
    tensors
}

fn pairs(tensors: &[(String, Tensor)]) -> impl Iterator<Item = (&String, &Tensor)> {
    tensors.iter().map(|(name, tensor)| (name, tensor))
}

fn names_in(folder: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = tensors();
    weights::write_safetensors(&path, pairs(&tensors), &metadata()).unwrap();

    let found = weights::read(&path).unwrap();
    assert_eq!(found.metadata, metadata());
    assert_eq!(found.tensors.len(), tensors.len());
    for (name, tensor) in &tensors {
        let is_float = tensor.dtype().is_float();
        let dtype = if is_float { DType::F32 } else { DType::I64 };
        assert_eq!(found.tensors[name].dtype(), dtype, "{name}");
        assert_eq!(found.tensors[name].dims(), tensor.dims(), "{name}");
        let flat = |tensor: &Tensor| {
            tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        assert_eq!(flat(&found.tensors[name]), flat(tensor), "{name}");
    }

    // Candle reads the same, in the dtypes that were written.
    let read_by_candle = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    for (name, tensor) in &tensors {
        assert_eq!(read_by_candle[name].dtype(), tensor.dtype(), "{name}");
        assert_eq!(read_by_candle[name].dims(), tensor.dims(), "{name}");
    }
    assert_eq!(names_in(folder.path()), ["model.safetensors"]);
}

#[test]
fn equal_content_gives_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let mut tensors = tensors();
    weights::write_safetensors(&a, pairs(&tensors), &metadata()).unwrap();
    tensors.reverse();
    weights::write_safetensors(&b, pairs(&tensors), &metadata()).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
}

#[test]
fn the_bytes_are_those_of_the_reference_implementation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = tensors();
    // With one entry, because the reference has no fixed order of metadata.
    let entry = ("model".to_string(), "resnet18".to_string());
    weights::write_safetensors(&path, pairs(&tensors), &BTreeMap::from([entry.clone()])).unwrap();
    let contiguous: Vec<(String, Tensor)> =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.contiguous().unwrap())).collect();
    let expected = safetensors::serialize(pairs(&contiguous), Some(HashMap::from([entry]))).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), expected);
}

#[test]
fn a_failed_write_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("last.safetensors");
    std::fs::write(&path, "old").unwrap();

    // As on a full disk: part of the content was written already.
    let result: io::Result<()> = weights::replace_file(&path, |out| {
        out.write_all(&[0; 3 << 20])?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    });
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");

    let twice = [("w", &quarters(&[2])), ("w", &quarters(&[3]))];
    let error = weights::write_safetensors(&path, twice, &BTreeMap::new()).unwrap_err();
    assert!(matches!(error.reason, Reason::Tensor { .. }), "{error}");
    let panicked = std::panic::catch_unwind(|| {
        weights::replace_file(&path, |_| -> io::Result<()> { panic!("while writing") })
    });
    assert!(panicked.is_err());

    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names_in(folder.path()), ["last.safetensors"]);
}

#[test]
fn the_error_names_the_path_and_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let no_folder = folder.path().join("missing").join("model.safetensors");
    let is_folder = folder.path().join("folder");
    std::fs::create_dir(&is_folder).unwrap();
    for path in [no_folder, is_folder] {
        let error =
            weights::write_safetensors(&path, [("w", &quarters(&[2]))], &BTreeMap::new()).unwrap_err();
        assert!(matches!(error.reason, Reason::Io(_)), "{error}");
        assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
    }
    assert_eq!(names_in(folder.path()), ["folder"]);
}

#[test]
fn leftovers_of_a_killed_writer_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("last.safetensors");
    std::fs::write(folder.path().join(".last.safetensors.tmp-4194305-0"), "half a file").unwrap();
    std::fs::write(folder.path().join(".best.safetensors.tmp-4194305-0"), "of another file").unwrap();
    let result: io::Result<()> = weights::replace_file(&path, |out| {
        // A second writer of the same path meets this one's temporary file and must leave it alone.
        weights::replace_file(&path, |out| out.write_all(b"inner"))?;
        out.write_all(b"outer")
    });
    result.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"outer");
    assert_eq!(names_in(folder.path()), [".best.safetensors.tmp-4194305-0", "last.safetensors"]);
}

fn state_dict(tensors: &[(&str, &[usize])]) -> StateDict {
    let mut found = StateDict::default();
    for (name, shape) in tensors {
        found.tensors.insert((*name).to_string(), quarters(shape));
    }
    found
}

fn shapes(tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    tensors.iter().map(|(name, shape)| ((*name).to_string(), shape.to_vec())).collect()
}

#[test]
fn check_tells_every_difference() {
    let expected = shapes(&[
        ("conv1.weight", &[16, 3, 3, 3]),
        ("bn1.weight", &[16]),
        ("bn1.num_batches_tracked", &[]),
        ("fc.weight", &[10, 64]),
        ("fc.bias", &[10]),
    ]);
    let found = state_dict(&[
        ("conv1.weight", &[16, 3, 3, 3]),
        ("conv1.bias", &[16]),
        ("bn2.num_batches_tracked", &[1]),
        ("fc.weight", &[100, 64]),
    ]);
    let report = weights::check(&expected, &found);
    assert!(!report.is_match());
    assert_eq!(report.missing, ["bn1.weight", "fc.bias"]);
    assert_eq!(report.unexpected, ["conv1.bias"]);
    let mismatch = Mismatch { name: "fc.weight".to_string(), expected: vec![10, 64], found: vec![100, 64] };
    assert_eq!(report.mismatched, [mismatch]);
    assert_eq!(
        report.to_string(),
        "2 missing (bn1.weight, fc.bias); 1 unexpected (conv1.bias); \
         1 of another shape (fc.weight: expected [10, 64], found [100, 64])"
    );
}

#[test]
fn check_displays_few_names() {
    let names: Vec<String> = (0..200).map(|k| format!("layer{k}.weight")).collect();
    let expected: Vec<(String, Vec<usize>)> = names.into_iter().map(|name| (name, vec![1])).collect();
    let report = weights::check(&expected, &StateDict::default());
    assert_eq!(report.missing.len(), 200);
    assert_eq!(report.to_string(), "200 missing (layer0.weight, layer1.weight, layer2.weight, …)");
    let report = weights::check(&shapes(&[("w", &[2])]), &state_dict(&[("w", &[2])]));
    assert!(report.is_match());
    assert_eq!(report.to_string(), "all names and shapes match");
}

#[test]
fn renaming() {
    let mut found = state_dict(&[("features.norm.1.weight", &[1]), ("features.conv.1.weight", &[2])]);
    found.rename(&[(".norm.1.", ".norm1."), (".conv.1.", ".conv1.")]).unwrap();
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["features.conv1.weight", "features.norm1.weight"]);
    assert_eq!(found.tensors["features.conv1.weight"].dims(), [2]);

    let error = found.rename(&[("conv1", "norm1")]).unwrap_err().to_string();
    assert!(error.contains("features.norm1.weight"), "{error}");
    assert_eq!(found.tensors.len(), 2);
}
