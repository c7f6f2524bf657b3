"""Writes the torch.save files that crates/zoo/tests read, a few KB in all.

    python scripts/make_pth_fixtures.py

Element k (row-major) of every tensor is (k - 3) / 4 if its dtype is a float, k - 3 if it is a signed integer,
k if it is u8 and k % 2 == 0 if it is bool, so the tests need no stored values; `expanded` repeats element 0.
The committed files were written by torch 2.15.0 on CPython 3.11.7.
"""

import argparse
import pathlib
import sys
from collections import OrderedDict

import torch

FOLDER = pathlib.Path(__file__).parent.parent / "crates" / "zoo" / "tests" / "fixtures"


def quarters(*shape, dtype=torch.float32):
    numel = torch.Size(shape).numel()
    return ((torch.arange(numel) - 3) / 4).to(dtype).reshape(shape)


def transposed(*shape):
    """The values of quarters(*shape), stored with the axes reversed."""
    axes = tuple(reversed(range(len(shape))))
    return quarters(*shape).permute(axes).contiguous().permute(axes)


def state_dict():
    shared = torch.cat([torch.full((5,), 99.0), quarters(2, 3).flatten(), torch.full((2,), 99.0)])
    return OrderedDict(
        [
            ("contiguous", quarters(2, 3, 2, 2)),
            ("transposed", transposed(2, 1, 3, 2)),
            ("shared_offset", shared[5:11].reshape(2, 3)),
            ("shared_strided", torch.stack([quarters(4), torch.zeros(4)], 1)[:, 0]),
            ("parameter", torch.nn.Parameter(quarters(3))),
            ("expanded", torch.tensor([-0.75]).expand(4, 2)),
            ("scalar", quarters()),
            ("empty", quarters(0, 3)),
            ("f64", quarters(5, dtype=torch.float64)),
            ("f16", quarters(5, dtype=torch.float16)),
            ("bf16", quarters(5, dtype=torch.bfloat16)),
            ("i64", torch.arange(5) - 3),
            ("i32", (torch.arange(5) - 3).to(torch.int32)),
            ("i8", (torch.arange(5) - 3).to(torch.int8)),
            ("u8", torch.arange(5).to(torch.uint8)),
            ("bool", torch.arange(5) % 2 == 0),
            ("bn.num_batches_tracked", torch.tensor(7)),
        ]
    )


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    # A checkpoint as training scripts write it: wrapped, from DataParallel, with other things beside it.
    wrapped = OrderedDict((f"module.{name}", tensor) for name, tensor in state_dict().items())
    checkpoint = {
        "epoch": 3,
        "best_prec1": 91.75,
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999), data=None),
        "seen": {1, 2, 3},
        "history": [1.5, 2**40, -7, b"bytes", True],
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"params": [0]}]},
        "state_dict": wrapped,
    }
    torch.save(state_dict(), FOLDER / "zip.pth")
    torch.save(checkpoint, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    few = OrderedDict(list(state_dict().items())[:5])
    torch.save(few, FOLDER / "legacy_protocol4.pth", _use_new_zipfile_serialization=False, pickle_protocol=4)
    for path in sorted(FOLDER.glob("*.pth")):
        print(f"{path.name}: {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
