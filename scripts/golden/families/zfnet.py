"""ZFNet of Zeiler and Fergus 2013, figure 3, under the layer names of Caffe's AlexNet."""

from torch import nn

CASES = [
    ("zfnet", (2, 3, 32, 32), (2, 3, 32, 32), None),
    ("zfnet", (1, 3, 67, 75), (1, 3, 67, 75), None),
]


class ZfNet(nn.Module):
    """Maps of 110, 55, 26, 13, 13, 13, 13 and 6 pixels from 224; of at most 64 pixels, a 3x3 stem."""

    def __init__(self, image, num_classes):
        super().__init__()
        c, h, w = image
        small = max(h, w) <= 64
        self.conv1 = nn.Conv2d(c, 96, 3, padding=1) if small else nn.Conv2d(c, 96, 7, stride=2, padding=1)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm = nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2)
        h, w = (self.pixels(side, small) for side in (h, w))
        self.fc6 = nn.Linear(256 * h * w, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    @staticmethod
    def pixels(side, small):
        def pooled(side):
            return -((3 - side) // 2) + 1

        side = pooled(side if small else (side - 5) // 2 + 1)
        return pooled(pooled((side - 5) // 2 + 1))

    def forward(self, xs):
        xs = self.norm(self.pool(self.relu(self.conv1(xs))))
        xs = self.norm(self.pool(self.relu(self.conv2(xs))))
        xs = self.relu(self.conv4(self.relu(self.conv3(xs))))
        xs = self.pool(self.relu(self.conv5(xs)))
        xs = self.relu(self.fc6(xs.flatten(1)))
        return self.fc8(self.relu(self.fc7(xs)))


def build(name, image, num_classes):
    return ZfNet(image, num_classes)
