"""The models torchvision lacks, under the state-dict keys their published weights have."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn


class Softmax(nn.Module):
    """Softmax regression: one linear layer on the pixels."""

    def __init__(self, image, num_classes):
        super().__init__()
        c, h, w = image
        self.fc = nn.Linear(c * h * w, num_classes)

    def forward(self, xs):
        return self.fc(xs.flatten(1))


class Mlp(nn.Module):
    """Two hidden ReLU layers of 512 and 256 units."""

    def __init__(self, image, num_classes):
        super().__init__()
        c, h, w = image
        self.fc1 = nn.Linear(c * h * w, 512)
        self.fc2 = nn.Linear(512, 256)
        self.fc3 = nn.Linear(256, num_classes)

    def forward(self, xs):
        xs = F.relu(self.fc1(xs.flatten(1)))
        return self.fc3(F.relu(self.fc2(xs)))


class LeNet5(nn.Module):
    """LeCun et al. 1998, figure 2, widths 6-16-120-84, with ReLU and max-pooling as is usual today."""

    def __init__(self, image, num_classes):
        super().__init__()
        c, h, w = image
        # The paper's images are 32 x 32; smaller ones are padded so that 28 x 28 gives the same maps.
        padding = 2 if min(h, w) < 32 else 0
        self.conv1 = nn.Conv2d(c, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        h, w = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (h, w))
        self.fc1 = nn.Linear(16 * h * w, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, xs):
        xs = F.max_pool2d(F.relu(self.conv1(xs)), 2)
        xs = F.max_pool2d(F.relu(self.conv2(xs)), 2)
        xs = F.relu(self.fc1(xs.flatten(1)))
        return self.fc3(F.relu(self.fc2(xs)))


class CaffeLeNet(nn.Module):
    """Caffe's MNIST example: 20-50-500, no activation after the convolutions."""

    def __init__(self, image, num_classes):
        super().__init__()
        c, h, w = image
        self.conv1 = nn.Conv2d(c, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        h, w = (((side - 4) // 2 - 4) // 2 for side in (h, w))
        self.ip1 = nn.Linear(50 * h * w, 500)
        self.ip2 = nn.Linear(500, num_classes)

    def forward(self, xs):
        xs = F.max_pool2d(self.conv1(xs), 2)
        xs = F.max_pool2d(self.conv2(xs), 2)
        return self.ip2(F.relu(self.ip1(xs.flatten(1))))


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


def resnet(name, image, num_classes):
    """torchvision's ResNet; images of at most 64 pixels take the CIFAR stem."""
    model = torchvision.models.get_model(name, num_classes=num_classes)
    if max(image[1:]) <= 64:
        model.conv1 = nn.Conv2d(image[0], 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def build(name: str, image: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The model `name` of the registry for images of [c, h, w]."""
    plain = {"softmax": Softmax, "mlp": Mlp, "lenet5": LeNet5, "caffe_lenet": CaffeLeNet}
    if name in plain:
        return plain[name](image, num_classes)
    if name.startswith("cifar_resnet"):
        depth = name.removeprefix("cifar_resnet")
        return CifarResNet(int(depth.removesuffix("b")), "B" if depth.endswith("b") else "A", num_classes)
    return resnet(name, image, num_classes)


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
