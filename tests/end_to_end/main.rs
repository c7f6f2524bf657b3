//! The binary from end to end: what it prints, what it refuses, what it leaves behind.

mod bad_input;
mod classes;
mod command;
mod fine_tuning;
mod inspect;
#[cfg(unix)]
mod ranks;
#[cfg(unix)]
mod ranks_differ;
mod sentences;
mod torchrun;
#[cfg(unix)]
mod train_resume;
mod use_model;
mod weight_files;
