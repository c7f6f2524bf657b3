"""Golden values of every model: writes crates/zoo/tests/golden/<model>.json.

    python scripts/golden/models.py [NAME_PART ...]
    python scripts/golden/models.py --keys MODEL     # what its keys and shapes should be, when a test says they differ

Weights and images follow formula.py; README.md lists the keys of a file. Everything is computed in f64. How far
torch's own f32 is from it is printed, as a guide for tolerances.
"""

import sys

import torch
import torch.nn.functional as F

import families
import formula
import kinks

NUM_CLASSES = 10

# The deepest networks have hundreds of parameters; a fault in one of them shows in the gradients of all before it.
MAX_GRADS = 60


def build(name, shape, dtype):
    return formula.fill(families.build(name, shape[1:], NUM_CLASSES), dtype)


def outputs(name, model, images):
    """The logits of `images`, and in train mode (loss weight, logits) of each auxiliary head."""
    found = model(images)
    if isinstance(found, torch.Tensor):
        return found, []
    return found.logits, [(weight, getattr(found, head)) for head, weight in families.attribute(name, "AUXILIARY", [])]


def forward(name, images, shape, dtype, train):
    """The outputs for `images`, and the running statistics afterwards."""
    model = build(name, shape, dtype).train(train)
    with torch.no_grad():
        logits, heads = outputs(name, model, formula.tensor(images, shape, dtype))
    return logits, heads, {k: v for k, v in formula.entries(model).items() if "running_" in k}


def gradients(name, images, shape, dtype, train):
    """Mean cross-entropy against targets 7 i mod classes, with that of each auxiliary head times its weight, and the
    gradient of the sum in each parameter that has one (auxiliary heads have none in eval mode)."""
    model = build(name, shape, dtype).train(train)
    targets = torch.arange(shape[0]) * 7 % NUM_CLASSES
    logits, heads = outputs(name, model, formula.tensor(images, shape, dtype))
    loss = F.cross_entropy(logits, targets) + sum(weight * F.cross_entropy(head, targets) for weight, head in heads)
    loss.backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    # A bias in front of a batch-norm has none in train mode, but for rounding.
    least = 1e-9 * max(grad.norm() for grad in grads.values())
    return loss.item(), {k: grad for k, grad in grads.items() if dtype != torch.float64 or grad.norm() > least}


def clear_images(name, shape, train):
    """The first of "input", "input.1", "input.2", … whose images keep clear of kinks, and their margin."""
    model = build(name, shape, torch.float64).train(train)
    for attempt in range(200):
        images = f"input.{attempt}" if attempt else "input"
        margin = kinks.margin(model, formula.tensor(images, shape))
        if margin >= kinks.CLEAR:
            return images, margin
    raise SystemExit(f"{name} at {shape}: no images keep clear of kinks; use smaller ones")


# A shift whose effect a normalisation behind it takes out again has a gradient of zero, but for rounding.
ZERO = 1e-12


def chosen(grads):
    """The names of all gradients, or of MAX_GRADS evenly spread ones."""
    names = [name for name, grad in grads.items() if grad.norm() > ZERO]
    count = min(len(names), MAX_GRADS)
    return [names[i * (len(names) - 1) // max(count - 1, 1)] for i in range(count)]


def digest(name, value):
    """The L2 norm and the dot product with "probe.<name>"."""
    summary = formula.summary(name, value)
    return [summary["l2"], summary["dot"]]


def lines(keys):
    """A line for each key and its shape, by what comes before the name's first dot; sorted."""
    groups = {}
    for name, value in sorted(keys.items()):
        groups.setdefault(name.split(".")[0], []).append(f"{name} {list(value.shape)}")
    return groups


def hashes(keys):
    """How many keys each group has, and the hash of its lines."""
    return {group: [len(of), f"{formula.fnv1a(chr(10).join(of)):016x}"] for group, of in lines(keys).items()}


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def file_name(name, shape, is_second):
    if not is_second:
        return f"{name}.json"
    c, h, w = shape[1:]
    return f"{name}_{c}x{h}.json" if h == w else f"{name}_{c}x{h}x{w}.json"


def write_case(name, shape, train_shape, grad_shape, is_second):
    any_images = grad_shape == "f64"
    grad_shape = None if any_images else grad_shape
    train_grads = grad_shape is None
    if any_images:
        images, margin = "input", 0.0
    else:
        images, margin = clear_images(name, grad_shape or train_shape, train_grads)
    train_images = images if train_grads else "input"

    def compute(dtype):
        logits = forward(name, "input", shape, dtype, False)[0]
        train_logits, heads, running = forward(name, train_images, train_shape, dtype, True)
        return logits, train_logits, heads, running, *gradients(name, images, grad_shape or train_shape, dtype, train_grads)

    logits, train_logits, heads, running, loss, grads = compute(torch.float64)
    single = compute(torch.float32)
    model = build(name, shape, torch.float64)
    keys = formula.entries(model)
    first = next(iter(keys))
    document = {
        "versions": formula.versions(),
        "model": name,
        "num_classes": NUM_CLASSES,
        "input": shape,
        "params": sum(p.numel() for p in model.parameters()),
        "macs": families.macs(model, shape[1:]),
        "formula": {
            "input": formula.uniform("input", shape).flatten()[:4].tolist(),
            first: formula.state(first, tuple(keys[first].shape)).astype(float).flatten()[:4].tolist(),
        },
        "keys": hashes(keys),
        "logits": logits.tolist(),
        "train_input": train_shape,
        "train_images": train_images,
        "train_logits": train_logits.tolist(),
    }
    if heads:
        document["auxiliary"] = [{"loss_weight": weight, "logits": head.tolist()} for weight, head in heads]
    if running:
        # First, middle and last normalisation.
        layers = [k.removesuffix(".running_mean") for k in running if k.endswith(".running_mean")]
        layers = [layers[0], layers[len(layers) // 2], layers[-1]]
        statistics = [f"{layer}.{s}" for layer in layers for s in ("running_mean", "running_var")]
        document["running"] = {k: digest(k, running[k]) for k in statistics}
    document |= {
        "grad_mode": "train" if train_grads else "eval",
        "grad_input": grad_shape or train_shape,
        "grad_images": images,
        "grad_clear": not any_images,
        "loss": loss,
        "grads": {k: digest(k, grads[k]) for k in chosen(grads)},
    }
    path = formula.write(
        f"crates/zoo/tests/golden/{file_name(name, shape, is_second)}",
        document,
        by_line=("logits", "train_logits", "auxiliary", "keys", "grads", "running"),
    )
    running_error = max((relative(single[3][k], running[k]) for k in running), default=0)
    print(
        f"{path.name:24} {path.stat().st_size / 1024:4.1f} KiB  params {document['params']:>10,}"
        f"  MACs {document['macs']:>13,}  |logits| {logits.abs().max():7.2g}  |train| {train_logits.abs().max():5.2g}"
        f"  {images:9} margin {margin:5.1f}  f32 error: logits {relative(single[0], logits):.0e}"
        f"  train {relative(single[1], train_logits):.0e}  running {running_error:.0e}"
        f"  grads {max(relative(single[5][k], grads[k]) for k in chosen(grads)):.0e}",
        flush=True,
    )


def show_keys(wanted):
    for name, shape, *_ in families.CASES:
        if name == wanted:
            keys = lines(formula.entries(build(name, shape, torch.float64)))
            return print("\n".join(line for group in keys.values() for line in group))
    raise SystemExit(f"no family has a model {wanted}")


def main():
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--keys"]:
        return show_keys(*sys.argv[2:])
    print(formula.versions())
    seen = set()
    for name, shape, train_shape, grad_shape in families.CASES:
        if not sys.argv[1:] or any(part in name for part in sys.argv[1:]):
            write_case(name, shape, train_shape, grad_shape, name in seen)
        seen.add(name)


if __name__ == "__main__":
    main()
