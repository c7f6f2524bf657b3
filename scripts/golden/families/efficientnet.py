"""torchvision's EfficientNet without dropout and stochastic depth; small images enter at full resolution."""

import torchvision

CASES = [
    ("efficientnet_b0", (2, 3, 32, 32), (3, 3, 32, 32), None),
    ("efficientnet_b0", (2, 3, 97, 75), (2, 3, 97, 75), (2, 3, 67, 45)),
]


def build(name, image, num_classes):
    model = torchvision.models.get_model(name, num_classes=num_classes, dropout=0.0, stochastic_depth_prob=0.0)
    if max(image[1:]) <= 64:
        # kuangliu/pytorch-cifar's stem.
        model.features[0][0].stride = (1, 1)
    return model
