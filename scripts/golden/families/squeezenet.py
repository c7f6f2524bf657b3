"""torchvision's SqueezeNets; images of at most 64 pixels take a 3x3 stem of stride 1."""

import torchvision
from torch import nn

CASES = [
    ("squeezenet1_0", (2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 20, 20)),
    ("squeezenet1_1", (2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 20, 20)),
    ("squeezenet1_0", (2, 3, 97, 75), (2, 3, 97, 75), (1, 3, 71, 66)),
    ("squeezenet1_1", (2, 3, 97, 75), (2, 3, 97, 75), (1, 3, 71, 66)),
]


def build(name, image, num_classes):
    model = torchvision.models.get_model(name, num_classes=num_classes, dropout=0)
    if max(image[1:]) <= 64:
        model.features[0] = nn.Conv2d(image[0], model.features[0].out_channels, 3, padding=1)
    return model
