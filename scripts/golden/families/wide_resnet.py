"""torchvision's wide ResNets; images of at most 64 pixels take the CIFAR stem."""

from .resnet import build

CASES = [
    ("wide_resnet50_2", (2, 3, 16, 16), (4, 3, 16, 16), (2, 3, 8, 8)),
    ("wide_resnet101_2", (2, 3, 16, 16), (4, 3, 16, 16), (2, 3, 8, 8)),
    # Odd sides show rounding mistakes; the last maps are 3 x 3 and 3 x 2.
    ("wide_resnet50_2", (1, 3, 75, 67), (3, 3, 67, 65), (1, 3, 65, 33)),
]

__all__ = ["CASES", "build"]
