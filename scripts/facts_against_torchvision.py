"""Are the facts of the published weights torchvision's? Needs nothing but an installed torchvision.

    pip install torchvision
    python scripts/facts_against_torchvision.py

Compares each entry of models/*.toml whose file torchvision publishes with torchvision's own record of it: model, tag,
start of the hash, top-1 on ImageNet, parameters, and how a picture becomes an input. Names what torchvision has for a
model of ours and we do not list. GoogLeNet and Inception v3 differ in mean and deviation on purpose: torchvision's
`transform_input` turns its own into 0.5 and 0.5 within the network. The exit code is 1 if anything else differs.
"""

import pathlib
import sys
import tomllib

import torchvision.models

FACTS = pathlib.Path(__file__).resolve().parents[1] / "models"

TRANSFORMED = ("googlenet", "inception_v3")
# Backbones of detectors, without a classifier.
WITHOUT_HEAD = ("IMAGENET1K_FEATURES",)


def plain(name):
    return name.replace("_", "")


def published():
    """By URL: torchvision's name of the model, and its record."""
    names = torchvision.models.list_models(module=torchvision.models)
    return {w.url: (name, w) for name in names for w in torchvision.models.get_model_weights(name)}


def preprocessing(weights):
    how = weights.transforms()
    return {
        "mean": list(how.mean),
        "std": list(how.std),
        "image_size": how.crop_size[0],
        "resize": how.resize_size[0],
        "interpolation": how.interpolation.value,
    }


def differences(model, params, entry, inputs, name, weights):
    start_of_hash = weights.url.rsplit("-", 1)[1].split(".")[0]
    theirs = preprocessing(weights)
    if model in TRANSFORMED:
        theirs |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    pairs = {
        "model": (plain(model), plain(name)),
        "tag": (entry["tag"].upper(), weights.name),
        "hash": (entry["sha256"][:8], start_of_hash[:8]),
        "top-1": (entry["top1"], weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]),
        "parameters": (params, weights.meta["num_params"]),
        "preprocessing": (inputs, theirs),
    }
    return [f"{what}: {ours}, torchvision {theirs}" for what, (ours, theirs) in pairs.items() if ours != theirs]


def main():
    records, listed, models, wrong = published(), set(), set(), 0
    for path in sorted(FACTS.glob("*.toml")):
        facts = tomllib.loads(path.read_text())
        for model, spec in facts.get("models", {}).items():
            models.add(plain(model))
            for entry in spec.get("weights", []):
                if entry["url"] not in records:
                    continue
                listed.add(entry["url"])
                inputs = facts["preprocessing"][entry["preprocessing"]]
                found = differences(model, spec["params"], entry, inputs, *records[entry["url"]])
                wrong += bool(found)
                for line in found:
                    print(f"{path.name}, {model}, {entry['tag']}: {line}")
    for url, (name, weights) in records.items():
        if plain(name) in models and url not in listed and weights.name not in WITHOUT_HEAD:
            wrong += 1
            print(f"{name}, {weights.name}: not listed")
    print(f"{len(listed)} files compared, {wrong} differ or are missing")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
