//! The built binary with `--device cuda` on the emulated GPU of this folder, whose README says what that proves.
//!
//! A run is right if its losses and weights have the same bits in every schedule, if they are near the CPU's, and if the
//! emulated GPU saw no fault, in which case the process ends with exit code 0 and not 86.

#[path = "../end_to_end/command.rs"]
#[expect(dead_code, reason = "some of it is for the other tests")]
mod command;
mod devices;
mod gpu;
mod metal;
mod networks;
mod settings;
