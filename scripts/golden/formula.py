"""Tensors given by a formula, so that golden values need no weight files.

The formula is part of the contract with the Rust tests, which repeat it.

    h      = FNV-1a, 64 bits, of the UTF-8 bytes of the tensor's name
    z(i)   = splitmix64 finaliser of h + (i + 1) * 0x9E3779B97F4A7C15  (mod 2^64), where
             z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9
             z ^= z >> 27;  z *= 0x94D049BB133111EB
             z ^= z >> 31
    u(i)   = (z(i) >> 40) / 2^24 * 2 - 1, in [-1, 1), a multiple of 2^-23 and so exact in f32

`i` is the flat row-major index in PyTorch's layout (OIHW for weights, NCHW for images). With u, in f64:

    rank >= 2                     bound * u, bound = GAIN * sqrt(6 / fan_in), fan_in = product of dims[1..]
    rank 1, name ends with        running_var  1 + 0.5 u
                                  running_mean 0.2 u
                                  weight       1 + 0.2 u   (scale of a normalisation)
                                  bias         0.1 u
    a batch of images "input"     u
    a probe "probe.<name>"        u

Each value is then rounded to f32. The golden values are computed in f64 from these f32 values, so both sides
start from the same numbers.

GAIN = 0.7 makes the weights' variance 0.98 / fan_in. A plain ReLU network shrinks by a factor of two in variance
per layer, and a residual branch adds less than what it is added to: logits are of order 0.1 to 10 for every model.
"""

import json
import math
import pathlib
import platform

import numpy as np
import torch

GAIN = 0.7
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def fnv1a(name: str) -> int:
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def uniform(name: str, shape) -> np.ndarray:
    """u of the header, in f64, as an array of `shape`."""
    n = math.prod(shape)
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float64) / 2**24 * 2 - 1).reshape(shape)


def state(name: str, shape) -> np.ndarray:
    """The entry `name` of a state dict, in f32."""
    u = uniform(name, shape)
    if len(shape) >= 2:
        value = GAIN * math.sqrt(6 / math.prod(shape[1:])) * u
    elif name.endswith("running_var"):
        value = 1 + 0.5 * u
    elif name.endswith("running_mean"):
        value = 0.2 * u
    elif name.endswith("weight"):
        value = 1 + 0.2 * u
    elif name.endswith("bias"):
        value = 0.1 * u
    else:
        raise ValueError(f"the formula has no rule for {name} of shape {list(shape)}")
    return value.astype(np.float32)


def tensor(name: str, shape, dtype=torch.float64) -> torch.Tensor:
    """A tensor of u: images, probes, operator inputs."""
    return torch.from_numpy(uniform(name, shape)).to(dtype)


def entries(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without batch norm's step counters."""
    return {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}


def fill(model: torch.nn.Module, dtype=torch.float64) -> torch.nn.Module:
    """Gives the model the formula's weights and running statistics."""
    model = model.to(dtype)
    for name, value in entries(model).items():
        value.copy_(torch.from_numpy(state(name, tuple(value.shape))))
    return model


def summary(name: str, value: torch.Tensor) -> dict[str, float]:
    """Three numbers that pin a tensor down: its L2 norm, its sum, and its dot product with "probe.<name>".

    The dot product notices permuted elements. An error of relative size e in the L2 norm moves `sum` and `dot` by
    about e * l2, which is what to compare their differences with.
    """
    flat = value.detach().double().flatten()
    l2 = flat.norm().item()
    dot = (flat * tensor(f"probe.{name}", tuple(flat.shape))).sum().item()
    # A sum that is zero but for rounding is written as zero, so that the file is the same on every machine.
    total = flat.sum().item()
    return {"l2": l2, "sum": 0.0 if abs(total) < 1e-12 * l2 else total, "dot": dot}


def versions() -> dict[str, str]:
    import torchvision

    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()}


def _rounded(value, digits):
    if isinstance(value, float):
        assert math.isfinite(value), "a golden value is not finite"
        return float(format(value, f".{digits}g"))
    if isinstance(value, dict):
        return {k: _rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v, digits) for v in value]
    return value


def write(path: str, document: dict, by_line=(), digits=9):
    """Writes `document` as JSON, floats with so many significant digits, with a line per top-level key; those in
    `by_line` get a line per entry."""

    def compact(value):
        return json.dumps(_rounded(value, digits), separators=(",", ":"))

    lines = []
    for key, value in document.items():
        if key in by_line and isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(k)}:{compact(v)}" for k, v in value.items())
            lines.append(f'"{key}":{{\n{inner}}}')
        elif key in by_line:
            lines.append(f'"{key}":[\n' + ",\n".join(f"  {compact(v)}" for v in value) + "]")
        else:
            lines.append(f'"{key}":{compact(value)}')
    target = REPOSITORY / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return target
