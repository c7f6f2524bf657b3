"""Learning rates, SGD and gradient clipping: writes crates/trainer/tests/golden/training.json.

    python scripts/golden/training.py

Learning rates come from torch.optim.lr_scheduler, stepped once per optimizer step. Parameters and gradients are those
of formula.py: the gradient of parameter `p` at step `s` is the tensor "grad.<p>.<s>".
"""

import warnings

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR, SequentialLR

import formula

TOTAL = 40
LR = 0.4
GAMMA = 0.2
MILESTONES = (0.5, 0.8)


def scheduler(kind, optimizer, warmup):
    """What `kind` with `warmup` steps is in PyTorch."""
    if kind == "onecycle":
        rise = {"pct_start": warmup / TOTAL} if warmup else {}
        return OneCycleLR(optimizer, LR, TOTAL, cycle_momentum=False, **rise)
    left = TOTAL - warmup
    after = {
        "cosine": lambda: CosineAnnealingLR(optimizer, left),
        "step": lambda: MultiStepLR(optimizer, [round(share * TOTAL) - warmup for share in MILESTONES], GAMMA),
        "linear": lambda: LinearLR(optimizer, 1, 0, left),
        "constant": lambda: ConstantLR(optimizer, 1, 1),
    }[kind]
    if not warmup:
        return after()
    rising = LinearLR(optimizer, 1 / (warmup + 1), 1, warmup)
    return SequentialLR(optimizer, [rising, after()], [warmup])


def rates(kind, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = scheduler(kind, optimizer, warmup)
    values = []
    for _ in range(TOTAL):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return {"kind": kind, "warmup_steps": warmup, "lr": values}


SHAPES = {"conv.weight": (2, 3, 2, 1), "conv.bias": (2,), "norm.weight": (3,), "fc.weight": (2, 4)}
STEPS = 5


def gradient(name, step):
    return formula.tensor(f"grad.{name}.{step}", SHAPES[name])


def descend(momentum, nesterov, weight_decay):
    """The parameters after five steps at learning rates 0.1, 0.2, ..., 0.5."""
    parameters = {k: torch.nn.Parameter(torch.from_numpy(formula.state(k, s)).double()) for k, s in SHAPES.items()}
    groups = [
        {"params": [p for p in parameters.values() if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=1, momentum=momentum, nesterov=nesterov)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (step + 1)
        for name, parameter in parameters.items():
            parameter.grad = gradient(name, step)
        optimizer.step()
    after = {name: p.detach().flatten().tolist() for name, p in parameters.items()}
    return {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "after": after}


def clipped(max_norm):
    parameters = {name: torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for name, shape in SHAPES.items()}
    for name, parameter in parameters.items():
        parameter.grad = gradient(name, 0)
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm).item()
    return {
        "max_norm": max_norm,
        "norm": norm,
        "clipped": {name: p.grad.flatten().tolist() for name, p in parameters.items()},
    }


def main():
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim")
    kinds = ("cosine", "step", "linear", "onecycle", "constant")
    document = {
        "versions": formula.versions(),
        "total_steps": TOTAL,
        "lr": LR,
        "milestones": MILESTONES,
        "gamma": GAMMA,
        "schedules": [rates(kind, warmup) for kind in kinds for warmup in (0, 7)],
        "shapes": SHAPES,
        "steps": STEPS,
        "sgd": [descend(0.9, True, 5e-2), descend(0.9, False, 1e-2), descend(0.0, False, 0.1)],
        "clip": [clipped(1.5), clipped(100.0)],
    }
    path = formula.write("crates/trainer/tests/golden/training.json", document, ("schedules", "sgd", "clip"))
    print(f"{path.name}  {path.stat().st_size / 1024:.1f} KiB")


if __name__ == "__main__":
    main()
