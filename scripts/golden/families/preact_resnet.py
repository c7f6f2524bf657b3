"""Pre-activation ResNets of He et al. 2016 (arXiv 1603.05027) for small images."""

import torch.nn.functional as F
from torch import nn

CASES = [
    ("preact_resnet18", (2, 3, 32, 32), (3, 3, 16, 16), (2, 3, 16, 16)),
    # Odd sides show rounding mistakes: 27 gives 14, 7 and 4, 21 gives 11, 6 and 3.
    ("preact_resnet18", (2, 3, 27, 21), (3, 3, 27, 21), (1, 3, 27, 21)),
    ("preact_resnet1001", (1, 3, 8, 12), (16, 3, 8, 8), (1, 3, 4, 4)),
]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions behind normalisations; a change of width is a convolution of the first one's result, which
    `wrap` puts under the key `shortcut`."""

    def __init__(self, c_in, c_out, stride, shortcut="shortcut", wrap=nn.Sequential):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.change = None
        if stride != 1 or c_in != c_out:
            self.change = shortcut
            self.add_module(shortcut, wrap(nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)))

    def forward(self, xs):
        ys = F.relu(self.bn1(xs))
        shortcut = getattr(self, self.change)(ys) if self.change else xs
        return self.conv2(F.relu(self.bn2(self.conv1(ys)))) + shortcut


class PreActResNet18(nn.Module):
    """With the keys of kuangliu/pytorch-cifar."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        c_in = 64
        for stage in range(4):
            c_out = 64 << stage
            first = BasicBlock(c_in, c_out, 2 if stage > 0 else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, BasicBlock(c_out, c_out, 1)))
            c_in = c_out
        self.linear = nn.Linear(c_in, num_classes)

    def forward(self, xs):
        xs = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(xs)))))
        return self.linear(xs.mean((2, 3)))


class PreConv(nn.Module):
    """Normalisation, ReLU, convolution; gives what the convolution saw, too."""

    def __init__(self, c_in, c_out, kernel, stride=1):
        super().__init__()
        self.bn = nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)

    def forward(self, xs):
        xs = F.relu(self.bn(xs))
        return self.conv(xs), xs


class Unit(nn.Module):
    """A bottleneck of three such."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.body = nn.Module()
        self.body.conv1 = PreConv(c_in, c_out // 4, 1)
        self.body.conv2 = PreConv(c_out // 4, c_out // 4, 3, stride)
        self.body.conv3 = PreConv(c_out // 4, c_out, 1)
        self.identity_conv = None
        if stride != 1 or c_in != c_out:
            self.identity_conv = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)

    def forward(self, xs):
        ys, activated = self.body.conv1(xs)
        shortcut = xs if self.identity_conv is None else self.identity_conv(activated)
        return self.body.conv3(self.body.conv2(ys)[0])[0] + shortcut


class PreActResNet1001(nn.Module):
    """With the keys of osmr/imgclsmob (pytorchcv's preresnet1001_cifar10)."""

    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("init_block", nn.Conv2d(3, 16, 3, padding=1, bias=False))
        c_in = 16
        for stage in range(3):
            c_out, units = 64 << stage, nn.Sequential()
            for unit in range(111):
                units.add_module(f"unit{unit + 1}", Unit(c_in, c_out, 2 if stage > 0 and unit == 0 else 1))
                c_in = c_out
            self.features.add_module(f"stage{stage + 1}", units)
        self.features.add_module("post_activ", nn.Sequential())
        self.features.post_activ.add_module("bn", nn.BatchNorm2d(c_in))
        self.output = nn.Linear(c_in, num_classes)

    def forward(self, xs):
        return self.output(F.relu(self.features(xs)).mean((2, 3)))


def build(name, image, num_classes):
    return {"preact_resnet18": PreActResNet18, "preact_resnet1001": PreActResNet1001}[name](num_classes)
