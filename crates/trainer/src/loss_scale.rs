//! What losses are multiplied by in f16, whose gradients would otherwise vanish below 6·10⁻⁸.

use serde::{Deserialize, Serialize};

/// As PyTorch's `GradScaler` has it: halved where gradients overflow, whose step is left out; doubled after so many steps
/// in which none did (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct LossScale {
    pub(crate) scale: f64,
    /// Steps since it was changed.
    steps: u64,
}

const START: f64 = 65_536.0;
const DOUBLED_AFTER: u64 = 2_000;

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: START, steps: 0 }
    }
}

impl LossScale {
    /// After a step whose gradients were finite or were not.
    pub(crate) fn update(&mut self, finite: bool) {
        self.steps += 1;
        let factor = match finite {
            false => 0.5,
            true if self.steps >= DOUBLED_AFTER => 2.0,
            true => return,
        };
        *self = Self { scale: self.scale * factor, steps: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_after_many_steps() {
        let mut scale = LossScale::default();
        scale.update(false);
        scale.update(false);
        assert_eq!(scale.scale, START / 4.0);
        (0..DOUBLED_AFTER - 1).for_each(|_| scale.update(true));
        assert_eq!(scale.scale, START / 4.0);
        scale.update(true);
        assert_eq!(scale, LossScale { scale: START / 2.0, steps: 0 });
    }
}
