"""MobileNet under timm's keys, and RetinaFace's backbone of it."""

import torch
import torch.nn.functional as F
from torch import nn

CASES = [
    *((f"mobilenet_v1_{width}", (3, 3, 32, 32), (4, 3, 32, 32), None) for width in ("025", "025_leaky")),
    *((f"mobilenet_v1_{width}", (2, 3, 32, 32), (4, 3, 32, 32), (2, 3, 16, 16)) for width in ("050", "075", "100")),
    ("mobilenet_v1_025", (2, 3, 97, 75), (2, 3, 97, 75), None),
]

# The slope of the leaky ReLU, in single precision in all computations.
SLOPE = torch.tensor(0.1).item()

# Channels and blocks of each stage.
STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))


class Separable(nn.Module):
    """timm's DepthwiseSeparableConv."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv_dw = nn.Conv2d(c_in, c_in, 3, stride=stride, padding=1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv_pw = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, xs):
        xs = F.relu6(self.bn1(self.conv_dw(xs)))
        return F.relu6(self.bn2(self.conv_pw(xs)))


class MobileNetV1(nn.Module):
    """Howard et al. 2017, table 1, with the keys of timm's mobilenetv1_100."""

    def __init__(self, width, small, num_classes):
        super().__init__()
        c_in = int(32 * width)
        self.conv_stem = nn.Conv2d(3, c_in, 3, stride=1 if small else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        stages = []
        for stage, (channels, depth) in enumerate(STAGES):
            blocks = []
            for block in range(depth):
                c_out = int(channels * width)
                blocks.append(Separable(c_in, c_out, 2 if stage > 0 and block == 0 else 1))
                c_in = c_out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(c_in, num_classes)

    def forward(self, xs):
        xs = self.blocks(F.relu6(self.bn1(self.conv_stem(xs))))
        return self.classifier(xs.mean((2, 3)))


class RetinaFaceBackbone(nn.Module):
    """The class MobileNetV1 of biubug6/Pytorch_Retinaface: width 0.25, leaky ReLU of slope 0.1."""

    def __init__(self, small, num_classes):
        super().__init__()

        def conv(c_in, c_out, kernel, stride=1, groups=1):
            layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
            return layer, nn.BatchNorm2d(c_out), nn.LeakyReLU(SLOPE)

        blocks, c_in = [nn.Sequential(*conv(3, 8, 3, 1 if small else 2))], 8
        for stage, (channels, depth) in enumerate(STAGES):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(nn.Sequential(*conv(c_in, c_in, 3, stride, c_in), *conv(c_in, channels // 4, 1)))
                c_in = channels // 4
        self.stage1 = nn.Sequential(*blocks[:6])
        self.stage2 = nn.Sequential(*blocks[6:12])
        self.stage3 = nn.Sequential(*blocks[12:])
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, xs):
        xs = self.stage3(self.stage2(self.stage1(xs)))
        return self.fc(xs.mean((2, 3)))


def build(name, image, num_classes):
    small = max(image[1:]) <= 64
    if name.endswith("leaky"):
        return RetinaFaceBackbone(small, num_classes)
    return MobileNetV1(int(name.removeprefix("mobilenet_v1_")) / 100, small, num_classes)
