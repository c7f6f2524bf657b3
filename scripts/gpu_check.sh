#!/usr/bin/env bash
# What only a GPU can show, in one command and about ten minutes, for a machine that has a GPU and no cargo.
#
#   scripts/gpu_check.sh pack FOLDER            where cargo is: builds for CUDA and packs what is carried over (60 MB)
#   FOLDER/gpu_check.sh run REPORT [CIFAR10]    where the GPU is: writes the report; CIFAR10 holds the binary files
#
# The report has the machine, the operators' tests on the GPU against the reference on the CPU, `zoo bench` beside
# PyTorch (eager with channels-last tensors and bf16 autocast, and torch.compile), and a short training.
# `run` needs the libraries of CUDA 13, cuDNN 9 and NCCL: those of an installed PyTorch (cu130) are found by themselves.
set -euo pipefail

# The libraries that an installed PyTorch brings, if it is of CUDA 13.
add_libraries() {
  local site
  site=$(python3 -c 'import nvidia, os; print(os.path.dirname(list(nvidia.__path__)[0]))' 2>/dev/null) || return 0
  export LD_LIBRARY_PATH=$site/nvidia/cu13/lib:$site/nvidia/cudnn/lib:$site/nvidia/nccl/lib:${LD_LIBRARY_PATH:-}
}

pack() {
  local folder=$1 root
  root=$(cd "$(dirname "$0")/.." && pwd)
  mkdir -p "$folder/scripts"
  folder=$(cd "$folder" && pwd)
  cd "$root"
  cargo fetch --locked
  local exports
  # 8.0 is what all GPUs from Ampere on run.
  exports=$(CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} scripts/cuda_toolchain.sh "${CUDA_PREFIX:-target/cuda-toolchain}" light)
  eval "$exports"
  export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda}
  cargo build --release --locked --no-default-features --features nccl
  local test
  test=$(cargo test --release --locked -p zoo-ops --features nccl --test kernels_against_reference --no-run \
    --message-format json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "kernels_against_reference":
        print(message["executable"])')
  strip -o "$folder/zoo" "$CARGO_TARGET_DIR/release/zoo"
  strip -o "$folder/kernels_against_reference" "$test"
  cp scripts/gpu_check.sh "$folder/"
  cp scripts/bench_vs_peers.py "$folder/scripts/"
  cp -r scripts/golden "$folder/scripts/"
  git rev-parse HEAD >"$folder/commit"
  du -sh "$folder"
}

# A part of the report: its title, then a command with its output. A part that fails does not keep the others from
# running, but the whole then fails.
failed=0
part() {
  local title=$1 start=$SECONDS
  shift
  echo "gpu_check: $title" >&2
  {
    printf '\n## %s\n\n`%s`\n\n```text\n' "$title" "$*"
    if timeout "${LIMIT_S:-240}" "$@" 2>&1 | tail -60; then
      printf '```\n\nDone in %s s.\n' $((SECONDS - start))
    else
      failed=1
      printf '```\n\nFAILED after %s s.\n' $((SECONDS - start))
    fi
  } >>"$report"
}

run() {
  local here data=${2:-}
  report=$(realpath "$1")
  [ -z "$data" ] || data=$(realpath "$data")
  here=$(cd "$(dirname "$0")" && pwd)
  cd "$here"
  export RUST_BACKTRACE=0
  add_libraries
  printf '# A check on a GPU\n\nCommit %s, %s.\n' "$(cat commit)" "$(date -u +%Y-%m-%d)" >"$report"
  part "Machine" nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  part "Operators on the GPU against the reference" \
    env ZOO_TEST_GPU=0 ./kernels_against_reference gpu_equals_the_reference --nocapture
  if python3 -c 'import torch, torchvision' 2>/dev/null; then
    LIMIT_S=330 part "Speed beside PyTorch" python3 scripts/bench_vs_peers.py --device cuda --zoo ./zoo --modes train \
      --dtypes bf16 --rounds "${ROUNDS:-2}" --seconds 2
  else
    LIMIT_S=120 part "Speed" ./zoo bench --model resnet18 --mode train --device cuda --dtype bf16 --batch-size 512 \
      --image-size 32
  fi
  local out
  out=$(mktemp -d)
  if [ -n "$data" ]; then
    part "CIFAR-10" ./zoo train --model resnet18 --dataset cifar10 --data-dir "$data" --device cuda --dtype bf16 \
      --epochs "${EPOCHS:-3}" --batch-size 512 --quiet --json --out "$out/run"
  else
    part "Training on shapes" ./zoo train --model resnet18 --dataset shapes --device cuda --dtype bf16 --epochs 3 \
      --quiet --json --out "$out/run"
  fi
  rm -rf "$out"
  cat "$report"
  return "$failed"
}

case ${1:-} in
  pack) [ $# = 2 ] && pack "$2" ;;
  run) [ $# = 2 ] || [ $# = 3 ] && run "${@:2}" ;;
  *) sed -n '2,9p' "$0" | cut -c3- >&2; exit 2 ;;
esac
