"""The CIFAR ResNets of He et al. 2015, section 4.2."""

import torch.nn.functional as F
from torch import nn

CASES = [
    (f"cifar_resnet{depth}{option}", (3, 3, 32, 32), train, None)
    for depth, option, train in (
        (20, "", (3, 3, 32, 32)),
        (20, "b", (3, 3, 32, 32)),
        (32, "", (2, 3, 24, 24)),
        (32, "b", (2, 3, 24, 24)),
        (44, "", (2, 3, 16, 16)),
        (44, "b", (2, 3, 16, 16)),
        (56, "", (2, 3, 16, 16)),
        (56, "b", (2, 3, 16, 16)),
        (110, "", (2, 3, 12, 12)),
        (110, "b", (2, 3, 8, 12)),
    )
]


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, option A (no parameters) or B (1x1 convolution)."""

    def __init__(self, c_in, c_out, stride, option):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride, self.extra = stride, c_out - c_in
        self.downsample = None
        if option == "B" and (stride != 1 or c_in != c_out):
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out))

    def shortcut(self, xs):
        if self.downsample is not None:
            return self.downsample(xs)
        # Option A: every stride-th pixel, with zero channels added half before and half after.
        xs = xs[:, :, :: self.stride, :: self.stride]
        return F.pad(xs, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))

    def forward(self, xs):
        ys = F.relu(self.bn1(self.conv1(xs)))
        return F.relu(self.bn2(self.conv2(ys)) + self.shortcut(xs))


class CifarResNet(nn.Module):
    """He et al. 2015, section 4.2: 6n + 2 layers of widths 16, 32, 64.

    Option A has the keys of akamaster/pytorch_resnet_cifar10 (head `linear`), option B those of
    chenyaofo/pytorch-cifar-models (head `fc`).
    """

    def __init__(self, depth, option, num_classes):
        super().__init__()
        assert (depth - 2) % 6 == 0
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        c_in = 16
        for stage, c_out in enumerate((16, 32, 64), start=1):
            blocks = []
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(CifarBlock(c_in, c_out, stride, option))
                c_in = c_out
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.head = "linear" if option == "A" else "fc"
        setattr(self, self.head, nn.Linear(64, num_classes))

    def forward(self, xs):
        xs = F.relu(self.bn1(self.conv1(xs)))
        xs = self.layer3(self.layer2(self.layer1(xs)))
        return getattr(self, self.head)(xs.mean((2, 3)))


def build(name, image, num_classes):
    depth = name.removeprefix("cifar_resnet")
    return CifarResNet(int(depth.removesuffix("b")), "B" if depth.endswith("b") else "A", num_classes)
