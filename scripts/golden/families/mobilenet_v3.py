"""torchvision's MobileNetV3; images of at most 64 pixels enter at full resolution."""

import torch.nn.functional as F
import torchvision
from torch import nn

CASES = [
    ("mobilenet_v3_small", (3, 3, 32, 32), (3, 3, 16, 16), None),
    ("mobilenet_v3_large", (2, 3, 32, 32), (2, 3, 16, 16), (2, 3, 8, 8)),
    ("mobilenet_v3_small", (1, 3, 97, 75), (2, 3, 97, 75), (1, 3, 67, 45)),
]

# The first bottleneck that halves the map.
FIRST = {"mobilenet_v3_small": 1, "mobilenet_v3_large": 2}


class HardSigmoid(nn.Module):
    """torch's own has 1/6 in single precision in its gradient, whatever the dtype."""

    def forward(self, xs):
        return F.relu6(xs + 3) / 6


def build(name, image, num_classes):
    model = torchvision.models.get_model(name, num_classes=num_classes, dropout=0.0)
    for module in model.modules():
        if hasattr(module, "scale_activation"):
            module.scale_activation = HardSigmoid()
    if max(image[1:]) <= 64:
        model.features[0][0].stride = (1, 1)
        depthwise = [m for m in model.features[FIRST[name]].modules() if getattr(m, "groups", 1) > 1]
        assert depthwise[0].stride == (2, 2)
        depthwise[0].stride = (1, 1)
    return model
