"""Twenty training steps: writes crates/trainer/tests/golden/trajectory_<model>.json.

    python scripts/golden/trajectory.py

Start and images follow formula.py: the images of step s are "input.<s>", or the first of "input.<s>.1",
"input.<s>.2", … that keeps clear of kinks (see kinks.py), and the target of image i is (7 i + s) mod 10. SGD with Nesterov momentum 0.9, weight decay on tensors of rank two and more, label smoothing 0.1, and a learning rate of
base/2 * (1 + cos(pi * s / 20)) at step s = 0..19. Computed in f64. Printed beside it: how far a run in f32 ends from
it, which a tolerance must allow, and how far runs with a mistake do, which it must not.
"""

import math

import torch
import torch.nn.functional as F

import families
import formula
import kinks

STEPS = 20
RECORDED = (1, 5, 10, 20)
BATCH = 16
# Farther from kinks than a single forward needs (kinks.CLEAR), because parameters drift apart from step to step.
CLEAR = 50
RULES = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
SMOOTHING = 0.1

# (model, [c, h, w], base learning rate). Small images, because sixteen of 32 x 32 hardly ever keep clear of kinks.
CASES = [("lenet5", (1, 28, 28), 0.05), ("cifar_resnet20", (3, 8, 8), 0.05)]


def learning_rate(base, step):
    return 0.5 * base * (1 + math.cos(math.pi * step / STEPS))


def clear_images(model, step, shape):
    for attempt in range(1000):
        name = f"input.{step}.{attempt}" if attempt else f"input.{step}"
        if kinks.margin(model, formula.tensor(name, shape)) >= CLEAR:
            return name
    raise SystemExit(f"step {step} at {shape}: no images keep clear of kinks; use smaller ones")


def train(name, image, base, dtype=torch.float64, images=None, rules=RULES, decay_all=False, smoothing=SMOOTHING):
    """The images' names, the loss of each step, the parameters after those of RECORDED, and the running statistics at
    the end. Without `images`, ones that keep clear of kinks are chosen."""
    model = formula.fill(families.build(name, image, 10), dtype).train()
    weights = [p for p in model.parameters() if p.dim() >= 2 or decay_all]
    others = [p for p in model.parameters() if p.dim() < 2 and not decay_all]
    groups = [{"params": weights}] + ([{"params": others, "weight_decay": 0.0}] if others else [])
    optimizer = torch.optim.SGD(groups, lr=base, **rules)
    used, losses, snapshots = [], [], {}
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(base, step)
        used.append(images[step] if images else clear_images(model, step, (BATCH, *image)))
        targets = (torch.arange(BATCH) * 7 + step) % 10
        optimizer.zero_grad()
        loss = F.cross_entropy(
            model(formula.tensor(used[-1], (BATCH, *image), dtype)), targets, label_smoothing=smoothing
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step + 1 in RECORDED:
            snapshots[step + 1] = {k: p.detach().clone() for k, p in model.named_parameters()}
    return used, losses, snapshots, {k: v for k, v in formula.entries(model).items() if "running_" in k}


def described(values):
    return {k: {"l1": v.abs().sum().item()} | formula.summary(k, v) for k, v in values.items()}


def deviation(a, b):
    """The worst difference of an L1 norm, sum or probe between two runs, relative to the tensor's L1 norm."""
    a, b = described(a), described(b)
    return max((abs(a[k][s] - b[k][s]) / b[k]["l1"] for k in b for s in ("l1", "sum", "dot")), default=0.0)


def compare(what, run, exact):
    (_, losses, snapshots, running), (_, exact_losses, exact_snapshots, exact_running) = run, exact
    loss = max(abs(a / b - 1) for a, b in zip(losses, exact_losses))
    steps = "  ".join(f"{step}: {deviation(snapshots[step], exact_snapshots[step]):.0e}" for step in RECORDED)
    print(f"  {what:22} loss {loss:.0e}  parameters after {steps}  running {deviation(running, exact_running):.0e}")


def write_case(name, image, base):
    exact = train(name, image, base)
    images, losses, snapshots, running = exact
    document = {
        "versions": formula.versions(),
        "model": name,
        "num_classes": 10,
        "input": [BATCH, *image],
        "optimizer": RULES,
        "label_smoothing": SMOOTHING,
        "images": images,
        "lr": [learning_rate(base, step) for step in range(STEPS)],
        "loss": losses,
    }
    document |= {f"after_{step}": described(values) for step, values in snapshots.items()}
    if running:
        document["running"] = described(running)
    by_line = [f"after_{step}" for step in RECORDED] + ["running"]
    path = formula.write(f"crates/trainer/tests/golden/trajectory_{name}.json", document, by_line)
    print(f"{path.name}  {path.stat().st_size / 1024:.1f} KiB  loss {losses[0]:.4f} -> {losses[-1]:.4f}")

    def variant(what, **changes):
        compare(what, train(name, image, base, images=images, **changes), exact)

    variant("f32", dtype=torch.float32)
    variant("no weight decay", rules=RULES | {"weight_decay": 0.0})
    variant("decay of all", decay_all=True)
    variant("no Nesterov", rules=RULES | {"nesterov": False})
    variant("momentum 0.89", rules=RULES | {"momentum": 0.89})
    variant("no label smoothing", smoothing=0.0)


def main():
    torch.set_num_threads(1)
    print(formula.versions())
    for case in CASES:
        write_case(*case)


if __name__ == "__main__":
    main()
