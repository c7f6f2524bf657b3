"""The models in PyTorch, a module per family.

A module has

    CASES   a list of (model, [n, c, h, w] in eval mode, [n, c, h, w] in train mode, [n, c, h, w] of the gradients or
            None where they are those of the forward in train mode, or "f64" where these are taken on images that do
            not keep clear of kinks, for networks with too many of them, and are compared in f64 only)
    build   (name, (c, h, w), num_classes) -> the model, for images of that size
    AUXILIARY (if its models have auxiliary heads) a list of (field of the output in train mode, weight of its loss)
    GRAD_PREFIXES (if its models have very many parameters) how the names of those begin whose gradients are in the file

and, where it has many blocks that are named otherwise than torchvision's ResNets name them,

    BLOCK   a pattern that matches the beginning of a block's parameter names: the stage, and the block's number

or else

    GRADS   how many gradients a file holds at most, evenly spread

and defines the models that torchvision lacks, under the state-dict keys their published weights have. Gradients must
keep clear of kinks (see kinks.py), and the deeper a network, the smaller the images must be for that. Where that
leaves too little to normalise a batch by, the gradients are those in eval mode, with the running statistics.
"""

import importlib
import pathlib
import re

import torch
from torch import nn

FAMILIES = [
    importlib.import_module(f"{__name__}.{path.stem}")
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py"))
    if path.stem != "__init__"
]

# All families' cases.
CASES = [case for family in FAMILIES for case in family.CASES]


def build(name: str, image: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The model `name` of the registry for images of [c, h, w]."""
    for family in FAMILIES:
        if any(name == case[0] for case in family.CASES):
            return family.build(name, tuple(image), num_classes)
    raise SystemExit(f"no family has a model {name}")


def block_pattern(name: str, default: str | None) -> re.Pattern | None:
    """What the names of parameters in the blocks of `name` begin with; the groups are the stage and the block."""
    for family in FAMILIES:
        if any(name == case[0] for case in family.CASES):
            pattern = getattr(family, "BLOCK", default)
            return pattern and re.compile(pattern)
    raise SystemExit(f"no family has a model {name}")


def max_grads(name: str) -> int | None:
    """How many gradients the files of a model hold, where its family limits them."""
    for family in FAMILIES:
        if any(name == case[0] for case in family.CASES):
            return getattr(family, "GRADS", None)
    return None


def attribute(name: str, attribute: str, default):
    """What the family of the model `name` has under the name `attribute`."""
    for family in FAMILIES:
        if any(name == case[0] for case in family.CASES):
            return getattr(family, attribute, default)
    return default


def macs(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Multiply-adds of the convolutions and linear layers for one image."""
    total = 0

    def count(layer, _inputs, output):
        nonlocal total
        # Each output value of one image is a dot product with one row of the weight.
        total += output[0].numel() * layer.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, *image, dtype=next(model.parameters()).dtype))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return total
