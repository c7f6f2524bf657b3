"""torchvision's GoogLeNet; images of at most 64 pixels take the CIFAR stem."""

import torchvision
from torch import nn

CASES = [
    ("googlenet", (2, 3, 16, 16), (2, 3, 8, 8), None),
    # The published stem; odd sides, so that the pools hang over the edges.
    ("googlenet", (2, 3, 67, 91), (2, 3, 67, 91), (1, 3, 67, 45)),
]

# The losses of 4a's and 4d's heads count 0.3 (section 5).
AUXILIARY = [("aux_logits1", 0.3), ("aux_logits2", 0.3)]


def build(name, image, num_classes):
    model = torchvision.models.googlenet(num_classes=num_classes, init_weights=False, dropout=0.0, dropout_aux=0.0)
    if max(image[1:]) <= 64:
        model.conv1.conv = nn.Conv2d(image[0], 64, 3, padding=1, bias=False)
        model.maxpool1 = model.maxpool2 = nn.Identity()
    return model
