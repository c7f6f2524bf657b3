//! `zoo bench`: images per second on generated input.

use crate::number::{count, rate, thousands};
use crate::options::{Common, device_name, non_zero};
use crate::printer::Printer;
use crate::summary::{Shape, describe, dims};
use crate::table::Table;
use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Instant;
use zoo::{Config, Model, Params};
use zoo_ops::dispatch::instruction_set;
use zoo_ops::rng::{Noise, stream};
use zoo_ops::trace::Row;
use zoo_ops::{FeatureMap, Inference, Targets, timed};
use zoo_trainer::{Gradients, Optimizer, SgdConfig, train_pass};

/// Arguments of `zoo bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: zoo bench --model resnet18 --image-size 32 --num-classes 10")]
pub(crate) struct Args {
    /// Name of the model, one of `zoo list`
    #[arg(long, value_name = "NAME")]
    model: String,
    /// What to measure: train is forward, backward and optimizer step; infer is forward
    #[arg(long, value_enum, default_value = "train")]
    mode: Mode,
    /// Images per step
    #[arg(long, value_name = "N", default_value = "32", value_parser = non_zero)]
    batch_size: usize,
    #[command(flatten)]
    shape: Shape,
    /// Steps before measuring
    #[arg(long, value_name = "N", default_value = "3")]
    warmup: usize,
    /// Steps that are measured
    #[arg(long, value_name = "N", default_value = "10", value_parser = non_zero)]
    steps: usize,
    /// Print how each convolution is computed at this batch size, and how long its forward takes
    #[arg(long)]
    explain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Train,
    Infer,
}

/// The result as `--json` shows it.
#[derive(Debug, Serialize)]
struct Measurement {
    model: &'static str,
    mode: Mode,
    device: &'static str,
    dtype: &'static str,
    threads: usize,
    batch_size: usize,
    image_size: usize,
    /// From the median step.
    images_per_second: f64,
    step_ms: StepTimes,
    /// The most memory that the process held, in 10⁶ bytes; null where the system does not say, and on a GPU.
    peak_memory_mb: Option<f64>,
}

#[derive(Debug, Serialize)]
struct StepTimes {
    min: f64,
    median: f64,
    max: f64,
}

/// Measures and prints.
///
/// # Errors
/// If there is no such model, or it cannot take such images.
pub(crate) fn run(args: &Args, common: &Common, printer: &Printer) -> Result<ExitCode> {
    let spec = zoo::find(&args.model)?;
    let bench = Bench::new(args, args.shape.config(spec, Noise::new(common.seed())), common)?;
    if args.explain && !bench.device.is_cpu() {
        bail!("--explain shows how the CPU computes; use it with --device cpu");
    }
    if args.explain {
        printer.result(&bench.explain(printer)?, Choices::text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (n, image_size) = (args.batch_size, bench.model.config().image_size.0);
    let step_ms = bench.measure(printer)?;
    let median = median(&step_ms);
    let measurement = Measurement {
        model: spec.name,
        mode: args.mode,
        device: device_name(&bench.device),
        dtype: bench.xs.dtype().as_str(),
        threads: common.threads(),
        batch_size: n,
        image_size,
        images_per_second: n as f64 / median * 1e3,
        step_ms: StepTimes { min: step_ms[0], median, max: step_ms[step_ms.len() - 1] },
        peak_memory_mb: if bench.device.is_cpu() { peak_memory_mb() } else { None },
    };
    printer.result(&measurement, text)?;
    Ok(ExitCode::SUCCESS)
}

/// What `--explain` prints.
#[derive(Debug, Serialize)]
struct Choices {
    model: &'static str,
    batch_size: usize,
    /// The best that this machine has, or what `ZOO_INSTRUCTION_SET` names.
    instruction_set: &'static str,
    layers: Vec<Choice>,
    /// Milliseconds of a whole forward pass.
    forward_ms: f64,
}

#[derive(Debug, Serialize)]
struct Choice {
    name: String,
    output: [usize; 3],
    /// Kernel, stride, padding, dilation and groups; empty of a linear layer.
    window: String,
    /// Multiply-adds of a direct sum, per image.
    macs: u64,
    algorithm: &'static str,
    /// Milliseconds of a forward pass, with what is fused with it; null where the kernels do not serve it.
    forward_ms: Option<f64>,
}

impl Choices {
    fn text(&self) -> String {
        let headings = ["layer", "window", ">output", ">MACs", ">ms", ">GMAC/s", "algorithm"];
        let mut table = Table::new(&headings).shrinking(0);
        let batch = self.batch_size as f64;
        for layer in &self.layers {
            let of_time = |f: &dyn Fn(f64) -> String| layer.forward_ms.map_or_else(String::new, f);
            table.row([
                layer.name.clone(),
                layer.window.clone(),
                dims(layer.output),
                thousands(layer.macs),
                of_time(&|ms| format!("{ms:.2}")),
                of_time(&|ms| format!("{:.1}", layer.macs as f64 * batch / ms / 1e6)),
                layer.algorithm.into(),
            ]);
        }
        let of_layers: f64 = self.layers.iter().filter_map(|layer| layer.forward_ms).sum();
        format!(
            "{}, {} at a time, on {}; gradients go the same way, small batches aside\n\n{table}\n\n\
             {:.2} ms a forward pass, {:.2} of it in other layers",
            self.model,
            count(self.batch_size, "image"),
            self.instruction_set,
            self.forward_ms,
            (self.forward_ms - of_layers).max(0.0)
        )
    }
}

/// Steps of a GPU that are measured as one.
const STEPS_OF_GPU: usize = 8;

struct Bench<'a> {
    args: &'a Args,
    device: Device,
    xs: FeatureMap,
    params: Params,
    model: Model,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args, config: Config, common: &Common) -> Result<Self> {
        let device = common.device()?;
        let (dtype, (h, w)) = (common.dtype(&device)?, config.image_size);
        let (n, c) = (args.batch_size, config.in_chans);
        let pixels = random_bytes(common.seed(), n * h * w * c);
        let statistics = (&vec![0.5; c][..], &vec![0.25; c][..]);
        let xs = FeatureMap::from_bytes(&pixels, (n, h, w, c), statistics, dtype, &device)?;
        let params = Params::new(common.seed());
        let model = Model::new(&args.model, config, params.var_builder(&device))?;
        Ok(Self { args, device, xs, params, model })
    }

    /// How each convolution is computed, with the times of forward passes.
    fn explain(&self, printer: &Printer) -> Result<Choices> {
        let trace = || self.model.trace(self.args.batch_size, self.xs.dtype());
        let mut rows = Inference::default().run(trace)?;
        rows.retain(|row| row.algorithm.is_some());
        let (forward_ms, of_layers) = self.time(rows.len(), printer)?;
        let choice = |(row, forward_ms): (Row, Option<f64>)| {
            let window = row.window.map(|window| describe(&window, row.groups)).unwrap_or_default();
            let Row { name, output, macs, algorithm, .. } = row;
            algorithm.map(|algorithm| Choice { name, output, window, macs, algorithm, forward_ms })
        };
        Ok(Choices {
            model: self.model.spec().name,
            batch_size: self.args.batch_size,
            instruction_set: instruction_set().name(),
            layers: rows.into_iter().zip(of_layers).filter_map(choice).collect(),
            forward_ms,
        })
    }

    /// The median milliseconds of forward passes, and of each of their `layers` that the kernels serve.
    fn time(&self, layers: usize, printer: &Printer) -> Result<(f64, Vec<Option<f64>>)> {
        let inference = Inference::default();
        let mut of_layers = vec![Vec::new(); layers];
        let step_ms = self.steps(1, printer, |measured| {
            let (logits, spans) = timed(|| inference.run(|| self.model.forward(&self.xs, false)));
            logits?;
            // A layer that the kernels did not serve would shift the others.
            if measured && spans.len() == of_layers.len() {
                of_layers.iter_mut().zip(spans).for_each(|(ms, span)| ms.push(span.as_secs_f64() * 1e3));
            }
            Ok(())
        })?;
        let of_layer = |mut ms: Vec<f64>| {
            ms.sort_by(f64::total_cmp);
            (!ms.is_empty()).then(|| median(&ms))
        };
        Ok((median(&step_ms), of_layers.into_iter().map(of_layer).collect()))
    }

    /// Milliseconds of each measured step, ascending.
    fn measure(&self, printer: &Printer) -> Result<Vec<f64>> {
        let (model, n) = (&self.model, self.args.batch_size);
        let labels: Vec<u32> = (0..n).map(|i| (i % model.config().num_classes) as u32).collect();
        let targets = Targets::Classes(Tensor::new(labels, &Device::Cpu)?);
        let sgd = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4, decay_biases: false };
        // Inference has no use for its memory.
        let mut optimizer = match self.args.mode {
            Mode::Train => Some(Optimizer::new(self.params.trainable(), sgd)?),
            Mode::Infer => None,
        };
        let inference = Inference::default();
        let mut step = || -> Result<()> {
            match &mut optimizer {
                None => {
                    inference.run(|| model.forward(&self.xs, false))?;
                    Ok(())
                }
                Some(optimizer) => {
                    let pass = train_pass(model, &self.xs, &targets, 0.0, 1.0)?;
                    let gradients = Gradients::take(optimizer.parameters(), pass.gradients);
                    // So low that the weights stay finite however many steps are measured.
                    Ok(optimizer.step(&gradients, 1e-6)?)
                }
            }
        };
        // A GPU is given work ahead of time, as in a training, which does not wait for every step either.
        let together = if !self.device.is_cpu() { STEPS_OF_GPU } else { 1 };
        self.steps(together, printer, |_| step())
    }

    /// Runs the steps, so many at a time, telling each whether it is measured; the milliseconds of those that are,
    /// ascending.
    fn steps(
        &self,
        together: usize,
        printer: &Printer,
        mut step: impl FnMut(bool) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let bar = printer.bar("measuring {wide_bar} {pos}/{len} steps  {eta} left");
        let (warmup, measured) = (self.args.warmup.div_ceil(together), self.args.steps.div_ceil(together));
        bar.set_length(((warmup + measured) * together) as u64);
        let mut step_ms = Vec::with_capacity(measured);
        for i in 0..warmup + measured {
            let (start, measured) = (Instant::now(), i >= warmup);
            (0..together).try_for_each(|_| step(measured))?;
            // A GPU computes behind the program's back.
            self.device.synchronize()?;
            if measured {
                step_ms.push(start.elapsed().as_secs_f64() * 1e3 / together as f64);
            }
            bar.inc(together as u64);
        }
        bar.finish_and_clear();
        step_ms.sort_by(f64::total_cmp);
        Ok(step_ms)
    }
}

fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    use rand::RngCore;
    let mut bytes = vec![0; len];
    stream(seed, "bench", 0).fill_bytes(&mut bytes);
    bytes
}

/// The middle of sorted values, of an even number the mean of the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// What Linux calls the high-water mark of the resident set.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn text(m: &Measurement) -> String {
    let memory =
        m.peak_memory_mb.map_or("unknown".into(), |mb| format!("{} MB", thousands(mb.round() as u64)));
    let mode = if m.mode == Mode::Train { "training" } else { "inference" };
    format!(
        "{}, {mode} on generated images of {size}×{size}, {} at a time\n\
         {}, {}, {}\n\n\
         images/s     {}\n\
         step         {:.2} ms (least {:.2}, most {:.2})\n\
         peak memory  {memory}",
        m.model,
        m.batch_size,
        m.device,
        m.dtype,
        count(m.threads, "thread"),
        rate(m.images_per_second),
        m.step_ms.median,
        m.step_ms.min,
        m.step_ms.max,
        size = m.image_size,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even() {
        assert_eq!(median(&[1.0]), 1.0);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}
