"""LeNet-5 and Caffe's LeNet."""

import torch.nn.functional as F
from torch import nn

CASES = [
    ("lenet5", (3, 1, 28, 28), (3, 1, 28, 28), None),
    ("lenet5", (3, 3, 32, 32), (3, 3, 32, 32), None),
    ("caffe_lenet", (3, 1, 28, 28), (3, 1, 28, 28), None),
]


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


def build(name, image, num_classes):
    return {"lenet5": LeNet5, "caffe_lenet": CaffeLeNet}[name](image, num_classes)
