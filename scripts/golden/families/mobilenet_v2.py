"""torchvision's MobileNetV2; images of at most 64 pixels take the CIFAR form."""

import torchvision

CASES = [
    ("mobilenet_v2", (2, 3, 32, 32), (4, 3, 24, 24), (2, 3, 8, 8)),
    ("mobilenet_v2", (2, 3, 97, 75), (2, 3, 97, 75), (1, 3, 33, 65)),
    ("mobilenet_v2_x0_25", (2, 3, 32, 32), (4, 3, 16, 16), None),
    *(
        (f"mobilenet_v2_x{width}", (2, 3, 32, 32), (4, 3, 24, 24), (2, 3, 8, 8))
        for width in ("0_35", "0_5", "0_75", "1_3", "1_4")
    ),
]


def build(name, image, num_classes):
    _, _, width = name.partition("_x")
    model = torchvision.models.mobilenet_v2(
        num_classes=num_classes, width_mult=float(width.replace("_", ".") or 1), dropout=0.0
    )
    if max(image[1:]) <= 64:
        # kuangliu's and chenyaofo's strides: 1 in the stem and in the second stage.
        model.features[0][0].stride = (1, 1)
        model.features[2].conv[1][0].stride = (1, 1)
    return model
