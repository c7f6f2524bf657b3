"""torchvision's RegNets; images of at most 64 pixels enter at full resolution."""

import torchvision

CASES = [
    ("regnet_x_400mf", (2, 3, 32, 32), (4, 3, 24, 24), (2, 3, 8, 8)),
    ("regnet_y_400mf", (2, 3, 32, 32), (4, 3, 24, 24), (2, 3, 8, 8)),
    ("regnet_y_400mf", (1, 3, 97, 75), (2, 3, 97, 75), (1, 3, 67, 45)),
]


def build(name, image, num_classes):
    model = torchvision.models.get_model(name, num_classes=num_classes)
    if max(image[1:]) <= 64:
        model.stem[0].stride = (1, 1)
        block = next(model.trunk_output.block1.children())
        block.proj[0].stride = block.f.b[0].stride = (1, 1)
    return model
