"""ResNeXt: torchvision's, of which images of at most 64 pixels take the CIFAR stem, and a definition for CIFAR."""

import torch.nn.functional as F
from torch import nn

from . import resnet

CASES = [
    *(
        (f"resnext{variant}", (2, 3, 16, 16), (4, 3, 16, 16), (2, 3, 8, 8))
        for variant in ("50_32x4d", "101_32x8d", "101_64x4d")
    ),
    ("resnext29_32x4d", (2, 3, 32, 32), (3, 3, 16, 16), (2, 3, 8, 8)),
    # Odd sides show rounding mistakes; the last maps are 3 x 3 and 3 x 2.
    ("resnext50_32x4d", (2, 3, 75, 67), (3, 3, 67, 65), (1, 3, 65, 33)),
]


class CifarBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 to twice the width."""

    def __init__(self, c_in, width, stride, groups):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != 2 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, 2 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(2 * width)
            )

    def forward(self, xs):
        ys = F.relu(self.bn1(self.conv1(xs)))
        ys = F.relu(self.bn2(self.conv2(ys)))
        return F.relu(self.bn3(self.conv3(ys)) + self.shortcut(xs))


class CifarResNeXt(nn.Module):
    """29 layers: three stages of three blocks, with the keys of kuangliu/pytorch-cifar."""

    def __init__(self, cardinality, base_width, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        c_in = 64
        for stage in range(3):
            width, blocks = cardinality * base_width << stage, []
            for block in range(3):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(CifarBlock(c_in, width, stride, cardinality))
                c_in = 2 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(c_in, num_classes)

    def forward(self, xs):
        xs = F.relu(self.bn1(self.conv1(xs)))
        xs = self.layer3(self.layer2(self.layer1(xs)))
        return self.linear(xs.mean((2, 3)))


def build(name, image, num_classes):
    if name == "resnext29_32x4d":
        return CifarResNeXt(32, 4, num_classes)
    return resnet.build(name, image, num_classes)
