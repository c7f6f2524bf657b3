"""torchvision's MnasNet; images of at most 64 pixels enter at full resolution."""

import torchvision

CASES = [
    ("mnasnet1_0", (2, 3, 32, 32), (4, 3, 24, 24), (2, 3, 8, 8)),
    ("mnasnet1_0", (1, 3, 97, 75), (2, 3, 97, 75), (1, 3, 67, 45)),
]


def build(name, image, num_classes):
    model = torchvision.models.get_model(name, num_classes=num_classes, dropout=0.0)
    if max(image[1:]) <= 64:
        model.layers[0].stride = (1, 1)
        model.layers[8][0].layers[3].stride = (1, 1)
    return model
