"""ShuffleNet of three groups, under the keys of megvii-model/ShuffleNet-Series."""

import torch
import torch.nn.functional as F
from torch import nn

CASES = [
    ("shufflenet_v1", (3, 3, 32, 32), (3, 3, 16, 16), None),
    ("shufflenet_v1", (2, 3, 97, 75), (2, 3, 95, 61), None),
]

GROUPS = 3


class Unit(nn.Module):
    """Zhang et al. 2017, figure 2, with the authors' shuffle: channel i of the result is channel
    i mod (c / 3) * 3 + i div (c / 3) of what is shuffled."""

    def __init__(self, c_in, c_out, groups, stride):
        super().__init__()
        c = c_out // 4
        self.stride = stride
        added = c_out - c_in if stride == 2 else c_out
        self.branch_main_1 = nn.Sequential(
            nn.Conv2d(c_in, c, 1, groups=groups, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, c, 3, stride=stride, padding=1, groups=c, bias=False),
            nn.BatchNorm2d(c),
        )
        self.branch_main_2 = nn.Sequential(nn.Conv2d(c, added, 1, groups=GROUPS, bias=False), nn.BatchNorm2d(added))

    def forward(self, xs):
        ys = self.branch_main_1(xs)
        ys = ys.unflatten(1, (-1, GROUPS)).transpose(1, 2).flatten(1, 2)
        ys = self.branch_main_2(ys)
        if self.stride == 1:
            return F.relu(ys + xs)
        return torch.cat([F.avg_pool2d(xs, 3, stride=2, padding=1), F.relu(ys)], 1)


class ShuffleNetV1(nn.Module):
    """Table 1, width 1."""

    def __init__(self, small, num_classes):
        super().__init__()
        stem = nn.Conv2d(3, 24, 3, stride=1 if small else 2, padding=1, bias=False)
        self.first_conv = nn.Sequential(stem, nn.BatchNorm2d(24), nn.ReLU())
        self.small = small
        units, c_in = [], 24
        for c_out, count in ((240, 4), (480, 8), (960, 4)):
            for unit in range(count):
                units.append(Unit(c_in, c_out, GROUPS if units else 1, 2 if unit == 0 else 1))
                c_in = c_out
        self.features = nn.Sequential(*units)
        self.classifier = nn.Sequential(nn.Linear(c_in, num_classes, bias=False))

    def forward(self, xs):
        xs = self.first_conv(xs)
        if not self.small:
            xs = F.max_pool2d(xs, 3, stride=2, padding=1)
        return self.classifier(self.features(xs).mean((2, 3)))


def build(name, image, num_classes):
    return ShuffleNetV1(max(image[1:]) <= 64, num_classes)
