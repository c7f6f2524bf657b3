"""torchvision's DenseNets; images of at most 64 pixels take the CIFAR stem. densenet_bc_100_12 has the layers of
torchvision's class and the names that gpleiss/efficient_densenet_pytorch gives them."""

import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.densenet import DenseNet

CASES = [
    ("densenet121", (2, 3, 32, 32), (4, 3, 32, 32), (2, 3, 8, 8)),
    *((f"densenet{depth}", (2, 3, 16, 16), (4, 3, 32, 32), (2, 3, 8, 8)) for depth in (161, 169, 201)),
    ("densenet_bc_100_12", (2, 3, 32, 32), (3, 3, 16, 16), (2, 3, 8, 8)),
    # Odd sides show rounding mistakes: 75 gives 38, 19, 9, 4, 2, 67 gives 34, 17, 8, 4, 2 and 33 gives 17, 9, 4, 2, 1.
    ("densenet121", (1, 3, 75, 67), (3, 3, 67, 65), (1, 3, 65, 33)),
]


class CifarDenseNet(nn.Module):
    """Huang et al. 2016, DenseNet-BC with k = 12: three blocks behind a plain 3x3 convolution."""

    def __init__(self, num_classes):
        super().__init__()
        net = DenseNet(growth_rate=12, block_config=(16, 16, 16), num_init_features=24, num_classes=num_classes)
        self.features, self.classifier = nn.Sequential(), net.classifier
        self.features.add_module("conv0", nn.Conv2d(3, 24, 3, padding=1, bias=False))
        for name, layer in net.features.named_children():
            if name.startswith(("denseblock", "transition")):
                self.features.add_module(name, layer)
        self.features.add_module("norm_final", net.features.norm5)

    def forward(self, xs):
        return self.classifier(F.relu(self.features(xs)).mean((2, 3)))


def build(name, image, num_classes):
    if name == "densenet_bc_100_12":
        return CifarDenseNet(num_classes)
    model = torchvision.models.get_model(name, num_classes=num_classes)
    if max(image[1:]) <= 64:
        old = model.features.conv0
        model.features.conv0 = nn.Conv2d(image[0], old.out_channels, 3, padding=1, bias=False)
        model.features.pool0 = nn.Identity()
    return model
