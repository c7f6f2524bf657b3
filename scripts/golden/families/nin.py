"""Network in Network: its authors' networks for CIFAR-10 and ImageNet under the keys of ProGamerGov/pytorch-nin."""

from torch import nn

CASES = [
    ("nin", (2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 16, 16)),
    ("nin_imagenet", (2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 16, 16)),
    ("nin", (2, 3, 29, 41), (2, 3, 29, 41), (1, 3, 13, 17)),
    ("nin_imagenet", (1, 3, 97, 75), (1, 3, 97, 75), (1, 3, 69, 67)),
]


def mlpconv(c_in, widths, *window):
    """A convolution and two 1x1 convolutions, each with ReLU."""
    a, b, c = widths
    return [
        *(nn.Conv2d(c_in, a, *window), nn.ReLU()),
        *(nn.Conv2d(a, b, 1), nn.ReLU()),
        *(nn.Conv2d(b, c, 1), nn.ReLU()),
    ]


class NetworkInNetwork(nn.Module):
    def __init__(self, *features):
        super().__init__()
        self.features = nn.Sequential(*features)

    def forward(self, xs):
        return self.features(xs).mean((2, 3))


def build(name, image, num_classes):
    c, pool = image[0], nn.MaxPool2d(3, stride=2, ceil_mode=True)
    if name == "nin":
        return NetworkInNetwork(
            *mlpconv(c, (192, 160, 96), 5, 1, 2),
            *(pool, nn.Identity()),  # in the place of dropout
            *mlpconv(96, (192, 192, 192), 5, 1, 2),
            *(nn.AvgPool2d(3, stride=2, ceil_mode=True), nn.Identity()),
            *mlpconv(192, (192, 192, num_classes), 3, 1, 1),
        )
    stem = (3, 1, 1) if max(image[1:]) <= 64 else (11, 4, 0)
    return NetworkInNetwork(
        *mlpconv(c, (96, 96, 96), *stem),
        pool,
        *mlpconv(96, (256, 256, 256), 5, 1, 2),
        pool,
        *mlpconv(256, (384, 384, 384), 3, 1, 1),
        *(pool, nn.Identity()),
        *mlpconv(384, (1024, 1024, num_classes), 3, 1, 1),
    )
