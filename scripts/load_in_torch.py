"""Loads a checkpoint of zoo into torchvision's model of the same name, and says what both make of an image.

    python scripts/load_in_torch.py runs/resnet18-cifar10-1/best.safetensors [--image-size N] [--model NAME]

Nothing is translated: the names in a checkpoint are PyTorch's, and every entry of the state dict is there. The
logits printed are those of images given by the formula of scripts/golden/formula.py.
"""

import argparse
import pathlib
import sys

import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))
import formula


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--model", help="name in torchvision, if the file does not say it")
    parser.add_argument("--num-classes", type=int)
    parser.add_argument("--image-size", type=int)
    args = parser.parse_args()
    with safe_open(args.checkpoint, "pt") as file:
        metadata = file.metadata() or {}
    name = args.model or metadata["model"]
    num_classes = args.num_classes or int(metadata.get("num_classes", 1000))
    side = args.image_size or int(metadata.get("image_size", 224))
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if side <= 64 and name.startswith(("resnet", "resnext", "wide_resnet")):
        # The form for small images: a 3x3 convolution with stride 1 and no pooling.
        model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = torch.nn.Identity()
    state = load_file(args.checkpoint)
    model.load_state_dict(state, strict=True)
    print(f"{args.checkpoint}: {len(state)} tensors, all of torchvision's {name} and no others")
    with torch.no_grad():
        print("logits", model.eval()(formula.tensor("input", (1, 3, side, side), torch.float32))[0, :8].tolist())


if __name__ == "__main__":
    main()
