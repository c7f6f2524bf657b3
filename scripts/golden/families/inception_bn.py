"""Inception with batch-norm: figure 5 of arXiv 1502.03167 under the keys of Cadene's bninception."""

import torch
import torch.nn.functional as F
from torch import nn

CASES = [
    ("inception_bn", (2, 3, 16, 16), (2, 3, 16, 16), "f64"),
    # The published stem; maps of 9 x 12 and 5 x 6 are halved.
    ("inception_bn", (2, 3, 67, 91), (2, 3, 67, 91), (1, 3, 67, 45)),
]

# 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, and the maps behind the pool. A module that halves the map has
# no 1x1 and passes the pool's maps on.
MODULES = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (None, 128, 160, 64, 96, None),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (None, 128, 192, 192, 256, None),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}


class InceptionBn(nn.Module):
    def __init__(self, small, num_classes):
        super().__init__()
        self.small = small
        self.add("conv1_7x7_s2", 3, 64, 3 if small else 7, stride=1 if small else 2)
        self.add("conv2_3x3_reduce", 64, 64, 1)
        self.add("conv2_3x3", 64, 192, 3)
        c = 192
        for name, (c1, c3_reduce, c3, double_reduce, double, c_pool) in MODULES.items():
            path, stride = f"inception_{name}_", 1 if c1 else 2
            if c1:
                self.add(path + "1x1", c, c1, 1)
            self.add(path + "3x3_reduce", c, c3_reduce, 1)
            self.add(path + "3x3", c3_reduce, c3, 3, stride)
            self.add(path + "double_3x3_reduce", c, double_reduce, 1)
            self.add(path + "double_3x3_1", double_reduce, double, 3)
            self.add(path + "double_3x3_2", double, double, 3, stride)
            if c1:
                self.add(path + "pool_proj", c, c_pool, 1)
            c = (c1 or c) + c3 + double + (c_pool or 0)
        self.last_linear = nn.Linear(c, num_classes)

    def add(self, name, c_in, c_out, kernel, stride=1):
        setattr(self, name, nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2))
        setattr(self, name + "_bn", nn.BatchNorm2d(c_out))

    def conv(self, name, xs):
        return F.relu(getattr(self, name + "_bn")(getattr(self, name)(xs)))

    def pool(self, name, xs):
        if name == "5b":
            return F.max_pool2d(xs, 3, stride=1, padding=1)
        if MODULES[name][0]:
            return F.avg_pool2d(xs, 3, stride=1, padding=1)
        # As large as what the convolutions beside it give: odd sides are padded, even ones hang over.
        edges = [side % 2 for side in (xs.shape[3], xs.shape[2]) for _ in range(2)]
        return F.max_pool2d(F.pad(xs, edges, value=-1e30), 3, stride=2, ceil_mode=True)

    def module(self, name, xs):
        path = f"inception_{name}_"
        branches = [self.conv(path + "1x1", xs)] if MODULES[name][0] else []
        branches.append(self.conv(path + "3x3", self.conv(path + "3x3_reduce", xs)))
        ys = self.conv(path + "double_3x3_1", self.conv(path + "double_3x3_reduce", xs))
        branches.append(self.conv(path + "double_3x3_2", ys))
        ys = self.pool(name, xs)
        branches.append(self.conv(path + "pool_proj", ys) if MODULES[name][0] else ys)
        return torch.cat(branches, 1)

    def forward(self, xs):
        xs = self.conv("conv1_7x7_s2", xs)
        if not self.small:
            xs = F.max_pool2d(xs, 3, stride=2, ceil_mode=True)
        xs = self.conv("conv2_3x3", self.conv("conv2_3x3_reduce", xs))
        if not self.small:
            xs = F.max_pool2d(xs, 3, stride=2, ceil_mode=True)
        for name in MODULES:
            xs = self.module(name, xs)
        return self.last_linear(xs.mean((2, 3)))


def build(name, image, num_classes):
    return InceptionBn(max(image[1:]) <= 64, num_classes)
