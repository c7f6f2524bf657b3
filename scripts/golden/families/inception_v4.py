"""timm's Inception v4; images of at most 64 pixels take the CIFAR stem."""

import timm
from torch import nn

CASES = [
    ("inception_v4", (1, 3, 16, 16), (8, 3, 16, 16), (1, 3, 12, 12)),
    ("inception_v4", (1, 3, 75, 91), (8, 3, 107, 107), (1, 3, 75, 75)),
]


def build(name, image, num_classes):
    model = timm.create_model(name, num_classes=num_classes)
    if max(image[1:]) <= 64:
        stem = model.features
        # All but the first convolution keep the map's size.
        strided = [stem[0].conv, stem[3].conv.conv, stem[5].conv.conv]
        padded = [stem[1].conv, stem[4].branch0[1].conv, stem[4].branch1[3].conv, *strided[1:]]
        for conv in strided:
            conv.stride = (1, 1)
        for conv in padded:
            conv.padding = (1, 1)
        stem[3].maxpool = nn.MaxPool2d(3, stride=1, padding=1)
        stem[5].maxpool = nn.MaxPool2d(3, stride=1, padding=1)
    return model
