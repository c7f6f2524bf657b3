#!/usr/bin/env bash
# check.sh [all]: the tests of this folder, which run the binary on the emulated GPU. With `all` also the slow ones, and every
# case of the operators against the reference, through cuDNN's and the kernels' own code. Needs no GPU, no CUDA and no
# download but crates.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$PWD/target/emulated_gpu
cargo fetch --locked --quiet
exports=$(scripts/cuda_toolchain.sh target/cuda-check/toolchain check)
eval "$exports"
export CARGO_TARGET_DIR=$PWD/target/cuda-check
tests/emulated_gpu/build.sh "$folder"
# The same packages in both, so that nothing is built twice.
test=(cargo test --release --locked --no-default-features --features nccl -p zoo-cli -p zoo-ops)
"${test[@]}" --test emulated_gpu -- --test-threads "$(nproc)"
[ "${1:-}" = all ] || exit 0
"${test[@]}" --test emulated_gpu -- --test-threads "$(nproc)" --ignored
export LD_LIBRARY_PATH=$folder XDG_CACHE_HOME=$folder/cache ZOO_TEST_GPU=0
for schedule in eager late mirror; do
  EMULATED_GPU=schedule=$schedule "${test[@]}" --test kernels_against_reference -- gpu_equals_the_reference
done
EMULATED_GPU=kernels=fibres "${test[@]}" --test kernels_against_reference -- gpu_equals_the_reference
