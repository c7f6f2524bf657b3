#!/usr/bin/env bash
# What only a GPU can show, in parts of at most four minutes each, for a machine that has a GPU and no cargo.
#
#   scripts/gpu_check.sh pack FOLDER          where cargo is: builds for CUDA and packs what is carried over (60 MB)
#   FOLDER/gpu_check.sh PART REPORT [CIFAR10] where the GPU is: adds to the report; CIFAR10 holds the binary files
#
# The parts, in the order in which they should be run:
#   correctness   every case of the operators on the GPU against the reference on the CPU
#   training      resnet18 in bf16: its losses beside the CPU's, twice the same bits, evaluation, kill and resume
#   speed MODEL   `zoo bench` beside PyTorch (eager with channels-last tensors and bf16 autocast, torch.compile, and
#                 torch.compile max-autotune); MODEL is resnet18, cifar_resnet20, resnet50, resnext50_32x4d or mobilenet_v2
#   airbench      airbench94 on CIFAR-10
# They need the libraries of CUDA 13, cuDNN 9 and NCCL: those of an installed PyTorch (cu130) are found by themselves. On
# the emulated GPU (tests/emulated_gpu) all parts but `speed` run as well: `ZOO=… ./gpu_check.sh training REPORT`.
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

# A part of the report: its title, then a command or function with its output.
failed=0
limited() {
  # A function runs in a shell of its own, so that what it waits for ends in time, too.
  if [ "$(type -t "$1")" = function ]; then
    export -f losses training speed airbench
    export zoo report
    timeout "${LIMIT_S:-220}" bash -euo pipefail -c '"$@"' part "$@"
  else
    timeout "${LIMIT_S:-220}" "$@"
  fi
}
part() {
  local title=$1 start=$SECONDS
  shift
  echo "gpu_check: $title" >&2
  {
    printf '\n## %s\n\n`%s`\n\n```text\n' "$title" "$*"
    if limited "$@" 2>&1 | tail -60; then
      printf '```\n\nDone in %s s.\n' $((SECONDS - start))
    else
      failed=1
      printf '```\n\nFAILED after %s s.\n' $((SECONDS - start))
    fi
  } >>"$report"
}

# The beginning of a report.
begin() {
  report=$(realpath "$1")
  cd "$(dirname "$0")"
  export RUST_BACKTRACE=0
  add_libraries
  [ -s "$report" ] && return
  printf '# A check on a GPU\n\nCommit %s, %s.\n' "$(cat commit 2>/dev/null || git rev-parse HEAD)" "$(date -u +%Y-%m-%d)" >"$report"
  part "Machine" nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || true
}

zoo=${ZOO:-./zoo}

# Losses of each step, without what differs from run to run.
losses() { grep -o '"loss":[^,}]*' "$1/metrics.jsonl"; }

training() {
  local out steps='--model resnet18 --dataset shapes --limit-test 64 --lr 0.02 --log-every 1 --quiet --seed 1'
  local batches=${BATCHES:---limit-train 2048 --batch-size 256}
  out=$(mktemp -d)
  # shellcheck disable=SC2086  # words
  {
    "$zoo" train $steps $batches --epochs 2 --device cuda --dtype bf16 --out "$out/a" >/dev/null
    "$zoo" train $steps $batches --epochs 2 --device cuda --dtype bf16 --out "$out/b" >/dev/null
    "$zoo" train $steps $batches --epochs 2 --device cuda --dtype bf16 --mixup 0.2 --out "$out/c" >/dev/null
    "$zoo" train $steps $batches --epochs 2 --device cuda --dtype bf16 --mixup 0.2 --out "$out/d" >/dev/null
    echo "losses"; losses "$out/a" | paste -sd' '
    diff <(losses "$out/a") <(losses "$out/b") && echo "the same losses at the second run"
    diff <(losses "$out/c") <(losses "$out/d") && echo "the same losses at the second run, with batches from the host"
    "$zoo" train $steps $batches --epochs 1 --device cpu --out "$out/cpu" >/dev/null
    echo "losses on the CPU in f32"; losses "$out/cpu" | paste -sd' '
    "$zoo" eval "$out/a" --device cuda --limit-test 512 | head -4
    "$zoo" eval "$out/a" --device cpu --limit-test 512 | head -4
    "$zoo" train $steps $batches --epochs 4 --device cuda --dtype bf16 --save-every 2 --out "$out/e" >/dev/null &
    local running=$!
    while [ ! -e "$out/e/state.safetensors" ] && kill -0 $running 2>/dev/null; do sleep 0.1; done
    kill -9 $running 2>/dev/null || true
    wait $running 2>/dev/null || true
    "$zoo" train --resume "$out/e" --device cuda --quiet >/dev/null
    "$zoo" train $steps $batches --epochs 4 --device cuda --dtype bf16 --save-every 2 --out "$out/f" >/dev/null
    python3 - "$out/e/last.safetensors" "$out/f/last.safetensors" <<'PYTHON'
import sys
data = [open(path, "rb").read() for path in sys.argv[1:]]
same = len({d[8 + int.from_bytes(d[:8], "little"):] for d in data}) == 1
print("killed and resumed:", "the same bytes" if same else "OTHER BYTES")
sys.exit(not same)
PYTHON
  }
  rm -rf "$out"
}

speed() {
  python3 scripts/bench_vs_peers.py --device cuda --zoo "$zoo" --modes train --dtypes bf16 --models "$1" --batch-size "$2" \
    --image-size "$3" --rounds "${ROUNDS:-2}" --seconds 2 --csv "${report%.md}.csv"
}

airbench() {
  local out
  out=$(mktemp -d)
  "$zoo" train --model airbench94 --dataset cifar10 --data-dir "$1" --device cuda --quiet --json --out "$out/run"
  "$zoo" eval "$out/run" --data-dir "$1" --device cuda --tta
  rm -rf "$out"
}

run() {
  local what=$1
  begin "$2"
  case $what in
    correctness)
      LIMIT_S=${LIMIT_S:-220} part "Operators on the GPU against the reference" \
        env ZOO_TEST_GPU=0 "${KERNELS:-./kernels_against_reference}" gpu_equals_the_reference --nocapture ;;
    training) part "Training resnet18 in bf16" training ;;
    airbench) part "airbench94 on CIFAR-10" airbench "$(realpath "$3")" ;;
    resnet18 | cifar_resnet20) part "Speed of $what" speed "$what" 512 32 ;;
    resnet50 | resnext50_32x4d | mobilenet_v2) part "Speed of $what" speed "$what" 128 224 ;;
    *) echo "gpu_check: no part $what" >&2; exit 2 ;;
  esac
  tail -40 "$report"
  return "$failed"
}

case ${1:-} in
  pack) [ $# = 2 ] && pack "$2" ;;
  speed) [ $# = 3 ] && run "$2" "$3" ;;
  correctness | training) [ $# = 2 ] && run "$@" ;;
  airbench) [ $# = 3 ] && run "$@" ;;
  *) sed -n '2,15p' "$0" | cut -c3- >&2; exit 2 ;;
esac
