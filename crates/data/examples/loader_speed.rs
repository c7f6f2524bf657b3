//! Images per second of the loader: `cargo run --release -p zoo-data --example loader_speed -- NAME [DIR]`.
//!
//! Runs each augmentation for at least two seconds after one warming epoch, batch size 128, shuffled.

use std::path::Path;
use std::time::{Duration, Instant};
use zoo_data::{Augment, Loader, LoaderConfig, Split, open};

fn main() -> zoo_data::Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "shapes".into());
    let dir = args.next();
    let dataset = open(&name, Split::Train, dir.as_deref().map(Path::new), 0)?;
    for augment in Augment::ALL {
        for workers in [0, 1, 2] {
            let config =
                LoaderConfig { shuffle: true, augment, workers: Some(workers), ..LoaderConfig::new(128, 0) };
            let loader = Loader::new(dataset.clone(), config)?;
            let pass = |epoch| -> zoo_data::Result<usize> {
                loader.epoch(epoch, 0).map(|batch| batch.map(|batch| batch.n)).sum()
            };
            pass(0)?;
            let (start, mut images, mut epoch) = (Instant::now(), 0, 1);
            while start.elapsed() < Duration::from_secs(2) {
                images += pass(epoch)?;
                epoch += 1;
            }
            let rate = images as f64 / start.elapsed().as_secs_f64();
            println!("{name} {augment}, {workers} workers: {rate:.0} images/s");
        }
    }
    Ok(())
}
