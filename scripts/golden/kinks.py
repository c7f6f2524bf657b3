"""How close a forward pass comes to the kinks of activations and max-pooling.

An element within rounding of a kink falls on either side of it in f32, and a single one moves most gradients of a deep
network by a percent, whoever computes them. Golden gradients are taken where no element is that close.
"""

import copy

import torch
import torch.nn.functional as F

# No ReLU or max-pool may decide within this many times the rounding error of f32.
CLEAR = 5

# Where the slopes of other activations jump.
KINKS = {"leaky_relu": (0,), "hardtanh": (0, 6), "relu6": (0, 6), "hardswish": (-3, 3), "hardsigmoid": (-3, 3)}


def _decisions(model, images):
    """What each ReLU and max-pool decides on: its distance from the kink, per element."""
    distances = []
    relu, max_pool2d = F.relu, F.max_pool2d
    others = {name: getattr(F, name) for name in KINKS}

    def spy_relu(xs, inplace=False):
        distances.append(xs.clone())
        return relu(xs)

    def spy_max_pool2d(xs, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **rest):
        # Padding never wins, and a window that is zero throughout behind a ReLU decides nothing. With ceil_mode the
        # last window may hang over the far edge.
        kernel, stride = kernel_size, stride or kernel_size
        far = padding + stride - 1 if ceil_mode else padding
        windows = F.unfold(F.pad(xs, (padding, far) * 2, value=-1e30), kernel, stride=stride)
        top = windows.view(xs.shape[0], xs.shape[1], kernel * kernel, -1).topk(2, dim=2).values
        gap = top[:, :, 0] - top[:, :, 1]
        distances.append(torch.where((gap == 0) | (gap > 1e20), torch.inf, gap))
        return max_pool2d(xs, kernel_size, stride, padding, dilation, ceil_mode, **rest)

    def spy(name):
        def spied(xs, *args, **rest):
            distances.append(torch.stack([xs - kink for kink in KINKS[name]]))
            return others[name](xs, *args, **rest)

        return spied

    F.relu, F.max_pool2d = spy_relu, spy_max_pool2d
    for name in KINKS:
        setattr(F, name, spy(name))
    try:
        with torch.no_grad():
            # On a copy, because a forward in train mode moves the running statistics.
            copy.deepcopy(model).to(images.dtype)(images)
    finally:
        F.relu, F.max_pool2d = relu, max_pool2d
        for name, function in others.items():
            setattr(F, name, function)
    return distances


def margin(model, images):
    """The smallest distance from a kink, in units of the error that f32 makes there."""
    smallest = float("inf")
    for exact, single in zip(_decisions(model, images.double()), _decisions(model, images.float())):
        finite = torch.isfinite(exact) & torch.isfinite(single)
        error = (exact - single)[finite].square().mean().sqrt().item()
        smallest = min(smallest, exact[finite].abs().min().item() / error)
    return smallest
