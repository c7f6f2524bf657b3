"""Softmax regression and a multilayer perceptron."""

import torch.nn.functional as F
from torch import nn

CASES = [
    ("softmax", (3, 1, 28, 28), (3, 1, 28, 28), None),
    ("mlp", (3, 1, 28, 28), (3, 1, 28, 28), None),
]


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


def build(name, image, num_classes):
    return {"softmax": Softmax, "mlp": Mlp}[name](image, num_classes)
