"""torchvision's VGGs; images of at most 64 pixels take the linear layers of chenyaofo/pytorch-cifar-models.

A bias before a batch norm has no gradient in train mode but rounding, so gradients of the _bn models are in eval mode.
"""

import torchvision
from torch import nn

CASES = [
    *((f"vgg{depth}", (2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)) for depth in (11, 13, 16, 19)),
    *((f"vgg{depth}_bn", (2, 3, 32, 32), (3, 3, 32, 32), (1, 3, 32, 32)) for depth in (11, 13, 16, 19)),
    ("vgg11", (1, 3, 33, 64), (1, 3, 33, 64), (1, 3, 33, 64)),
]


def build(name, image, num_classes):
    # The weights of full-sized linear layers are not drawn where they are replaced.
    model = torchvision.models.get_model(name, num_classes=num_classes, dropout=0, init_weights=False)
    if max(image[1:]) <= 64:
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier[0] = nn.Linear(512, 512)
        model.classifier[3] = nn.Linear(512, 512)
        model.classifier[6] = nn.Linear(512, num_classes)
    return model
