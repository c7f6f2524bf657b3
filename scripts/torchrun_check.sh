#!/usr/bin/env bash
# Starts `zoo train` by a real torchrun in the ways that its users do, and compares the weights with those of `--devices`.
#
#   scripts/torchrun_check.sh FOLDER [VERSION]
#
# FOLDER gets a virtual environment with torch from PyPI (several GB, the newest version unless one is named) if it has none.
# ZOO is the program, by default target/release/zoo. Says what failed, and ends with 1 then.
set -u
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
ZOO=$(realpath "${ZOO:-$(dirname "$0")/../target/release/zoo}") || exit 2
VENV=$(realpath -m "$1")
if [ ! -x "$VENV/bin/torchrun" ]; then
  python3 -m venv "$VENV" && "$VENV/bin/pip" install --quiet --no-cache-dir "torch${2:+==$2}" || exit 2
fi
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK" || exit 2
export ZOO_RANK_TIMEOUT_SECONDS=60 ZOO
LONG="train --quiet --model mlp --dataset shapes --limit-train 240 --limit-test 60 --batch-size 8 --threads 1 --epochs"
TRAIN="$LONG 2" LONG="$LONG 40"
FAILED=0

# What is said of a check, its exit code, and the one expected.
judge() {
  if [ "$2" = "$3" ]; then echo "ok      $1"; else
    echo "FAILED  $1: exit code $2 instead of $3"
    tail -n 20 log | sed 's/^/        /'
    FAILED=1
  fi
}
torchrun() { timeout 120 "$VENV/bin/torchrun" --no-python "$@"; }
same() { cmp -s "$1/last.safetensors" "$2/last.safetensors"; }

for n in 2 3; do "$ZOO" $TRAIN --devices $n --out devices$n >log 2>&1 || { cat log; exit 1; }; done

# The forms.
i=0
for n in 2 3; do
  for form in "" "--standalone" "--master-port 29733" "--rdzv-backend c10d --rdzv-endpoint localhost:29744" \
      "--rdzv-backend static --master-addr 127.0.0.1 --master-port 29755" "--rdzv-id job --max-restarts 2"; do
    i=$((i + 1))
    torchrun --nproc-per-node $n $form "$ZOO" $TRAIN --out form$i >log 2>&1 && same form$i devices$n
    judge "$n processes, torchrun $form" $? 0
  done
done
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --nproc-per-node 2 "$ZOO" $TRAIN --out own >log 2>&1 && same own devices2
judge "an agent that keeps its store to itself" $? 0
torchrun --nproc-per-node 1 "$ZOO" $TRAIN --out alone >log 2>&1
judge "a world of one" $? 0
torchrun --nproc-per-node 1 "$ZOO" $TRAIN --devices 2 --out nested >log 2>&1 && same nested devices2
judge "a world of one that starts two with --devices" $? 0
torchrun --nproc-per-node 2 "$ZOO" eval devices2 >log 2>&1
judge "zoo eval, which each does for itself" $? 0

# Two agents, as on two machines.
for how in c10d static; do
  for node in 0 1; do
    case $how in
      c10d) meeting="--rdzv-backend c10d --rdzv-endpoint localhost:29766 --rdzv-id two" ;;
      static) meeting="--node-rank $node --master-addr 127.0.0.1 --master-port 29777" ;;
    esac
    torchrun --nnodes 2 --nproc-per-node 1 $meeting "$ZOO" $TRAIN --out two-$how >log$node 2>&1 &
    eval "node$node=$!"
  done
  wait "$node0"; first=$?
  wait "$node1"; second=$?
  cat log0 log1 >log
  same two-$how devices2
  judge "two agents, $how" "$first $second $?" "0 0 0"
done

# Starting again: what an attempt that failed left in the store must not mislead the next one.
cat >fails_once.sh <<'S'
#!/bin/sh
# Rank 1 fails before it has met the others, the first time; so does rank 0, when it has said where it is.
if [ ! -e "$1.failed" ] && [ "$RANK" = 1 ]; then sleep 1; touch "$1.failed"; exit 3; fi
shift
exec "$ZOO" "$@"
S
chmod +x fails_once.sh
torchrun --nproc-per-node 2 --max-restarts 1 ./fails_once.sh early $TRAIN --out early >log 2>&1 && same early devices2
judge "started again after a rank that never came" $? 0
for node in 0 1; do
  # Only the second agent counts a restart.
  torchrun --nnodes 2 --nproc-per-node 1 --max-restarts 1 --rdzv-backend c10d --rdzv-endpoint localhost:29788 \
    --rdzv-id again ./fails_once.sh agents $TRAIN --out agents >log$node 2>&1 &
  eval "node$node=$!"
done
wait "$node0"; first=$?
wait "$node1"; second=$?
cat log0 log1 >log
same agents devices2
judge "started again by two agents" "$first $second $?" "0 0 0"
cat >goes_on.sh <<'S'
#!/bin/sh
# Rank 1 is killed in the middle, the first time.
if [ -e run/config.toml ]; then exec "$ZOO" train --quiet --resume run; fi
if [ "$RANK" = 0 ]; then exec "$ZOO" "$@"; fi
"$ZOO" "$@" & rank=$!
while [ ! -e run/state.safetensors ]; do sleep 0.02; done
kill -9 $rank
exit 3
S
chmod +x goes_on.sh
"$ZOO" $LONG --devices 2 --out whole >log 2>&1
torchrun --nproc-per-node 2 --max-restarts 2 ./goes_on.sh $LONG --save-every 1 --out run >log 2>&1 && same run whole
judge "a run that is killed, started again and resumed" $? 0
cat >twice.sh <<'S'
#!/bin/sh
"$ZOO" "$@" --out first && exec "$ZOO" "$@" --out second
S
chmod +x twice.sh
torchrun --nproc-per-node 2 ./twice.sh $TRAIN >log 2>&1 && same first devices2 && same second devices2
judge "two runs, one after the other" $? 0

# Ranks that differ.
cat >differs.sh <<'S'
#!/bin/sh
[ "$RANK" = 0 ] || set -- "$@" --lr 0.5
exec "$ZOO" "$@"
S
chmod +x differs.sh
torchrun --nproc-per-node 2 ./differs.sh $TRAIN --out differs >log 2>&1
judge "ranks with other settings" "$? $(grep -a -c '^error: rank 1 trains with lr = 0.5, rank 0 with lr = ' log)" "1 2"
exit $FAILED
