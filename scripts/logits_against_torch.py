"""Do networks compute what PyTorch's do? Random weights, a random image, both programs' logits.

    cargo build --release
    python scripts/logits_against_torch.py --seed 1

Each model of torchvision's or timm's that the zoo has is built with random weights, random batch-norm statistics and a
number of classes and a size of image drawn from the seed; odd sizes are among them. Its state dict goes through `zoo
convert`, the image through `zoo predict --logits`. The error is the largest difference of a logit over the largest
logit. The exit code is 1 if one is above 1e-4.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np
import timm
import torch
import torchvision
from PIL import Image

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BOUND = 1e-4
CLASSES = (2, 7, 10, 37, 101)
SIDES = (33, 48, 64, 67, 75, 83, 96, 101, 113, 129, 160, 193)
# Networks that do not take the smallest of them.
LEAST_SIDE = {"inception_v3": 75, "inception_v4": 75, "inception_resnet_v2": 75, "alexnet": 63}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TORCHVISION = """alexnet vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn googlenet inception_v3 resnet18 resnet34
resnet50 resnet101 resnet152 wide_resnet50_2 wide_resnet101_2 resnext50_32x4d resnext101_32x8d resnext101_64x4d densenet121
densenet161 densenet169 densenet201 squeezenet1_0 squeezenet1_1 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 efficientnet_b0 mnasnet1_0 regnet_x_400mf
regnet_y_400mf""".split()
# The zoo's name: timm's. Networks of the first list have the names of timm's parameters here.
TIMM = {
    "inception_v4": "inception_v4",
    "inception_resnet_v2": "inception_resnet_v2",
    "se_resnet50": "seresnet50",
    "resnest50": "resnest50d",
    "mobilenet_v1_100": "mobilenetv1_100",
    "efficientnet_b0": "efficientnet_b0",
    "densenet121": "densenet121",
    "vgg11_bn": "vgg11_bn",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "regnet_y_400mf": "regnety_004",
    "inception_v3": "inception_v3",
    "mnasnet1_0": "mnasnet_100",
}


def built(name, source, num_classes):
    if source == "timm":
        return timm.create_model(TIMM[name], num_classes=num_classes)
    auxiliary = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **auxiliary)


def randomised(model):
    for name, values in model.named_buffers():
        if name.endswith("running_mean"):
            values.normal_(0, 0.1)
        elif name.endswith("running_var"):
            values.uniform_(0.5, 1.5)
    for values in model.parameters():
        if values.dim() == 1:
            values.data.add_(torch.randn_like(values) * 0.1)
    return model.eval()


def zoo(*words):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}:\n{done.stderr}")
    return done.stdout


def compare(binary, name, source, seed, folder):
    """The number of classes, the side of the image and the error."""
    draw = random.Random(f"{name} {source} {seed}")
    torch.manual_seed(draw.getrandbits(32))
    classes = draw.choice(CLASSES)
    side = draw.choice([side for side in SIDES if side >= LEAST_SIDE.get(name, 0)])
    model = randomised(built(name, source, classes))
    weights, converted, picture = folder / "weights.pth", folder / "weights.safetensors", folder / "picture.png"
    torch.save(model.state_dict(), weights)
    noise = np.random.default_rng(draw.getrandbits(32)).integers(0, 256, (side // 4 + 1, side // 4 + 1, 3), np.uint8)
    # Neighbouring pixels are alike, as in photographs.
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    image.save(picture)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        expected = model((pixels - mean) / std)[0].double().numpy()
    zoo(binary, "convert", weights, converted, "--model", name)
    statistics = [f"--{option}={','.join(map(str, values))}" for option, values in (("mean", MEAN), ("std", STD))]
    size = ["--image-size", side, "--resize", side, "--stem", "imagenet"]
    words = [binary, "predict", "--model", name, "--weights", converted, "--logits", "--json", *size, *statistics]
    logits = np.array(json.loads(zoo(*words, picture))[0]["logits"])
    return classes, side, np.abs(logits - expected).max() / np.abs(expected).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", help="instead of all")
    parser.add_argument("--zoo", default=str(REPOSITORY / "target/release/zoo"), help="the binary")
    args = parser.parse_args()
    asked = [(name, "torchvision") for name in TORCHVISION] + [(name, "timm") for name in TIMM]
    asked = [(name, source) for name, source in asked if not args.models or name in args.models]
    print(f"{'model':22}{'of':12}{'classes':>8}{'pixels':>8}{'error':>10}")
    wrong = 0
    for name, source in asked:
        with tempfile.TemporaryDirectory() as folder:
            classes, side, error = compare(args.zoo, name, source, args.seed, pathlib.Path(folder))
        wrong += not error <= BOUND
        print(f"{name:22}{source:12}{classes:8}{side:8}{error:10.1e}{'' if error <= BOUND else '  WRONG'}", flush=True)
    print(f"{len(asked) - wrong} of {len(asked)} within {BOUND:g}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
