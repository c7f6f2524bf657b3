//! The learning rate as a pure function of the step.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The shape of a [`Schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine from the base rate to 0 (arXiv 1608.03983 without restarts).
    #[default]
    Cosine,
    /// Times `gamma` at each milestone.
    Step,
    /// A straight line from the base rate to 0.
    Linear,
    /// Up from lr/25 to the base rate and down to lr/250 000, both along cosines (arXiv 1708.07120).
    OneCycle,
    /// The base rate throughout.
    Constant,
}

/// Share of the run in which the one-cycle schedule rises, if no warm-up says otherwise. PyTorch's default.
const ONE_CYCLE_RISE: f64 = 0.3;
/// PyTorch's `div_factor` and `final_div_factor`.
const ONE_CYCLE_START: f64 = 1.0 / 25.0;
const ONE_CYCLE_END: f64 = ONE_CYCLE_START / 1e4;

/// A learning rate for each of a known number of steps.
///
/// Warm-up rises linearly: step `s` of `w` warm-up steps has `lr · (s + 1) / (w + 1)`, so that the first step
/// after it is the first with the base rate. Cosine and linear then run over the steps that are left; the
/// milestones of [`ScheduleKind::Step`] count from the start of the run. The one-cycle schedule is its own
/// warm-up and takes the warm-up's length, if there is one, as that of its rise.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The shape.
    pub kind: ScheduleKind,
    /// The base rate, which is also the highest.
    pub lr: f64,
    /// Steps of the run.
    pub total_steps: u64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Where [`ScheduleKind::Step`] reduces the rate, as shares of the run.
    pub milestones: Vec<f64>,
    /// What [`ScheduleKind::Step`] multiplies the rate by at each milestone.
    pub gamma: f64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0. Steps past the end have the rate at the end.
    pub fn lr(&self, step: u64) -> f64 {
        if self.kind == ScheduleKind::OneCycle {
            return self.one_cycle(step);
        }
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let left = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / left as f64).min(1.0);
        match self.kind {
            ScheduleKind::Cosine => 0.5 * self.lr * (1.0 + (PI * progress).cos()),
            ScheduleKind::Linear => self.lr * (1.0 - progress),
            ScheduleKind::Step => {
                let passed = |share: &&f64| step >= (**share * self.total_steps as f64).round() as u64;
                self.lr * self.gamma.powi(self.milestones.iter().filter(passed).count() as i32)
            }
            ScheduleKind::Constant | ScheduleKind::OneCycle => self.lr,
        }
    }

    fn one_cycle(&self, step: u64) -> f64 {
        let total = self.total_steps as f64;
        let rise = if self.warmup_steps > 0 { self.warmup_steps as f64 } else { ONE_CYCLE_RISE * total };
        // As in PyTorch, the peak is the last step of the rise and the lowest rate the last step of the run.
        let (peak, last) = (rise - 1.0, total - 1.0);
        let step = (step as f64).min(last);
        let cosine = |from: f64, to: f64, share: f64| to + (from - to) / 2.0 * (1.0 + (PI * share).cos());
        let factor = if step <= peak {
            if peak > 0.0 { cosine(ONE_CYCLE_START, 1.0, step / peak) } else { 1.0 }
        } else {
            cosine(1.0, ONE_CYCLE_END, (step - peak) / (last - peak))
        };
        self.lr * factor
    }
}
