//! The loader: order, determinism, resuming, and how it ends.

use candle_core::{DType, Device};
use std::sync::mpsc;
use std::time::Duration;
use zoo_data::{
    Augment, Batch, Dataset, Image, Loader, LoaderConfig, Meta, Mix, Preprocess, Share, Split, View,
    contact_sheet, open, preprocess, views,
};
use zoo_ops::{FeatureMap, StoredImages};

fn shapes(n: usize) -> Dataset {
    open("shapes", Split::Test, None, 0).unwrap().subset(0..n)
}

fn epoch(dataset: &Dataset, config: &LoaderConfig, epoch: u64, first: usize) -> Vec<Batch> {
    let loader = Loader::new(dataset.clone(), config.clone()).unwrap();
    loader.epoch(epoch, first).map(Result::unwrap).collect()
}

fn config(augment: Augment) -> LoaderConfig {
    LoaderConfig { shuffle: true, augment, ..LoaderConfig::new(32, 7) }
}

#[test]
fn any_number_of_workers_gives_the_same_bytes() {
    let set = shapes(200);
    for augment in Augment::ALL {
        for image_size in [None, Some(80)] {
            let with = |workers| {
                let config = LoaderConfig { workers: Some(workers), image_size, ..config(augment) };
                epoch(&set, &config, 3, 0)
            };
            let inline = with(0);
            assert_eq!(inline.len(), 7);
            for workers in [1, 2, 4, 9] {
                assert!(with(workers) == inline, "{augment} {image_size:?} {workers}");
            }
        }
    }
}

/// What a batch picks of the set is what a batch of bytes shows.
#[test]
fn picks_are_the_images() {
    let set = shapes(200);
    let [c, h, w] = set.meta().shape;
    let stored = StoredImages::new(&set.all_pixels().unwrap(), (200, h, w, c), &Device::Cpu).unwrap();
    let statistics = (&[0.0; 3][..], &[1.0; 3][..]);
    for augment in [Augment::None, Augment::Standard, Augment::Alternating] {
        let mut loader = Loader::new(set.clone(), config(augment)).unwrap();
        let of_bytes: Vec<Batch> = loader.epoch(3, 0).map(Result::unwrap).collect();
        assert!(loader.leave_pixels());
        let of_picks = loader.epoch(3, 0).map(Result::unwrap);
        for (bytes, picks) in of_bytes.iter().zip(of_picks) {
            assert!(picks.pixels.is_empty() && picks.labels == bytes.labels && bytes.picks.is_empty());
            let others = if augment == Augment::None { views(true) } else { Vec::new() };
            for view in others.into_iter().chain([View::PLAIN]) {
                let plain = view == View::PLAIN;
                let seen = |batch: &Batch| if plain { batch.clone() } else { batch.seen(view) };
                let dims = (bytes.n, h, w, c);
                let expected =
                    FeatureMap::from_bytes(&seen(bytes).pixels, dims, statistics, DType::F32, &Device::Cpu);
                let found = stored.batch(&seen(&picks).picks, statistics, DType::F32);
                let values =
                    |map: FeatureMap| map.to_nchw().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(values(found.unwrap()) == values(expected.unwrap()), "{augment} {view:?}");
            }
        }
    }
    // What is resized, recoloured, mixed or changed otherwise has to be made as bytes.
    let mixed = Mix { mixup: 1.0, ..Mix::default() };
    for other in [
        LoaderConfig { image_size: Some(40), ..config(Augment::None) },
        LoaderConfig { in_chans: Some(1), ..config(Augment::None) },
        LoaderConfig { mix: mixed, ..config(Augment::Standard) },
        config(Augment::Trivial),
    ] {
        assert!(!Loader::new(set.clone(), other).unwrap().leave_pixels());
    }
}

#[test]
fn resuming_gives_the_tail_of_the_epoch() {
    let set = shapes(200);
    let config = LoaderConfig { workers: Some(2), ..config(Augment::Trivial) };
    let whole = epoch(&set, &config, 5, 0);
    for first in 0..=8 {
        assert!(epoch(&set, &config, 5, first) == whole[first.min(7)..], "{first}");
    }
    assert_eq!(whole[4].number, 4);
}

#[test]
fn an_epoch_has_every_image_once_in_an_order_of_its_own() {
    let set = shapes(200);
    let order = |number, config: &LoaderConfig| -> Vec<u32> {
        epoch(&set, config, number, 0).into_iter().flat_map(|batch| batch.indices).collect()
    };
    let shuffled = config(Augment::None);
    let (first, second) = (order(0, &shuffled), order(1, &shuffled));
    assert_ne!(first, second);
    assert_eq!(first, order(0, &shuffled));
    assert_ne!(first, order(0, &LoaderConfig { seed: 8, ..shuffled.clone() }));
    let mut sorted = first;
    sorted.sort_unstable();
    assert_eq!(sorted, order(0, &LoaderConfig::new(32, 7)));
    assert_eq!(sorted, (0..200).collect::<Vec<u32>>());
    assert_eq!(order(0, &LoaderConfig { drop_last: true, ..shuffled }).len(), 192);
}

#[test]
fn shares_of_a_batch_are_the_whole() {
    // Batches of 24 and a last one of 8, and of 2, which three ranks cannot share.
    for (images, batches) in [(200, 9), (194, 8)] {
        let set = shapes(images);
        let all = LoaderConfig { batch_size: 24, ..config(Augment::Standard) };
        let whole = epoch(&set, &all, 3, 0);
        let share = |rank| {
            let share = Share { rank, ranks: 3 };
            epoch(&set, &LoaderConfig { batch_size: 8, share, ..all.clone() }, 3, 0)
        };
        let shares = [share(0), share(1), share(2)];
        assert!(shares.iter().all(|share| share.len() == batches), "{images}");
        for (number, whole) in whole.iter().take(batches).enumerate() {
            let parts = || shares.iter().map(|share| &share[number]);
            assert_eq!(parts().flat_map(|part| part.indices.clone()).collect::<Vec<_>>(), whole.indices);
            assert!(parts().flat_map(|part| part.pixels.clone()).eq(whole.pixels.iter().copied()));
            let mut first = 0;
            for part in parts() {
                assert_eq!(part.first, first);
                first += part.n;
            }
        }
    }
    let share = Share { rank: 0, ranks: 6 };
    let refused = Loader::new(shapes(5), LoaderConfig { share, ..LoaderConfig::new(4, 0) }).unwrap_err();
    assert_eq!(refused.to_string(), "5 images cannot be shared by 6 processes");
}

#[test]
fn without_augmentation_batches_hold_the_images_and_labels() {
    let set = shapes(50);
    for batch in epoch(&set, &config(Augment::None), 0, 0) {
        assert_eq!((batch.h, batch.w, batch.c), (32, 32, 3));
        for (k, &index) in batch.indices.iter().enumerate() {
            assert_eq!(batch.labels[k], set.label(index as usize));
            assert_eq!(batch.pixels[k * 3072..][..3072], set.get(index as usize).unwrap().pixels);
        }
    }
}

#[test]
fn augmentation_differs_between_epochs_and_is_drawn_per_image() {
    let set = shapes(64);
    let standard = LoaderConfig { shuffle: false, ..config(Augment::Standard) };
    let (first, second) = (epoch(&set, &standard, 0, 0), epoch(&set, &standard, 1, 0));
    let changed =
        first[0].pixels.chunks(3072).zip(second[0].pixels.chunks(3072)).filter(|(a, b)| a != b).count();
    assert!(changed >= 30, "{changed} of 32");
    // The batch size has no say in what an image becomes.
    let other = LoaderConfig { batch_size: 5, ..standard };
    let flat = |batches: &[Batch]| batches.iter().flat_map(|batch| batch.pixels.clone()).collect::<Vec<u8>>();
    assert!(flat(&epoch(&set, &other, 0, 0)) == flat(&first));
}

#[test]
fn channels_and_size_follow_the_model() {
    let meta = Meta {
        name: "grey".into(),
        classes: vec!["only".into()],
        shape: [1, 28, 28],
        fixed_size: true,
        mirror: false,
        mean: vec![0.5],
        std: vec![0.5],
    };
    let pixels = (0..28 * 28).map(|i| (i % 251) as u8).collect();
    let grey = Dataset::from_pixels(meta, Split::Train, pixels, vec![0]).unwrap();
    let as_rgb = LoaderConfig { in_chans: Some(3), image_size: Some(32), ..LoaderConfig::new(1, 0) };
    let batch = epoch(&grey, &as_rgb, 0, 0).remove(0);
    assert_eq!((batch.h, batch.w, batch.c), (32, 32, 3));
    assert!(batch.pixels.chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
    let wanted = preprocess(grey.get(0).unwrap(), &Preprocess::new(32, 3)).unwrap();
    assert_eq!(batch.pixels, wanted.pixels);
    let as_grey = LoaderConfig { in_chans: Some(1), ..LoaderConfig::new(1, 0) };
    assert_eq!(epoch(&shapes(1), &as_grey, 0, 0)[0].pixels.len(), 1024);
}

#[test]
fn a_large_input_keeps_seven_eighths_and_a_set_of_one_size_everything() {
    let photo = Preprocess::new(224, 3);
    assert_eq!((photo.resize, photo.crop), (256, 224));
    assert_eq!(Preprocess::new(32, 3).resize, 32);
    let set = shapes(1);
    assert_eq!(Preprocess::for_dataset(set.meta(), 224, 3).resize, 224);
    let image = Image::filled(30, 90, 3, 200);
    let out = preprocess(image, &Preprocess { resize: 20, ..Preprocess::new(16, 1) }).unwrap();
    assert_eq!((out.h, out.w, out.c, out.pixels), (16, 16, 1, vec![200; 256]));
}

#[test]
fn impossible_requests_are_refused() {
    let said = |config: LoaderConfig| Loader::new(shapes(5), config).unwrap_err().to_string();
    let base = LoaderConfig::new(4, 0);
    assert_eq!(
        said(LoaderConfig { batch_size: 0, ..base.clone() }),
        "batch size must be at least 1, found 0"
    );
    assert_eq!(
        said(LoaderConfig { image_size: Some(0), ..base.clone() }),
        "image size must be between 1 and 16384, found 0"
    );
    assert_eq!(
        said(LoaderConfig { in_chans: Some(2), ..base.clone() }),
        "models take images of 1 or 3 channels, found 2"
    );
    assert_eq!(
        said(LoaderConfig { resize: Some(30), ..base.clone() }),
        "resize must be between the crop's 32 and 16384, found 30"
    );
    assert_eq!(
        said(LoaderConfig { batch_size: 6, drop_last: true, ..base }),
        "5 images do not fill one batch of 6"
    );
    let empty = Loader::new(shapes(0), LoaderConfig::new(1, 0)).unwrap_err().to_string();
    assert_eq!(empty, "data set shapes has no test images");
    let thin = preprocess(Image::filled(1, 60_000, 1, 0), &Preprocess::new(224, 3)).unwrap_err().to_string();
    assert_eq!(thin, "a picture of 60000 x 1 pixels is too thin to resize");
}

#[test]
fn an_abandoned_epoch_ends_its_workers() {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let loader =
            Loader::new(shapes(2000), LoaderConfig { workers: Some(4), ..config(Augment::Trivial) }).unwrap();
        for taken in [0, 1, 5] {
            let mut epoch = loader.epoch(0, 0);
            assert_eq!(epoch.by_ref().take(taken).count(), taken);
            drop(epoch); // Joins the workers; they wait for room in their channels.
        }
        done.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(60)).expect("dropping an epoch must not hang");
}

#[test]
fn shapes_are_drawn_from_the_seed_and_balanced() {
    let bytes = |split, seed| open("shapes", split, None, seed).unwrap().all_pixels().unwrap().into_owned();
    let test = bytes(Split::Test, 0);
    assert!(test == bytes(Split::Test, 0));
    assert!(test != bytes(Split::Test, 1));
    assert!(test[..] != bytes(Split::Train, 0)[..test.len()]);
    let train = open("shapes", Split::Train, None, 0).unwrap();
    let mut counts = [0; 10];
    train.labels().for_each(|label| counts[label as usize] += 1);
    assert_eq!(counts, [1000; 10]);
    // The statistics in the catalogue are those of seed 0; other seeds hardly differ.
    let (mean, std) = train.statistics().unwrap();
    for (measured, stated) in mean.iter().zip(&train.meta().mean).chain(std.iter().zip(&train.meta().std)) {
        assert!((measured - stated).abs() < 0.005, "{measured} {stated}");
    }
}

#[test]
fn a_contact_sheet_has_a_row_per_class() {
    let set = open("shapes", Split::Test, None, 0).unwrap();
    let sheet = contact_sheet(&set, 3, &LoaderConfig::new(1, 0)).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (2 + 3 * 66, 2 + 10 * 66));
    assert_eq!(sheet.get_pixel(0, 0).0, [255; 3]);
    // Every tile is an enlarged image: pixels come in blocks of 2 x 2.
    for (x, y) in [(2, 2), (70, 200), (140, 600)] {
        assert_eq!(sheet.get_pixel(x, y), sheet.get_pixel(x + 1, y + 1));
    }
    assert!(contact_sheet(&set, 0, &LoaderConfig::new(1, 0)).is_err());
}

#[test]
fn mixed_batches_have_targets_and_repeat() {
    let set = shapes(100);
    let mix = Mix { mixup: 0.2, cutmix: 1.0 };
    let with = |workers| LoaderConfig { workers: Some(workers), mix, ..config(Augment::Standard) };
    let inline = epoch(&set, &with(0), 2, 0);
    for workers in [1, 3] {
        assert!(epoch(&set, &with(workers), 2, 0) == inline, "{workers}");
    }
    assert!(epoch(&set, &with(2), 2, 2) == inline[2..]);
    assert!(epoch(&set, &with(0), 3, 0)[0].mixed != inline[0].mixed);
    let plain = epoch(&set, &config(Augment::Standard), 2, 0);
    assert!(
        plain.iter().all(|batch| batch.soft_targets(10).is_none() && batch.main_labels() == batch.labels)
    );
    for (batch, plain) in inline.iter().zip(&plain) {
        assert_eq!((batch.n, &batch.labels, &batch.indices), (plain.n, &plain.labels, &plain.indices));
        let targets = batch.soft_targets(12).unwrap();
        for ((k, row), (&own, &main)) in
            targets.chunks_exact(12).enumerate().zip(batch.labels.iter().zip(batch.main_labels()))
        {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            let share = batch.mixed.as_ref().unwrap().share as f32;
            let partner = batch.labels[(k + batch.n - 1) % batch.n];
            let expected = if own == partner { 1.0 } else { share };
            assert!((row[own as usize] - expected).abs() < 1e-6, "{row:?}");
            assert!(row.iter().all(|&p| p <= row[main as usize]), "{row:?} {main}");
        }
    }
    // A batch of one image is mixed with itself, which changes nothing.
    let single = epoch(&set.subset([7]), &LoaderConfig { mix, ..LoaderConfig::new(1, 0) }, 0, 0);
    assert_eq!(single[0].pixels, set.get(7).unwrap().pixels);
    assert_eq!(single[0].soft_targets(10).unwrap()[set.label(7) as usize], 1.0);
    let refused = LoaderConfig { mix: Mix { mixup: -1.0, cutmix: 0.0 }, ..LoaderConfig::new(1, 0) };
    assert!(Loader::new(set, refused).unwrap_err().to_string().contains("mixup must be"));
}
