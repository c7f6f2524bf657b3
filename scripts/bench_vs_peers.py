"""Images per second of `zoo` beside PyTorch, ONNX Runtime and OpenVINO, on the same machine in the same minutes.

    cargo build --release
    python -m pip install torch torchvision onnx onnxscript onnxruntime openvino
    python scripts/bench_vs_peers.py --markdown BENCHMARKS.md --csv bench.csv

Every program gets generated images, the same model, batch and number of threads. `train` is forward, cross-entropy,
backward and an SGD update with Nesterov momentum, against PyTorch with contiguous and with channels-last tensors;
`infer` is the forward in eval mode, against those, ONNX Runtime and OpenVINO. Each measurement is a process of its own;
the programs take turns for R rounds, in turned order every second time so that nobody always goes first. A figure is
the median over the rounds of the median over a round's steps; `zoo` is compared with the fastest peer by that figure.
With --device cuda the rows are others, and the peers are PyTorch's eager mode with channels-last tensors (in bf16 under
autocast) and `torch.compile`.

With --models, those are measured instead of the table's rows (see ROWS). A file given with --csv is added to, and the
table is made of all of it: rows can be measured one at a time, and again.
"""

import argparse
import csv
import json
import math
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# (model, image size, batches in training, batches in inference)
ROWS = [
    ("resnet18", 32, (32, 128), (32, 1)),
    ("cifar_resnet20", 32, (128,), (128, 1)),
    ("lenet5", 28, (128,), (128, 1)),
    ("resnet50", 224, (8,), (8, 1)),
    ("vgg16", 224, (8,), (8, 1)),
    ("alexnet", 224, (8,), (8, 1)),
    ("googlenet", 224, (8,), (8, 1)),
    ("resnext50_32x4d", 224, (8,), (8, 1)),
    ("densenet121", 224, (8,), (8, 1)),
    ("mobilenet_v2", 224, (8,), (8, 1)),
    ("shufflenet_v2_x1_0", 224, (8,), (8, 1)),
]
# The same on a GPU, in training.
GPU_ROWS = [
    ("resnet18", 32, (512,), ()),
    ("cifar_resnet20", 32, (512,), ()),
    ("resnet50", 224, (128,), ()),
    ("mobilenet_v2", 224, (128,), ()),
    ("resnext50_32x4d", 224, (128,), ()),
]
# (mode, dtype) and the peers that have it.
TORCH = ("torch contiguous", "torch channels_last")
KINDS = {
    ("train", "f32"): TORCH,
    ("train", "bf16"): TORCH,
    ("infer", "f32"): (*TORCH, "onnxruntime", "openvino"),
    ("infer", "bf16"): (*TORCH, "openvino"),
}
# Steps of a GPU that are measured as one, as by `zoo bench`: a training does not wait for every step either.
STEPS_OF_GPU = 8
GPU_TORCH = ("torch channels_last", "torch compile", "torch max-autotune")
FIELDS = (
    "model mode device dtype threads batch_size image_size program round images_per_second step_ms_min "
    "step_ms_median step_ms_max peak_memory_mb"
).split()


# What tells one row of the table from another.
CASE = ("model", "mode", "dtype", "batch_size", "image_size")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", help="instead of the table's rows")
    parser.add_argument("--modes", nargs="+", choices=["train", "infer"], default=["train", "infer"])
    parser.add_argument("--dtypes", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32], help="with --models")
    parser.add_argument("--image-size", type=int, default=32, help="with --models; up to 64 ResNet has the CIFAR stem")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=4.0, help="of a measurement, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zoo", default=str(REPOSITORY / "target/release/zoo"), help="the binary")
    parser.add_argument("--csv", type=pathlib.Path, help="every single measurement")
    parser.add_argument("--markdown", type=pathlib.Path, help="the table")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def build(case):
    """The model in PyTorch and a batch of images."""
    import torch

    sys.path.insert(0, str(REPOSITORY / "scripts/golden"))
    import families

    torch.manual_seed(0)
    torch.set_num_threads(case["threads"])
    grey = case["model"] in ("softmax", "mlp", "lenet5", "caffe_lenet")
    image = (1 if grey else 3, case["image_size"], case["image_size"])
    return families.build(case["model"], image, case["num_classes"]), torch.randn(case["batch_size"], *image)


def torch_step(case, layout):
    import torch
    import torch.nn.functional as F

    model, images = build(case)
    device, mode = case["device"], case["mode"]
    torch.backends.cudnn.benchmark = True
    compiled = {"compile": "default", "max-autotune": "max-autotune"}.get(layout)
    layout = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    model = model.to(device, memory_format=layout).train(mode == "train")
    if compiled:
        model = torch.compile(model, mode=compiled)
    images = images.to(device).contiguous(memory_format=layout)
    targets = torch.randint(case["num_classes"], (case["batch_size"],), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def forward():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=case["dtype"] == "bf16"):
            return model(images)

    def step():
        if mode == "infer":
            with torch.inference_mode():
                forward()
        else:
            optimizer.zero_grad()
            outputs = forward()
            # GoogLeNet gives the logits of its auxiliary heads too.
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            sum(F.cross_entropy(logits.float(), targets) for logits in outputs).backward()
            optimizer.step()

    if device != "cuda":
        return step

    def steps():
        for _ in range(STEPS_OF_GPU):
            step()
        torch.cuda.synchronize()

    return steps


def onnxruntime_step(case):
    import onnxruntime
    import torch

    model, images = build(case)
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "model.onnx")
        torch.onnx.export(model.eval(), (images,), path, input_names=["images"], dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case["threads"]
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"images": images.numpy()}
    return lambda: session.run(None, feed)


def openvino_step(case):
    import openvino

    model, images = build(case)
    converted = openvino.convert_model(model.eval(), example_input=images, input=[list(images.shape)])
    config = {
        "INFERENCE_NUM_THREADS": case["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": case["dtype"],
    }
    request = openvino.compile_model(converted, "CPU", config).create_infer_request()
    images = images.numpy()
    return lambda: request.infer([images])


def peer_worker(case, program):
    """Measures one peer in this process, and prints what `zoo bench --json` prints."""
    if program.startswith("torch"):
        step = torch_step(case, program.split()[1])
    else:
        step = {"onnxruntime": onnxruntime_step, "openvino": openvino_step}[program](case)
    # A peer that is many times slower does fewer steps, two at least.
    end = time.perf_counter() + 2 * case["seconds"]
    for _ in range(case["warmup"]):
        step()
        if time.perf_counter() > end:
            break
    milliseconds = []
    together = STEPS_OF_GPU if case["device"] == "cuda" else 1
    for _ in range(-(-case["steps"] // together)):
        start = time.perf_counter()
        step()
        milliseconds.append(1e3 * (time.perf_counter() - start) / together)
        if time.perf_counter() > end and len(milliseconds) > 1:
            break
    median = statistics.median(milliseconds)
    result = {
        "images_per_second": 1e3 * case["batch_size"] / median,
        "step_ms": {"min": min(milliseconds), "median": median, "max": max(milliseconds)},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }
    if case["device"] == "cuda":
        import torch

        result["peak_memory_mb"] = torch.cuda.max_memory_reserved() / 1e6
    print("\n" + json.dumps(result))


def run(command, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not there: run `cargo build --release`, or give --zoo")
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(args, case, program):
    """One measurement in a process of its own."""
    if program != "zoo":
        return run([sys.executable, __file__, "--worker", json.dumps(case | {"program": program})], args.threads)
    keys = ("model", "mode", "dtype", "device", "threads", "batch_size", "image_size", "num_classes", "warmup", "steps")
    options = [word for key in keys for word in ("--" + key.replace("_", "-"), str(case[key]))]
    return run([args.zoo, "bench", "--json", *options], args.threads)


def compare(args, case):
    """Every measurement of one case, as CSV rows."""
    peers = GPU_TORCH if case["device"] == "cuda" else KINDS[case["mode"], case["dtype"]]
    programs = ["zoo", *peers]
    # As many steps as take about as long as asked for, by a short look at zoo.
    look = measure(args, case | {"warmup": 1, "steps": 2}, "zoo")
    steps = int(min(max(1e3 * args.seconds / look["step_ms"]["median"], 4), 1000))
    case = case | {"warmup": max(2, steps // 4), "steps": steps, "seconds": args.seconds}
    rows = []
    for i in range(args.rounds):
        for program in programs if i % 2 == 0 else reversed(programs):
            result = measure(args, case, program)
            row = {key: case[key] for key in FIELDS if key in case} | {"program": program, "round": i + 1}
            # What zoo takes of a GPU's memory is not known.
            row |= {key: round(result[key] or math.nan, 1) for key in ("images_per_second", "peak_memory_mb")}
            row |= {f"step_ms_{key}": round(value, 3) for key, value in result["step_ms"].items()}
            rows.append(row)
            what = f"{case['model']} {case['mode']} {case['dtype']} batch {case['batch_size']}"
            print(f"{what}, round {i + 1}: {program} {row['images_per_second']}", file=sys.stderr, flush=True)
    return rows


def column(rows, program, key):
    return [row[key] for row in rows if row["program"] == program]


def table_row(rows, peer=None):
    speed = {program: column(rows, program, "images_per_second") for program in {row["program"] for row in rows}}
    # On a GPU each peer has a row of its own: there is an aim against each.
    best = peer or max((p for p in speed if p != "zoo"), key=lambda program: statistics.median(speed[program]))
    ratio = statistics.median(speed["zoo"]) / statistics.median(speed[best])

    def cell(program):
        values = speed[program]
        return f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"

    def memory(program):
        return f"{statistics.median(column(rows, program, 'peak_memory_mb')):,.0f}".replace("nan", "–")

    first = rows[0]
    what = [str(first[key]) for key in ("model", "image_size", "batch_size", "mode", "dtype")]
    return what + [str(len(speed["zoo"])), cell("zoo"), f"{ratio:.2f}", best, cell(best), memory("zoo"), memory(best)]


def processor(device):
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    flags = next((line for line in info if line.startswith("flags")), "")
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
    sets = [name for flag, name in known.items() if flag in flags.split()]
    return f"{names[0] if names else platform.processor()} ({', '.join(sets) or 'no AVX2'})"


def versions(device):
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("torch",) if device == "cuda" else ("torch", "onnxruntime", "openvino"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            sys.exit(f"{package} is not installed: python -m pip install torch torchvision onnx onnxscript onnxruntime openvino")
    return ", ".join(found)


def cases(args):
    rows = GPU_ROWS if args.device == "cuda" else ROWS
    if args.models:
        batches = tuple(args.batch_size)
        rows = [(model, args.image_size, batches, batches) for model in args.models]
    common = {key: getattr(args, key) for key in ("device", "threads", "num_classes")}
    for model, image_size, train, infer in rows:
        for mode, dtype in KINDS:
            # Inference in bf16 at the larger batch only.
            batches = train if mode == "train" else infer if dtype == "f32" else infer[:1]
            if mode not in args.modes or dtype not in args.dtypes or (model == "lenet5" and dtype == "bf16"):
                continue
            for batch_size in batches:
                case = {"model": model, "mode": mode, "dtype": dtype, "batch_size": batch_size}
                yield case | {"image_size": image_size} | common


def main():
    args = arguments()
    if args.worker:
        case = json.loads(args.worker)
        return peer_worker(case, case["program"])
    header = "model,pixels,batch,mode,dtype,rounds,zoo images/s,ratio,fastest peer,its images/s,zoo MB,its MB".split(",")
    lines = [
        f"{processor(args.device)}, {args.threads} threads; {versions(args.device)}. Median (least to most) of the rounds.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    rows = read(args.csv) if args.csv and args.csv.exists() else []
    for case in cases(args):
        key = [str(case[name]) for name in CASE]
        rows = [row for row in rows if [str(row[name]) for name in CASE] != key] + compare(args, case)
        if args.csv:
            with args.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    groups = {}
    for row in rows:
        groups.setdefault(tuple(str(row[name]) for name in CASE), []).append(row)
    # Training first, f32 first, otherwise as measured.
    in_order = sorted(groups.values(), key=lambda group: (group[0]["mode"] != "train", group[0]["dtype"] != "f32"))
    peers = GPU_TORCH if args.device == "cuda" else (None,)
    lines += ["| " + " | ".join(table_row(group, peer)) + " |" for group in in_order for peer in peers]
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def read(path):
    """The measurements of a CSV file."""
    with path.open(newline="") as file:
        return [row | {key: float(row[key]) for key in ("images_per_second", "peak_memory_mb")} for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
