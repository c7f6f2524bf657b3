"""The models in PyTorch, a module per family.

A module has

    CASES   a list of (model, [n, c, h, w] in eval mode, [n, c, h, w] in train mode, [n, c, h, w] of the gradients or
            None where they are those of the forward in train mode, or "f64" where these are taken on images that do
            not keep clear of kinks, for networks with too many of them, and are compared in f64 only)
    build   (name, (c, h, w), num_classes) -> the model, for images of that size
    AUXILIARY (if its models have auxiliary heads) a list of (field of the output in train mode, weight of its loss)

and defines the models that torchvision lacks, under the state-dict keys their published weights have. Gradients must
keep clear of kinks (see kinks.py), and the deeper a network, the smaller the images must be for that. Where that
leaves too little to normalise a batch by, the gradients are those in eval mode, with the running statistics.
"""

import importlib
import pathlib

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
