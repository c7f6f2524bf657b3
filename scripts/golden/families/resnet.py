"""torchvision's ResNets; images of at most 64 pixels take the CIFAR stem."""

import torchvision
from torch import nn

CASES = [
    ("resnet18", (3, 3, 32, 32), (2, 3, 16, 16), None),
    *((f"resnet{depth}", (3, 3, 32, 32), (4, 3, 32, 32), (2, 3, 8, 8)) for depth in (34, 50, 101, 152)),
    # Odd sides show rounding mistakes; the last maps are 4 x 3, 3 x 3.
    ("resnet18", (2, 3, 97, 75), (2, 3, 67, 65), None),
    ("resnet50", (2, 3, 97, 75), (2, 3, 97, 75), (1, 3, 67, 65)),
]


def build(name, image, num_classes):
    model = torchvision.models.get_model(name, num_classes=num_classes)
    if max(image[1:]) <= 64:
        model.conv1 = nn.Conv2d(image[0], 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
