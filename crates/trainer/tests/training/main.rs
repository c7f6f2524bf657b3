//! Training as a whole: against PyTorch, and what must hold whatever happens to a run.

mod accumulation;
mod against_torch;
mod checkpoints;
mod failures;
mod fine_tuning;
#[path = "../../../ops/tests/formula/mod.rs"]
mod formula;
mod initial_values;
mod resume;
mod settings;
mod threads;
mod tiny;
