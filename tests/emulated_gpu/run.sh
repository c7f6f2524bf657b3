#!/usr/bin/env bash
# run.sh ARGUMENTS: builds zoo with `nccl` for the emulated GPU, and runs it there with these arguments.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$PWD/target/emulated_gpu
cargo fetch --locked --quiet
exports=$(scripts/cuda_toolchain.sh target/cuda-check/toolchain check)
eval "$exports"
CARGO_TARGET_DIR=$PWD/target/cuda-check cargo build --release --no-default-features --features nccl >&2
tests/emulated_gpu/build.sh "$folder"
LD_LIBRARY_PATH=$folder exec target/cuda-check/release/zoo "$@"
