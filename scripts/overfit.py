"""Does every network learn? Trains each on 64 pictures until it knows more than 95 % of them.

    cargo build --release
    python scripts/overfit.py --dtypes f32 bf16 --csv benchmarks/overfit.csv

A network that cannot learn 64 pictures by heart has a fault: a missing activation, a gradient that is lost, an
initialisation that lets the signal die. Each model of `zoo list` is trained by `zoo train` on 64 training images of
`shapes`, 3×32×32 in ten classes, without augmentation, dropout, stochastic depth and weight decay, at a constant
learning rate. TextCNN gets 64 sentences of two classes instead. The figure is the accuracy of an epoch as trained:
of the 64 images, each seen once, in the batches of that epoch. A run ends with the first epoch above 95 %, that is
with 61 images or more, or after the most epochs that it may have. Networks without batch-norm want --clip-grad 1 to
stay on course at this learning rate, some others learn too slowly with it, and a few want another --lr. Networks whose
answers end in ReLU lose a class for good where steps of batches without it push it below zero: --batch-size 64 has all
of them in each step. The file says which row had what.

A file given with --csv is written after each run: models that it shows to have learned are not run again, others are,
and their new row takes the place of the old one. The exit code is 1 if any of the models asked for stays at 95 % or
below.
"""

import argparse
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

IMAGES = 64
ENOUGH = 95.0
# The exit code of `zoo` for options that it does not take.
WRONG_USAGE = 2

# `zoo train` options.
SETTINGS = {
    "epochs": 200,
    "lr": 0.01,
    "batch-size": 16,
    "warmup-epochs": 1,
    "schedule": "constant",
    "augment": "none",
    "weight-decay": 0,
    "label-smoothing": 0,
    "dropout": 0,
    "drop-path": 0,
}

FIELDS = "model dtype train_top1 train_loss epochs lr batch_size clip_grad seed cpu_s wall_s".split()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", help="instead of all, the cheapest first")
    parser.add_argument("--dtypes", nargs="+", choices=["f32", "bf16"], default=["f32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=SETTINGS["epochs"], help="the most that a model may have")
    parser.add_argument("--lr", type=float, default=SETTINGS["lr"], help="as in `zoo train`")
    parser.add_argument("--batch-size", type=int, default=SETTINGS["batch-size"], help="as in `zoo train`")
    parser.add_argument("--clip-grad", type=float, default=0, help="as in `zoo train`; 0 for none")
    parser.add_argument("--zoo", default=str(REPOSITORY / "target/release/zoo"), help="the binary")
    parser.add_argument("--csv", type=pathlib.Path, help="a row for each run; may be there already")
    return parser.parse_args()


def sentences():
    """64 lines whose class is decided by one word among others that say nothing."""
    praise, blame = ("good", "great", "fine", "moving"), ("bad", "poor", "dull", "awful")
    about = ("the film", "this story", "a cast", "the music", "her part")
    lines = []
    for i in range(IMAGES):
        label, word = ("positive", praise[i // 2 % 4]) if i % 2 == 0 else ("negative", blame[i // 2 % 4])
        lines.append(f"{label}\t{about[i % 5]} was , number {i % 7} aside , {word}\n")
    return "".join(lines)


def models(zoo):
    done = subprocess.run([zoo, "list", "--json"], check=True, capture_output=True, text=True)
    # The cheapest first.
    return [model["name"] for model in sorted(json.loads(done.stdout), key=lambda model: model["macs"])]


def command(args, model, dtype, folder):
    words = [args.zoo, "train", "--model", model, "--dtype", dtype, "--out", str(folder / "run"), "--quiet"]
    if model == "textcnn":
        (folder / "train.tsv").write_text(sentences())
        (folder / "test.tsv").write_text(sentences())
        words += ["--dataset", "text", "--data-dir", str(folder)]
    else:
        words += ["--dataset", "shapes", "--limit-train", str(IMAGES), "--limit-test", "16"]
    asked = {"epochs": args.epochs, "lr": args.lr, "batch-size": args.batch_size, "clip-grad": args.clip_grad}
    options = SETTINGS | asked | {"seed": args.seed, "threads": args.threads}
    return words + [word for option, value in options.items() for word in (f"--{option}", str(value))]


def epochs_of(folder):
    """The lines of metrics.jsonl that are whole."""
    path = folder / "run" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def train(args, model, dtype):
    """Trains one model until it knows the images; a row of the CSV file."""
    with tempfile.TemporaryDirectory() as name:
        folder, start = pathlib.Path(name), time.monotonic()
        words, errors = command(args, model, dtype, folder), folder / "stderr"
        with errors.open("w") as stderr:
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            usage = watch(process, folder, f"{model} {dtype}")
        except BaseException:
            process.kill()
            raise
        epochs, message = epochs_of(folder), errors.read_text().strip()
    # The first epoch that suffices counts, also where the next one was done before the process heard of it.
    first = next((i for i, epoch in enumerate(epochs) if enough(epoch)), len(epochs) - 1)
    if process.returncode != 0 and not any(map(enough, epochs)):
        print(f"\r{' '.join(words)} failed:\n{message}", file=sys.stderr)
        if process.returncode == WRONG_USAGE or not epochs:
            sys.exit(1)
    last = epochs[first]
    return {
        "model": model,
        "dtype": dtype,
        "train_top1": round(last["train_top1"], 2),
        "train_loss": "" if last["train_loss"] is None else f"{last['train_loss']:.4g}",
        "epochs": first + 1,
        "lr": f"{args.lr:g}",
        "batch_size": args.batch_size,
        "clip_grad": f"{args.clip_grad:g}",
        "seed": args.seed,
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_s": round(time.monotonic() - start, 1),
    }


def watch(process, folder, what):
    """Waits for the end of a run, and asks for it as soon as an epoch is good enough; what the process used."""
    asked, seen = False, 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage
        epochs = epochs_of(folder)
        if len(epochs) > seen and sys.stderr.isatty():
            seen = len(epochs)
            print(f"\r{what}, epoch {seen}: {epochs[-1]['train_top1']:.1f} %  ", end="", file=sys.stderr)
        if not asked and any(map(enough, epochs)):
            process.send_signal(signal.SIGINT)
            asked = True
        time.sleep(0.2)


def enough(epoch):
    return (epoch["train_top1"] or 0) > ENOUGH


def report(rows):
    """The table, as text for people."""
    lines = [f"{'model':24}{'dtype':>6}{'train top-1':>13}{'epochs':>8}{'CPU s':>9}"]
    for row in rows:
        top1, mark = float(row["train_top1"]), "" if learned(row) else "  does not learn them"
        lines.append(f"{row['model']:24}{row['dtype']:>6}{top1:>11.2f} %{row['epochs']:>8}{float(row['cpu_s']):>9.1f}{mark}")
    return lines


def learned(row):
    return float(row["train_top1"]) > ENOUGH


def read(path):
    if not (path and path.exists()):
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main():
    args = arguments()
    rows = read(args.csv)
    asked = [(model, dtype) for dtype in args.dtypes for model in args.models or models(args.zoo)]
    for model, dtype in asked:
        known = [row for row in rows if (row["model"], row["dtype"]) == (model, dtype)]
        if any(learned(row) for row in known):
            continue
        rows = [row for row in rows if row not in known] + [train(args, model, dtype)]
        print("\r" + report(rows[-1:])[1], file=sys.stderr, flush=True)
        if args.csv:
            write(args.csv, rows)
    rows = [row for row in rows if (row["model"], row["dtype"]) in asked]
    print("\n".join(report(rows)))
    missing = [f"{row['model']} ({row['dtype']})" for row in rows if not learned(row)]
    print(f"{len(rows) - len(missing)} of {len(rows)} runs learn the {IMAGES} images to more than {ENOUGH:.0f} %")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
