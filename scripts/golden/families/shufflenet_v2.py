"""torchvision's ShuffleNetV2; images of at most 64 pixels take chenyaofo's CIFAR form."""

import torchvision
from torch import nn

CASES = [
    *((f"shufflenet_v2_{width}", (2, 3, 32, 32), (3, 3, 16, 16), None) for width in ("x0_5", "x1_0")),
    *((f"shufflenet_v2_{width}", (2, 3, 32, 32), (4, 3, 24, 24), (2, 3, 8, 8)) for width in ("x1_5", "x2_0")),
    # In training the last maps are 3 x 2.
    ("shufflenet_v2_x0_5", (2, 3, 97, 75), (2, 3, 95, 61), None),
]


def build(name, image, num_classes):
    model = torchvision.models.get_model(name, num_classes=num_classes)
    if max(image[1:]) <= 64:
        model.conv1[0].stride = (1, 1)
        model.maxpool = nn.Identity()
    return model
