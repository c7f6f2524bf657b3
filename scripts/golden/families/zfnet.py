"""ZFNet of Zeiler and Fergus 2013, figure 3, under the layer names of Caffe's AlexNet."""

from torch import nn

from .alexnet import AlexNet2012

CASES = [
    ("zfnet", (2, 3, 32, 32), (2, 3, 32, 32), None),
    ("zfnet", (1, 3, 67, 75), (1, 3, 67, 75), None),
]


class ZfNet(AlexNet2012):
    """Maps of 110, 55, 26, 13, 13, 13, 13 and 6 pixels from 224; of at most 64 pixels, a 3x3 stem."""

    def __init__(self, image, num_classes):
        super().__init__(image, num_classes)
        c, h, w = image
        if max(h, w) > 64:
            self.conv1 = nn.Conv2d(c, 96, 7, stride=2, padding=1)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)

    @staticmethod
    def pixels(side, small):
        def pooled(side):
            return -((3 - side) // 2) + 1

        side = pooled(side if small else (side - 5) // 2 + 1)
        return pooled(pooled((side - 5) // 2 + 1))

    def halved(self, xs):
        return self.norm(self.pool(xs))


def build(name, image, num_classes):
    return ZfNet(image, num_classes)
