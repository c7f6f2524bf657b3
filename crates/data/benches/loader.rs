//! Batches per second of the loader: JPEG files of 500×375 pixels to 224, and CIFAR-sized images in memory.
//!
//! ```text
//! cargo bench -p zoo-data --bench loader
//! ZOO_BENCH_FOLDER=DIR cargo bench -p zoo-data --bench loader     # DIR holds train/ and val/ with a folder per class
//! ```

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::path::{Path, PathBuf};
use zoo_data::{Augment, Loader, LoaderConfig, Split, open};

/// A folder with as many photographs as make some batches, of a pattern that compresses like one.
fn photographs(dir: &Path) {
    for split in ["train", "val"] {
        for class in ["a", "b"] {
            let folder = dir.join(split).join(class);
            std::fs::create_dir_all(&folder).expect("a folder");
            for i in 0..32u32 {
                let pixel = |x: u32, y: u32| {
                    let wave = |f: f32| {
                        (128.0 + 80.0 * ((x as f32 * f + i as f32).sin() * (y as f32 * f).cos())) as u8
                    };
                    let grain =
                        (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503 + i)).count_ones() as u8;
                    image::Rgb([wave(0.02) + grain, wave(0.03) + grain, wave(0.05) + grain])
                };
                image::RgbImage::from_fn(500, 375, pixel)
                    .save(folder.join(format!("{i}.jpg")))
                    .expect("a file");
            }
        }
    }
}

fn measure(criterion: &mut Criterion, name: &str, dataset: &str, dir: Option<&Path>, batch_size: usize) {
    let dataset = open(dataset, Split::Train, dir, 0).expect("a data set");
    let config =
        LoaderConfig { augment: Augment::Standard, shuffle: true, ..LoaderConfig::new(batch_size, 0) };
    let loader = Loader::new(dataset, config).expect("a loader");
    let images = loader.dataset().len();
    let mut group = criterion.benchmark_group("loader");
    group.throughput(Throughput::Elements(images as u64)).sample_size(10);
    group.bench_function(name, |bencher| {
        let mut number = 0;
        bencher.iter(|| {
            number += 1;
            loader.epoch(number, 0).map(|batch| batch.expect("a batch").n).sum::<usize>()
        });
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    let generated = tempfile::tempdir().expect("a folder");
    let folder = std::env::var_os("ZOO_BENCH_FOLDER").map(PathBuf::from);
    if folder.is_none() {
        photographs(generated.path());
    }
    let folder = folder.as_deref().unwrap_or(generated.path());
    measure(criterion, "jpeg files, random crops of 224", "folder", Some(folder), 32);
    measure(criterion, "28x28 in memory, padded and cropped", "shapes", None, 128);
}

criterion_group!(loader, all);
criterion_main!(loader);
