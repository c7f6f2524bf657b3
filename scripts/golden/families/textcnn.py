"""Kim's TextCNN of 2014 under the keys of Shawn1993/cnn-text-classification-pytorch.

A sentence comes as an image whose pixels are words: three bytes normalised to [-1, 1], the lowest first. Numbers count
modulo the rows of the table, so that every image is a sentence. Row 0 is padding, whose vector counts as zero.
"""

import torch
import torch.nn.functional as F
from torch import nn

CASES = [
    ("textcnn", (3, 3, 8, 8), (3, 3, 8, 8), None),
    ("textcnn", (2, 3, 3, 5), (2, 3, 3, 5), None),
]


class TextCnn(nn.Module):
    def __init__(self, num_classes, words=20_000, dim=300, filters=100, widths=(3, 4, 5)):
        super().__init__()
        self.embed = nn.Embedding(words, dim)
        self.convs1 = nn.ModuleList([nn.Conv2d(1, filters, (width, dim)) for width in widths])
        self.fc1 = nn.Linear(filters * len(widths), num_classes)

    def forward(self, xs):
        low, middle, high = ((xs + 1) * 127.5).round().long().flatten(2).unbind(1)
        words = (low + 256 * middle + 65536 * high) % self.embed.num_embeddings
        vectors = self.embed(words) * (words != 0).unsqueeze(2)
        maps = [F.relu(conv(vectors.unsqueeze(1))).squeeze(3) for conv in self.convs1]
        return self.fc1(torch.cat([ys.amax(2) for ys in maps], 1))


def build(name, image, num_classes):
    return TextCnn(num_classes)
