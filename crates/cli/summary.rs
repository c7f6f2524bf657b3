//! `zoo summary`: a model layer by layer.

use crate::number::{bytes, thousands};
use crate::options::non_zero;
use crate::printer::Printer;
use crate::table::Table;
use anyhow::{Context, Result};
use serde::Serialize;
use std::process::ExitCode;
use zoo::{Config, Spec};
use zoo_ops::Window2d;
use zoo_ops::rng::Noise;
use zoo_ops::trace::Row;

/// Arguments of `zoo summary`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: zoo summary resnet18 --image-size 32 --num-classes 10")]
pub(crate) struct Args {
    /// Name of the model, one of `zoo list`
    model: String,
    #[command(flatten)]
    shape: Shape,
}

/// What is said of a network that small images have chosen another form of.
pub(crate) const SMALL_FORM: &str = ", in its form for small images";

/// What a model is built for, where it is not what it was published for.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Shape {
    /// Side of the square input images, in pixels
    #[arg(long, value_name = "PIXELS", value_parser = non_zero)]
    image_size: Option<usize>,
    /// Channels of the input images: 1 for grey, 3 for colour
    #[arg(long, value_name = "N", value_parser = non_zero)]
    in_chans: Option<usize>,
    /// Number of classes to tell apart
    #[arg(long, value_name = "N", value_parser = non_zero)]
    num_classes: Option<usize>,
}

impl Shape {
    /// The configuration of a model: as published except for what was given.
    pub(crate) fn config(&self, spec: &Spec, noise: Noise) -> Config {
        let published = spec.config();
        Config {
            num_classes: self.num_classes.unwrap_or(published.num_classes),
            in_chans: self.in_chans.unwrap_or(published.in_chans),
            image_size: self.image_size.map_or(published.image_size, |size| (size, size)),
            noise,
            ..published
        }
    }
}

/// The result as `--json` shows it.
#[derive(Debug, Serialize)]
struct Summary {
    model: &'static str,
    params: usize,
    macs: u64,
    /// Their `params` and `macs` add up to those above: layers of auxiliary heads are here if their parameters are
    /// counted, and have no multiply-adds, because inference does not compute them.
    layers: Vec<Layer>,
    #[serde(skip)]
    auxiliary: Auxiliary,
    #[serde(skip)]
    input: [usize; 3],
    #[serde(skip)]
    num_classes: usize,
    #[serde(skip)]
    small_form: bool,
}

#[derive(Debug, Serialize)]
struct Layer {
    name: String,
    kind: &'static str,
    output: [usize; 3],
    params: usize,
    macs: u64,
    receptive_field: usize,
    #[serde(skip)]
    window: Option<Window2d>,
    #[serde(skip)]
    groups: usize,
}

/// What is known of auxiliary heads.
#[derive(Debug)]
struct Auxiliary {
    params: usize,
    counted: bool,
}

impl From<Row> for Layer {
    fn from(row: Row) -> Self {
        let Row { name, kind, window, groups, output, params, macs, receptive_field, algorithm: _ } = row;
        Self { name, kind, output, params, macs, receptive_field, window, groups }
    }
}

/// Prints a row for each layer, and totals.
///
/// # Errors
/// If there is no such model, or it cannot take images of that size.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<ExitCode> {
    let spec = zoo::find(&args.model)?;
    let config = args.shape.config(spec, Noise::default());
    let (h, w) = config.image_size;
    let summary = zoo::Summary::new(spec.name, &config)
        .with_context(|| format!("{} cannot take images of {h}x{w} pixels", spec.name))?;
    let auxiliary = Auxiliary { params: summary.auxiliary_params(), counted: summary.params_with_auxiliary };
    let mut layers: Vec<Layer> = summary.layers.into_iter().map(Layer::from).collect();
    if auxiliary.counted {
        layers.extend(summary.auxiliary.into_iter().map(|row| Layer { macs: 0, ..row.into() }));
    }
    let summary = Summary {
        model: summary.model,
        params: summary.params,
        macs: summary.macs,
        layers,
        auxiliary,
        input: [config.in_chans, config.image_size.0, config.image_size.1],
        num_classes: config.num_classes,
        small_form: summary.small_form,
    };
    printer.result(&summary, text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(summary: &Summary) -> String {
    let mut table =
        Table::new(&["layer", "kind", "window", ">output", ">params", ">MACs", ">sees"]).shrinking(0);
    for layer in &summary.layers {
        let count = |n: u64| if n == 0 { String::new() } else { thousands(n) };
        table.row([
            layer.name.clone(),
            layer.kind.to_string(),
            layer.window.map(|window| describe(&window, layer.groups)).unwrap_or_default(),
            dims(layer.output),
            count(layer.params as u64),
            count(layer.macs),
            layer.receptive_field.to_string(),
        ]);
    }
    let auxiliary = match &summary.auxiliary {
        Auxiliary { params: 0, .. } => String::new(),
        Auxiliary { params, counted: true } => format!(
            "of the parameters, {} are those of auxiliary heads, which training alone computes\n",
            thousands(*params as u64)
        ),
        Auxiliary { params, counted: false } => format!(
            "not counted: {} parameters of auxiliary heads, which training alone computes\n",
            thousands(*params as u64)
        ),
    };
    format!(
        "{} on images of {}, {} classes{}\n\n{table}\n\n\
         {} parameters ({} as f32), {} multiply-adds per image\n{auxiliary}\
         window: kernel, stride, padding, dilation, groups; sees: receptive field in input pixels",
        summary.model,
        dims(summary.input),
        thousands(summary.num_classes as u64),
        if summary.small_form { SMALL_FORM } else { "" },
        thousands(summary.params as u64),
        bytes(4 * summary.params as u64),
        thousands(summary.macs),
    )
}

/// `k3 s2 p1`, with dilation and groups where they are not 1.
pub(crate) fn describe(window: &Window2d, groups: usize) -> String {
    let pair = |(a, b): (usize, usize)| if a == b { a.to_string() } else { format!("{a}×{b}") };
    let mut text = format!("k{} s{} p{}", pair(window.kernel), pair(window.stride), pair(window.padding));
    if window.dilation != (1, 1) {
        text += &format!(" d{}", pair(window.dilation));
    }
    if groups != 1 {
        text += &format!(" g{groups}");
    }
    text
}

/// `64×112×112`.
pub(crate) fn dims([c, h, w]: [usize; 3]) -> String {
    format!("{c}×{h}×{w}")
}
