"""Images per second of `zoo` beside PyTorch's, on the same machine in the same minutes.

    cargo build --release
    python scripts/bench_vs_torch.py --models resnet18 cifar_resnet20 --csv bench.csv

Both programs get generated images, the same model, batch and number of threads, and the same step: for `train` forward,
cross-entropy, backward and an SGD update with Nesterov momentum; for `infer` the forward in eval mode. They run one
after the other in fresh processes, R rounds, the order turned round every second time so that neither always goes
first. PyTorch runs with contiguous and with channels-last tensors, and the faster of the two by its median
is what `zoo` is compared with. A figure is the median over the rounds of the median over a round's steps.

Prints a Markdown table; --csv keeps every single measurement.
"""

import argparse
import csv
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
LAYOUTS = ("contiguous", "channels_last")
FIELDS = (
    "model mode device dtype threads batch_size image_size program layout round images_per_second step_ms_min "
    "step_ms_median step_ms_max peak_memory_mb"
).split()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet18"])
    parser.add_argument("--modes", nargs="+", choices=["train", "infer"], default=["train", "infer"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=32, help="up to 64 ResNet has the CIFAR stem")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32", help="below f32: mixed precision")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zoo", default=str(REPOSITORY / "target/release/zoo"), help="the binary")
    parser.add_argument("--only", choices=["zoo", "torch"], help="measure just one of the two")
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--worker", choices=LAYOUTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def torch_worker(args):
    """Measures one model in one mode in this process, and prints what `zoo bench --json` prints."""
    import torch
    import torch.nn.functional as F

    sys.path.insert(0, str(REPOSITORY / "scripts/golden"))
    import nets

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    model_name, mode = args.models[0], args.modes[0]
    c_in = 1 if model_name in ("softmax", "mlp", "lenet5", "caffe_lenet") else 3
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[args.worker]
    image = (c_in, args.image_size, args.image_size)
    model = nets.build(model_name, image, args.num_classes)
    model = model.to(args.device, memory_format=layout).train(mode == "train")
    images = torch.randn(args.batch_size, *image, device=args.device).contiguous(memory_format=layout)
    targets = torch.randint(args.num_classes, (args.batch_size,), device=args.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    dtype = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}[args.dtype]
    scaler = torch.amp.GradScaler(args.device, enabled=args.dtype == "f16")

    def forward():
        with torch.autocast(args.device, dtype=dtype, enabled=dtype is not None):
            return model(images)

    def step():
        if mode == "infer":
            with torch.inference_mode():
                forward()
        else:
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(forward().float(), targets)).backward()
            scaler.step(optimizer)
            scaler.update()
        if args.device == "cuda":
            torch.cuda.synchronize()

    for _ in range(args.warmup):
        step()
    milliseconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    median = statistics.median(milliseconds)
    print(
        json.dumps(
            {
                "images_per_second": 1e3 * args.batch_size / median,
                "step_ms": {"min": min(milliseconds), "median": median, "max": max(milliseconds)},
                "peak_memory_mb": peak,
            }
        )
    )


def measure(args, program, layout, model, mode):
    """One run of one program in a process of its own: its JSON."""
    options = {
        "batch-size": args.batch_size,
        "image-size": args.image_size,
        "num-classes": args.num_classes,
        "device": args.device,
        "dtype": args.dtype,
        "threads": args.threads,
        "warmup": args.warmup,
        "steps": args.steps,
    }
    shared = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if program == "zoo":
        command = [args.zoo, "bench", "--model", model, "--mode", mode, "--json", *shared]
    else:
        command = [sys.executable, __file__, "--worker", layout, "--models", model, "--modes", mode, *shared]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    try:
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"{args.zoo} is not there: run `cargo build --release`, or give --zoo")
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def rounds(args, model, mode):
    """Every measurement of one model in one mode, as CSV rows."""
    programs = [("zoo", ""), *(("torch", layout) for layout in LAYOUTS)]
    programs = [p for p in programs if args.only in (None, p[0])]
    rows = []
    for i in range(args.rounds):
        for program, layout in programs if i % 2 == 0 else reversed(programs):
            result = measure(args, program, layout, model, mode)
            row = {"model": model, "mode": mode, "program": program, "layout": layout, "round": i + 1}
            row |= {key: getattr(args, key) for key in ("device", "dtype", "threads", "batch_size", "image_size")}
            row |= {key: round(result[key], 1) for key in ("images_per_second", "peak_memory_mb")}
            row |= {f"step_ms_{key}": round(value, 3) for key, value in result["step_ms"].items()}
            rows.append(row)
            print(f"{model} {mode} {i + 1}: {program} {layout} {row['images_per_second']}", file=sys.stderr)
    return rows


def speeds(rows, program, layout):
    return [r["images_per_second"] for r in rows if (r["program"], r["layout"]) == (program, layout)]


def cell(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "–"


def memory(rows, program, layout):
    values = [r["peak_memory_mb"] for r in rows if (r["program"], r["layout"]) == (program, layout)]
    return f"{statistics.median(values):.0f}" if values else "–"


def table_row(rows):
    zoo = speeds(rows, "zoo", "")
    best = max(LAYOUTS, key=lambda layout: statistics.median(speeds(rows, "torch", layout) or [0]))
    torch_speeds = speeds(rows, "torch", best)
    ratio = f"{statistics.median(zoo) / statistics.median(torch_speeds):.2f}" if zoo and torch_speeds else "–"
    cells = [rows[0]["model"], rows[0]["mode"], cell(zoo), cell(torch_speeds), best if torch_speeds else "–", ratio]
    return cells + [memory(rows, "zoo", ""), memory(rows, "torch", best)]


def processor(args):
    if args.device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def torch_version():
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch")
    except PackageNotFoundError:
        sys.exit("PyTorch is not installed: python -m pip install torch torchvision")


def main():
    args = arguments()
    if args.worker:
        return torch_worker(args)
    rows = []
    header = ["model", "mode", "zoo images/s", "PyTorch images/s", "layout", "ratio", "zoo MB", "PyTorch MB"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    version = torch_version()
    for model in args.models:
        for mode in args.modes:
            new = rounds(args, model, mode)
            lines.append("| " + " | ".join(table_row(new)) + " |")
            rows += new
            if args.csv:
                with args.csv.open("w", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
    print(
        f"{processor(args)}, {args.threads} threads, {args.dtype}, batch {args.batch_size}, {args.image_size} px, "
        f"torch {version}; median (min to max) of {args.rounds} rounds of {args.steps} steps\n"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
