"""timm's ResNeSt; on images of at most 64 pixels its stem does not reduce them."""

import timm
from torch import nn

CASES = [
    ("resnest50", (2, 3, 16, 16), (4, 3, 16, 16), (2, 3, 8, 8)),
    # Odd sides show rounding mistakes; the last maps are 3 x 3 and 3 x 2.
    ("resnest50", (1, 3, 75, 67), (3, 3, 67, 65), (1, 3, 65, 33)),
]


def build(name, image, num_classes):
    model = timm.create_model("resnest50d", num_classes=num_classes)
    if max(image[1:]) <= 64:
        model.conv1[0].stride = (1, 1)
        model.maxpool = nn.Identity()
    return model
