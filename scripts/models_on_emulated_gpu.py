#!/usr/bin/env python3
"""Trains every model for one step and evaluates it, on the emulated GPU and on the CPU, and writes a table of the losses.

    scripts/models_on_emulated_gpu.py [--out benchmarks/emulated_gpu.csv] [--pattern 'resnet*']

tests/emulated_gpu/run.sh builds what is run. A row: model, image size, dtype, the loss of the step on the CPU and on the
emulated GPU, the loss of two images after it, seconds on the emulated GPU. Exit code 1 if a model fails on the GPU, or if
the first losses differ by more than 1 %.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "target/cuda-check/release/zoo"
LIBRARIES = ROOT / "target/emulated_gpu"
# Tried in this order until a model takes one.
SIZES = [None, 64, 139, 224]


def zoo(args, device, folder):
    environment = dict(os.environ, LD_LIBRARY_PATH=str(LIBRARIES) if device == "cuda" else "")
    return subprocess.run([ZOO, *args], capture_output=True, text=True, cwd=folder, env=environment)


def train(model, size, device, folder):
    """The losses of the step and of the evaluation after it, or the line that says why there are none."""
    run = f"{device}-{size}"
    args = ["train", "--model", model, "--limit-train", "2", "--limit-test", "2", "--batch-size", "2", "--epochs", "1",
            "--lr", "1e-4", "--threads", "2", "--seed", "1", "--log-every", "1", "--device", device, "--out", run, "-q"]
    args += ["--data-dir", "reviews.tsv"] if model == "textcnn" else ["--dataset", "shapes"]
    args += ["--image-size", str(size)] if size else []
    done = zoo(args, device, folder)
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["no message"])[-1]
    lines = [json.loads(line) for line in (Path(folder) / run / "metrics.jsonl").read_text().splitlines()]
    return (lines[0]["loss"], lines[-1]["val_loss"]), None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=ROOT / "benchmarks/emulated_gpu.csv", type=Path)
    parser.add_argument("--pattern", default="*")
    options = parser.parse_args()
    subprocess.run([ROOT / "tests/emulated_gpu/run.sh", "list", "lenet5"], check=True, stdout=subprocess.DEVNULL)
    models = [m["name"] for m in json.loads(zoo(["list", options.pattern, "--json"], "cpu", ROOT).stdout)]
    failed = 0
    with options.out.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["model", "image_size", "cpu_loss", "gpu_loss", "cpu_val_loss", "gpu_val_loss", "gpu_seconds"])
        for model in models:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "reviews.tsv").write_text("good\tthe film was great\nbad\ta dull story\n" * 10)
                for size in SIZES:
                    on_cpu, why = train(model, size, "cpu", folder)
                    if on_cpu:
                        break
                start = time.time()
                on_gpu, why_gpu = train(model, size, "cuda", folder) if on_cpu else (None, why)
                seconds = time.time() - start
            if not on_cpu or not on_gpu or abs(on_cpu[0] - on_gpu[0]) > 0.01 * abs(on_cpu[0]):
                failed += 1
                print(f"FAILED {model}: {why or why_gpu or (on_cpu, on_gpu)}", file=sys.stderr)
            if on_cpu and on_gpu:
                row = [f"{x:.6g}" for x in (on_cpu[0], on_gpu[0], on_cpu[1], on_gpu[1])]
                table.writerow([model, size or "default", *row, f"{seconds:.1f}"])
                out.flush()
                print(model, *row, f"{seconds:.1f} s", file=sys.stderr)
    print(f"{len(models) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
