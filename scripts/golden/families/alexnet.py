"""torchvision's AlexNet and that of Krizhevsky et al. 2012; images of at most 64 pixels take a 3x3 stem."""

import torchvision
from torch import nn

CASES = [
    ("alexnet", (2, 3, 32, 32), (2, 3, 32, 32), None),
    ("alexnet_2012", (2, 3, 32, 32), (2, 3, 32, 32), None),
    ("alexnet", (1, 3, 97, 75), (1, 3, 97, 75), None),
    ("alexnet_2012", (1, 3, 79, 67), (1, 3, 79, 67), None),
]


class AlexNet2012(nn.Module):
    """Figure 2 and sections 3.3 to 3.5 of the paper, under Caffe's layer names."""

    def __init__(self, image, num_classes):
        super().__init__()
        c, h, w = image
        small = max(h, w) <= 64
        self.conv1 = nn.Conv2d(c, 96, 3, padding=1) if small else nn.Conv2d(c, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2)
        # The paper's alpha of 1e-4 multiplies the sum of five squares, PyTorch's their mean.
        self.norm = nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2)
        h, w = (self.pixels(side, small) for side in (h, w))
        self.fc6 = nn.Linear(256 * h * w, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    @staticmethod
    def pixels(side, small):
        side = side if small else (side - 11) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        return side

    def halved(self, xs):
        return self.pool(self.norm(xs))

    def forward(self, xs):
        xs = self.halved(self.relu(self.conv1(xs)))
        xs = self.halved(self.relu(self.conv2(xs)))
        xs = self.relu(self.conv4(self.relu(self.conv3(xs))))
        xs = self.pool(self.relu(self.conv5(xs)))
        xs = self.relu(self.fc6(xs.flatten(1)))
        return self.fc8(self.relu(self.fc7(xs)))


def build(name, image, num_classes):
    if name == "alexnet_2012":
        return AlexNet2012(image, num_classes)
    model = torchvision.models.alexnet(num_classes=num_classes, dropout=0)
    if max(image[1:]) <= 64:
        model.features[0] = nn.Conv2d(image[0], 64, 3, padding=1)
        model.avgpool = nn.AdaptiveAvgPool2d(3)
        model.classifier[1] = nn.Linear(256 * 3 * 3, 4096)
    return model
