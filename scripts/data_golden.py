"""Golden values of zoo-data: what Pillow and torchvision make of pictures given by a formula.

    python3 scripts/data_golden.py > crates/data/tests/golden/pillow.txt

A line is a request, then `=`, then FNV-1a (64 bits) of the resulting bytes and the first six of them.
"""

import sys

import numpy as np
import PIL
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F


def picture(h, w, c):
    """Smooth in places, rough in others; the same formula as in the tests."""
    y, x, k = np.meshgrid(np.arange(h), np.arange(w), np.arange(c), indexing="ij")
    values = (x * x * 7 + y * y * 3 + x * y * (k + 1) + k * 61) // 11 + ((x * 37) ^ (y * 101)) % 53
    values = (values % 256).astype(np.uint8)
    return Image.fromarray(values if c == 3 else values[:, :, 0])


def line(request, image):
    data = np.asarray(image).tobytes()
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    print(request, "=", f"{digest:016x}", *data[:6])


print(f"# Pillow {PIL.__version__}, torchvision {torchvision.__version__.split('+')[0]}, Python {sys.version.split()[0]}")

for h, w, c in [(28, 28, 1), (32, 32, 3), (47, 61, 3), (300, 200, 3), (13, 500, 1), (1, 1, 3), (5, 3, 1)]:
    for to_h, to_w in [(32, 32), (28, 28), (224, 224), (17, 90), (1, 1), (h, 7), (9, w)]:
        line(f"resize {h} {w} {c} {to_h} {to_w}", picture(h, w, c).resize((to_w, to_h), Image.Resampling.BILINEAR))
        line(f"bicubic {h} {w} {c} {to_h} {to_w}", picture(h, w, c).resize((to_w, to_h), Image.Resampling.BICUBIC))

for h, w, c, size, crop in [
    (300, 200, 3, 256, 224),
    (213, 320, 3, 112, 98),
    (47, 61, 3, 32, 32),
    (28, 28, 1, 73, 64),
    (333, 222, 3, 101, 100),
    (100, 131, 1, 77, 70),
]:
    line(f"prepare {h} {w} {c} {size} {crop}", F.center_crop(F.resize(picture(h, w, c), size), crop))

for h, w in [(17, 40), (64, 64)]:
    line(f"grey {h} {w}", picture(h, w, 3).convert("L"))

NEAREST = InterpolationMode.NEAREST


def degrees(shear):
    return float(np.degrees(np.arctan(shear)))


def affine(image, translate=(0, 0), shear=(0.0, 0.0), center=None):
    return F.affine(image, 0.0, list(translate), 1.0, list(shear), NEAREST, None, center)


OPERATIONS = {
    "ShearX": lambda image, m: affine(image, shear=(degrees(m), 0.0), center=[0, 0]),
    "ShearY": lambda image, m: affine(image, shear=(0.0, degrees(m)), center=[0, 0]),
    "TranslateX": lambda image, m: affine(image, translate=(int(m), 0)),
    "TranslateY": lambda image, m: affine(image, translate=(0, int(m))),
    "Rotate": lambda image, m: F.rotate(image, m, NEAREST),
    "Brightness": lambda image, m: F.adjust_brightness(image, 1.0 + m),
    "Color": lambda image, m: F.adjust_saturation(image, 1.0 + m),
    "Contrast": lambda image, m: F.adjust_contrast(image, 1.0 + m),
    "Sharpness": lambda image, m: F.adjust_sharpness(image, 1.0 + m),
    "Posterize": lambda image, m: F.posterize(image, int(m)),
    "Solarize": lambda image, m: F.solarize(image, m),
    "AutoContrast": lambda image, m: F.autocontrast(image),
    "Equalize": lambda image, m: F.equalize(image),
}
SIGNED = {"ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0, "TranslateY": 32.0, "Rotate": 135.0}
SIGNED |= {name: 0.99 for name in ("Brightness", "Color", "Contrast", "Sharpness")}

for h, w, c in [(32, 32, 3), (28, 28, 1), (50, 37, 3), (150, 180, 3)]:
    for name, operation in OPERATIONS.items():
        if name in SIGNED:
            bins = [SIGNED[name] * sign * k / 30 for k in (1, 7, 18, 30) for sign in (1, -1)]
        else:
            bins = {"Posterize": [8.0, 5.0, 2.0], "Solarize": [255.0, 76.5, 0.0]}.get(name, [0.0])
        for magnitude in bins:
            image = picture(h, w, c)
            if name in ("AutoContrast", "Equalize"):
                image = F.adjust_contrast(image, 0.4)
            line(f"operation {name} {magnitude!r} {h} {w} {c}", operation(image, magnitude))
