"""torchvision's Inception v3; images of at most 64 pixels take the CIFAR stem."""

import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import inception

CASES = [
    ("inception_v3", (2, 3, 16, 16), (2, 3, 16, 16), "f64"),
    ("inception_v3", (1, 3, 75, 91), (2, 3, 107, 107), (1, 3, 75, 75)),
]

# 0.4 as in the released TensorFlow model.
AUXILIARY = [("aux_logits", 0.4)]


class InceptionAux(inception.InceptionAux):
    """torchvision's, except that maps too small for its pool are averaged to 5 x 5."""

    def forward(self, xs):
        if min(xs.shape[2:]) < 17:
            xs = F.adaptive_avg_pool2d(xs, (5, 5))
        else:
            xs = F.avg_pool2d(xs, kernel_size=5, stride=3)
        xs = F.adaptive_avg_pool2d(self.conv1(self.conv0(xs)), (1, 1))
        return self.fc(xs.flatten(1))


def build(name, image, num_classes):
    names = "BasicConv2d InceptionA InceptionB InceptionC InceptionD InceptionE".split()
    blocks = [getattr(inception, name) for name in names]
    model = torchvision.models.Inception3(
        num_classes=num_classes, inception_blocks=[*blocks, InceptionAux], init_weights=False, dropout=0.0
    )
    if max(image[1:]) <= 64:
        model.Conv2d_1a_3x3.conv.stride = (1, 1)
        model.Conv2d_1a_3x3.conv.padding = (1, 1)
        model.Conv2d_2a_3x3.conv.padding = (1, 1)
        model.maxpool1 = model.maxpool2 = nn.Identity()
    return model
