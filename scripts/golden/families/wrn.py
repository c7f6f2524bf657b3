"""The wide residual networks for CIFAR of Zagoruyko and Komodakis 2016."""

import torch.nn.functional as F
from torch import nn

from .preact_resnet import BasicBlock

CASES = [
    ("wrn_28_10", (2, 3, 16, 16), (3, 3, 8, 16), (2, 3, 8, 8)),
    ("wrn_16_4", (2, 3, 32, 32), (3, 3, 16, 16), None),
    # Odd sides show rounding mistakes: 27 gives 14 and 7, 21 gives 11 and 6.
    ("wrn_16_4", (2, 3, 27, 21), (3, 3, 27, 21), (1, 3, 27, 21)),
]


class Stage(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, xs):
        return self.layer(xs)


class WideResNet(nn.Module):
    """With the keys of xternalz/WideResNet-pytorch."""

    def __init__(self, depth, widen, num_classes):
        super().__init__()
        assert (depth - 4) % 6 == 0
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        c_in = 16
        for stage in range(3):
            c_out, blocks = 16 * widen << stage, []
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(c_in, c_out, stride, "convShortcut", lambda conv: conv))
                c_in = c_out
            setattr(self, f"block{stage + 1}", Stage(blocks))
        self.bn1 = nn.BatchNorm2d(c_in)
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, xs):
        xs = self.block3(self.block2(self.block1(self.conv1(xs))))
        return self.fc(F.relu(self.bn1(xs)).mean((2, 3)))


def build(name, image, num_classes):
    depth, widen = name.removeprefix("wrn_").split("_")
    return WideResNet(int(depth), int(widen), num_classes)
