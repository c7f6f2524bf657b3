//! How long layers take.

use crate::scoped::scoped;
use std::cell::RefCell;
use std::time::{Duration, Instant};

thread_local! {
    static SPANS: RefCell<Option<Vec<Duration>>> = const { RefCell::new(None) };
}

/// Runs `f`, and tells how long each of its convolutions and linear layers took, in the order of the calls:
/// those of the CPU kernels that nothing is differentiated through, with the batch-norm and activation that
/// are fused with them.
pub fn timed<R>(f: impl FnOnce() -> R) -> (R, Vec<Duration>) {
    let (result, spans) = scoped(&SPANS, Some(Vec::new()), f);
    (result, spans.unwrap_or_default())
}

/// Whether anybody asks how long layers take.
pub(crate) fn is_timed() -> bool {
    SPANS.with_borrow(Option::is_some)
}

/// A layer's place among those that are timed, if any are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place(Option<usize>);

impl Place {
    /// The next one.
    pub(crate) fn next() -> Self {
        Self(SPANS.with_borrow_mut(|spans| {
            let spans = spans.as_mut()?;
            spans.push(Duration::ZERO);
            Some(spans.len() - 1)
        }))
    }

    /// Adds the time of `f`.
    pub(crate) fn time<R>(self, f: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = f();
        self.add(start.elapsed());
        result
    }

    pub(crate) fn add(self, time: Duration) {
        SPANS.with_borrow_mut(|spans| {
            if let (Some(spans), Some(place)) = (spans, self.0)
                && let Some(span) = spans.get_mut(place)
            {
                *span += time;
            }
        });
    }
}
