//! Tracing: sending the shape of a feature map through a network without computing anything.
//!
//! A traced [`FeatureMap`](crate::FeatureMap) has dimensions and no elements. Every operator answers with a
//! traced map of its output's dimensions and leaves a [`Row`]; layers put their parameter path on it. This is
//! what `zoo summary` prints and what parameter and multiply-add counts come from.

use crate::Window2d;
use candle_core::{DType, Device};
use std::sync::{Arc, Mutex, PoisonError};

/// What one operator did to a traced map.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Parameter path of the layer (`layer1.0.conv1`), or the operator's kind where it has no parameters.
    pub name: String,
    /// The operator: `conv2d`, `batch_norm`, `relu`, `max_pool2d`, …
    pub kind: &'static str,
    /// The sliding window, where the operator has one.
    pub window: Option<Window2d>,
    /// Groups of a convolution; 1 elsewhere.
    pub groups: usize,
    /// Channels, height and width of the output.
    pub output: [usize; 3],
    /// Elements of trainable parameters.
    pub params: usize,
    /// Multiply-adds per image; convolutions and linear layers only, as torchvision counts.
    pub macs: u64,
    /// Input pixels, along the longer axis, that one output pixel sees.
    pub receptive_field: usize,
    /// How the CPU kernels compute it, where they have a choice.
    pub algorithm: Option<&'static str>,
}

/// The rows that a traced map leaves, shared with every map that came from it.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<Vec<Row>>>);

impl Trace {
    /// The rows so far, in the order of execution.
    pub fn rows(&self) -> Vec<Row> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn push(&self, row: Row) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    }

    fn name_last(&self, name: &str) {
        // A fused operator leaves rows for its parts after the one that has the parameters.
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) =
            rows.iter_mut().rev().find(|r| matches!(r.kind, "conv2d" | "linear" | "batch_norm" | "embedding"))
        {
            row.name = name.to_string();
        }
    }
}

/// A feature map without elements.
#[derive(Debug, Clone)]
pub(crate) struct Traced {
    pub(crate) dims: (usize, usize, usize, usize),
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    /// Input pixels that one pixel sees, per axis.
    receptive_field: (usize, usize),
    /// Input pixels between neighbouring pixels, per axis.
    jump: (usize, usize),
    trace: Trace,
}

/// What an operator reports of itself.
#[derive(Default)]
pub(crate) struct Step {
    pub(crate) kind: &'static str,
    pub(crate) window: Option<Window2d>,
    pub(crate) groups: usize,
    pub(crate) params: usize,
    pub(crate) macs: u64,
    pub(crate) algorithm: Option<&'static str>,
}

impl Step {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, groups: 1, ..Self::default() }
    }

    pub(crate) fn window(kind: &'static str, window: Window2d) -> Self {
        Self { window: Some(window), ..Self::new(kind) }
    }
}

impl Traced {
    pub(crate) fn input(dims: (usize, usize, usize, usize), dtype: DType, device: Device) -> (Self, Trace) {
        let trace = Trace::default();
        let input = Self { dims, dtype, device, receptive_field: (1, 1), jump: (1, 1), trace: trace.clone() };
        (input, trace)
    }

    /// The map after an operator with output `dims` (n, h, w, c).
    pub(crate) fn step(&self, dims: (usize, usize, usize, usize), step: Step) -> Self {
        let mut next = Self { dims, ..self.clone() };
        if let Some(w) = step.window {
            let grow =
                |rf: usize, jump: usize, kernel: usize, dilation: usize| rf + dilation * (kernel - 1) * jump;
            next.receptive_field = (
                grow(self.receptive_field.0, self.jump.0, w.kernel.0, w.dilation.0),
                grow(self.receptive_field.1, self.jump.1, w.kernel.1, w.dilation.1),
            );
            next.jump = (self.jump.0 * w.stride.0, self.jump.1 * w.stride.1);
        }
        let (_, h, w, c) = dims;
        self.trace.push(Row {
            name: step.kind.to_string(),
            kind: step.kind,
            window: step.window,
            groups: step.groups,
            output: [c, h, w],
            params: step.params,
            macs: step.macs,
            receptive_field: next.receptive_field.0.max(next.receptive_field.1),
            algorithm: step.algorithm,
        });
        next
    }

    /// The receptive field where branches meet: the largest of them.
    pub(crate) fn join<'a>(mut self, others: impl Iterator<Item = &'a Traced>) -> Self {
        for other in others {
            let (a, b) = (self.receptive_field, other.receptive_field);
            self.receptive_field = (a.0.max(b.0), a.1.max(b.1));
            self.jump = (self.jump.0.max(other.jump.0), self.jump.1.max(other.jump.1));
        }
        self
    }

    pub(crate) fn name_last(&self, name: &str) {
        self.trace.name_last(name);
    }
}
