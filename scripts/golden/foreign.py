"""Golden values of models whose weights have other names than the zoo's: writes crates/zoo/tests/golden_foreign/*.json.

    python scripts/golden/foreign.py [NAME_PART ...]

A file has the names and shapes of a model of timm, and its logits in f64 with the weights that formula.py gives
these names. The zoo's model must give the same logits once the names are translated, which notices every mix-up,
and what is different in the networks besides.
"""

import sys

import timm
import torch

import formula

NUM_CLASSES = 10

# The zoo's name, timm's, and the images [n, c, h, w]: large enough that the zoo builds the published form.
CASES = [
    ("vgg11", "vgg11", (1, 3, 96, 96)),
    ("mobilenet_v2", "mobilenetv2_100", (2, 3, 96, 96)),
    ("efficientnet_b0", "efficientnet_b0", (2, 3, 96, 96)),
    ("mnasnet1_0", "mnasnet_100", (2, 3, 96, 96)),
    ("mobilenet_v3_large", "mobilenetv3_large_100", (2, 3, 96, 96)),
    ("mobilenet_v3_small", "mobilenetv3_small_100", (2, 3, 96, 96)),
    ("regnet_x_400mf", "regnetx_004_tv", (2, 3, 96, 96)),
    ("regnet_y_400mf", "regnety_004", (2, 3, 96, 96)),
]


def main():
    torch.set_num_threads(1)
    for ours, theirs, shape in CASES:
        if sys.argv[1:] and not any(part in ours for part in sys.argv[1:]):
            continue
        model = formula.fill(timm.create_model(theirs, num_classes=NUM_CLASSES)).eval()
        with torch.no_grad():
            logits = model(formula.tensor("input", shape))
        document = {
            "versions": formula.versions() | {"timm": timm.__version__},
            "source": "timm",
            "theirs": theirs,
            "model": ours,
            "num_classes": NUM_CLASSES,
            "input": shape,
            "logits": logits.tolist(),
            "keys": [[name, list(value.shape)] for name, value in formula.entries(model).items()],
        }
        path = formula.write(f"crates/zoo/tests/golden_foreign/{ours}.json", document)
        print(f"{path.name:28} {path.stat().st_size / 1024:5.1f} KiB  |logits| {logits.abs().max():.2g}", flush=True)


if __name__ == "__main__":
    main()
