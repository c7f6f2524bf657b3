//! `zoo predict`: the classes a trained network sees in pictures.

use crate::failure::FAILED;
use crate::options::{Common, non_zero};
use crate::printer::Printer;
use crate::table::{WIDTH, shorten};
use crate::trained::{Foreign, Trained, class_name};
use crate::usage_error;
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use unicode_width::UnicodeWidthStr;
use zoo_data::{CatalogEntry, Reading};
use zoo_ops::{FeatureMap, Inference};
use zoo_trainer::Input;

/// Pictures computed at a time.
const BATCH: usize = 32;

/// Cells of a bar that stands for probability 1.
const BAR: usize = 40;

/// Arguments of `zoo predict`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "\
zoo predict [OPTIONS] RUN_OR_CHECKPOINT IMAGE...
       zoo predict [OPTIONS] RUN_OR_CHECKPOINT SENTENCE|FILE...
       zoo predict [OPTIONS] --model NAME --weights FILE IMAGE...
       zoo predict [OPTIONS] IMAGE... --model NAME --pretrained [TAG]")]
pub(crate) struct Args {
    /// Folder of a run, of which the best checkpoint is taken, or a checkpoint file; then pictures, or for a
    /// network that reads sentences, sentences in quotes and text files with a sentence in each line
    #[arg(value_names = ["RUN_OR_CHECKPOINT", "IMAGE"], num_args = 1.., required = true)]
    paths: Vec<PathBuf>,
    /// How many classes to show for each picture
    #[arg(long, value_name = "K", default_value = "5", value_parser = non_zero)]
    topk: usize,
    /// Also give the logits of all classes
    #[arg(long)]
    logits: bool,
    /// Data set whose normalisation applies to weights from elsewhere, and whose class names do if these have none
    #[arg(long, value_name = "NAME", requires = "source")]
    dataset: Option<String>,
    #[command(flatten, next_help_heading = "Weights from elsewhere, and preparing pictures")]
    foreign: Foreign,
}

/// What is said of one picture.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Classes {
        path: String,
        predictions: Vec<Prediction>,
        #[serde(skip_serializing_if = "Option::is_none")]
        logits: Option<Vec<f32>>,
    },
    Unreadable {
        path: String,
        error: String,
    },
}

#[derive(Debug, Clone, Serialize)]
struct Prediction {
    index: usize,
    label: String,
    probability: f64,
}

/// Predicts and prints. Fails if a picture could not be read, after all others were predicted.
///
/// # Errors
/// If the network cannot be had.
pub(crate) fn run(args: &Args, common: &Common, printer: &Printer) -> Result<ExitCode> {
    let device = common.device()?;
    let dtype = common.dtype(&device)?;
    let (checkpoint, images) = match args.paths.split_first() {
        _ if args.foreign.is_given() => (None, args.paths.as_slice()),
        Some((checkpoint, images)) if !images.is_empty() => (Some(checkpoint.as_path()), images),
        _ => usage_error("predict", "there is no picture to predict: name one after the run or checkpoint"),
    };
    let found = args.foreign.read(checkpoint, printer)?;
    // A checkpoint has the names of its classes; weights from elsewhere have those of their data set.
    let dataset = match &args.dataset {
        Some(name) => Some(CatalogEntry::find(name)?),
        None if checkpoint.is_none() => found.dataset(),
        None => None,
    };
    let dataset = dataset.map(CatalogEntry::meta);
    let reading = found.reading()?;
    let mut trained = found.open(&args.foreign, dataset.as_ref(), &device, printer)?;
    trained.name_classes(dataset.as_ref())?;
    let sentences = reading.as_ref().map(|_| sentences(images)).transpose()?;
    let images = sentences.as_deref().unwrap_or(images);
    let network = Network { trained, reading, inference: Inference::default(), dtype, device };
    let mut answers = Vec::with_capacity(images.len());
    for images in images.chunks(BATCH) {
        answers.extend(network.answer(images, args)?);
    }
    printer.result(&answers, |answers| text(answers))?;
    let failed = answers.iter().filter(|answer| matches!(answer, Answer::Unreadable { .. })).count();
    if failed > 0 {
        printer.error(&format!("{failed} of {} pictures could not be read", answers.len()));
        return Ok(ExitCode::from(FAILED));
    }
    Ok(ExitCode::SUCCESS)
}

/// The sentences of the arguments: those in the lines of files, and others as they are.
fn sentences(arguments: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut sentences = Vec::new();
    for argument in arguments {
        if argument.is_file() {
            let text = std::fs::read_to_string(argument)
                .with_context(|| format!("cannot read {}", argument.display()))?;
            sentences.extend(text.lines().filter(|line| !line.trim().is_empty()).map(PathBuf::from));
        } else {
            sentences.push(argument.clone());
        }
    }
    Ok(sentences)
}

struct Network {
    trained: Trained,
    /// Of a network that reads sentences; the paths it is given are sentences.
    reading: Option<Reading>,
    inference: Inference,
    dtype: DType,
    device: Device,
}

impl Network {
    /// An answer for each picture, in order.
    fn answer(&self, paths: &[PathBuf], args: &Args) -> Result<Vec<Answer>> {
        let prepared: Vec<_> = paths.iter().map(|path| self.prepare(path)).collect();
        let pixels: Vec<u8> = prepared.iter().flatten().flatten().copied().collect();
        let mut rows = self.logits(&pixels)?.into_iter();
        let answer = |(path, prepared): (&PathBuf, std::result::Result<Vec<u8>, String>)| {
            let path = path.display().to_string();
            match prepared {
                Err(error) => Answer::Unreadable { path, error },
                Ok(_) => {
                    let row = rows.next().unwrap_or_default();
                    let predictions = self.best(&row, args.topk);
                    Answer::Classes { path, predictions, logits: args.logits.then_some(row) }
                }
            }
        };
        Ok(paths.iter().zip(prepared).map(answer).collect())
    }

    /// A picture as the network takes it, [h, w, c], or why it cannot be had.
    fn prepare(&self, path: &Path) -> std::result::Result<Vec<u8>, String> {
        if let Some(Reading { vocabulary, side, .. }) = &self.reading {
            return Ok(vocabulary.encode(&path.to_string_lossy(), *side));
        }
        let image = zoo_data::load_image(path)
            .and_then(|image| zoo_data::preprocess(image, &self.trained.meta.input.preprocess()));
        image.map(|image| image.pixels).map_err(|error| {
            let error = error.to_string();
            let reason = error.strip_prefix(&format!("{}: ", path.display())).map(str::to_string);
            reason.unwrap_or(error)
        })
    }

    /// Logits of the images in `pixels`, [n, h, w, c].
    fn logits(&self, pixels: &[u8]) -> Result<Vec<Vec<f32>>> {
        let Input { in_chans: c, image_size: side, mean, std, .. } = &self.trained.meta.input;
        let n = pixels.len() / (side * side * c);
        if n == 0 {
            return Ok(Vec::new());
        }
        let dims = (n, *side, *side, *c);
        let xs = FeatureMap::from_bytes(pixels, dims, (mean, std), self.dtype, &self.device)?;
        let logits = self.inference.run(|| self.trained.model.forward(&xs, false))?;
        Ok(logits.to_vec2::<f32>()?)
    }

    /// The `k` most probable classes, the most probable first.
    fn best(&self, logits: &[f32], k: usize) -> Vec<Prediction> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = |logit: f32| (f64::from(logit) - f64::from(max)).exp();
        let sum: f64 = logits.iter().copied().map(exp).sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(k);
        let prediction = |index| Prediction {
            index,
            label: class_name(&self.trained.meta, index),
            probability: exp(logits[index]) / sum,
        };
        order.into_iter().map(prediction).collect()
    }
}

fn text(answers: &[Answer]) -> String {
    let labels = answers.iter().flat_map(|answer| match answer {
        Answer::Classes { predictions, .. } => predictions.as_slice(),
        Answer::Unreadable { .. } => &[],
    });
    let width = labels.map(|prediction| prediction.label.width()).max().unwrap_or(0).min(WIDTH - BAR - 14);
    answers.iter().map(|answer| block(answer, width)).collect::<Vec<_>>().join("\n")
}

/// The lines about one picture, labels padded to `width`.
fn block(answer: &Answer, width: usize) -> String {
    let (path, predictions, logits) = match answer {
        Answer::Unreadable { path, error } => return format!("{path}\n  cannot be read: {error}\n"),
        Answer::Classes { path, predictions, logits } => (path, predictions, logits),
    };
    let mut text = format!("{path}\n");
    for Prediction { label, probability, .. } in predictions {
        let label = shorten(label, width);
        let blank = " ".repeat(width.saturating_sub(label.width()));
        text += format!("  {label}{blank} {:>6.2} %  {}", 100.0 * probability, bar(*probability)).trim_end();
        text.push('\n');
    }
    if let Some(logits) = logits {
        let logits: Vec<String> = logits.iter().map(|logit| format!("{logit:.4}")).collect();
        text += &format!("  logits: {}\n", logits.join(" "));
    }
    text
}

/// A bar of up to [`BAR`] cells, drawn in eighths of one.
fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share * (8 * BAR) as f64).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_the_length_of_the_share() {
        assert_eq!(bar(1.0), "█".repeat(BAR));
        assert_eq!(bar(0.5), "█".repeat(BAR / 2));
        assert_eq!(bar(1.0 / 320.0), "▏");
        assert_eq!(bar(0.0), "");
    }
}
