"""The network of airbench94 under the keys of KellerJordan/cifar10-airbench."""

from torch import nn

CASES = [
    ("airbench94", (2, 3, 32, 32), (4, 3, 32, 32), (2, 3, 32, 32)),
    ("airbench94", (2, 1, 53, 77), (3, 1, 53, 77), (2, 1, 53, 77)),
]


class Group(nn.Module):
    """Two convolutions with a pool between them."""

    def __init__(self, c_in, c_out):
        super().__init__()
        for i, channels in enumerate((c_in, c_out), 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, c_out, 3, padding=1, bias=False))
            self.add_module(f"norm{i}", nn.BatchNorm2d(c_out, eps=1e-12, momentum=0.4))
        self.pool, self.activation = nn.MaxPool2d(2), nn.GELU()

    def forward(self, xs):
        xs = self.activation(self.norm1(self.pool(self.conv1(xs))))
        return self.activation(self.norm2(self.conv2(xs)))


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, xs):
        return xs * self.factor


def build(name, image, num_classes):
    channels, height, width = image
    left = [(side - 1) // 2 // 2 // 2 // 3 for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 8 * channels, 2),
        nn.GELU(),
        Group(8 * channels, 64),
        Group(64, 256),
        Group(256, 256),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(256 * left[0] * left[1], num_classes, bias=False),
        Times(1 / 9),
    )
