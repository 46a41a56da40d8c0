"""Images with captions: both are packed together, and a small CLIP learns which belong to each other.

    python examples/images_captions.py

Each sample has a JPEG in the field `jpg` and a caption in `txt`. The loader decodes, crops and normalises the
images in its threads, so a batch is a float tensor [B, 3, 32, 32] beside a list of B captions. It prints the
loss, and how many pictures of a set of their own find the right caption among all captions.

With `--data DATASET --test DATASET` it takes packed datasets of yours; `--image` and `--text` name their
fields.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

import shardstream as ss
from shardstream.decode import images

COLOURS = ("red", "green", "blue", "yellow", "white")
SHAPES = ("circle", "square", "triangle")
BUCKETS = 512  # rows of the table of words


def drawings(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Samples to try it on: a shape in a colour on a dark ground, and a sentence that says so."""
    chance = random.Random(seed)
    for number in range(count):
        colour, shape = chance.choice(COLOURS), chance.choice(SHAPES)
        image = Image.new("RGB", (48, 48), (20, 20, 30))
        pen, size = ImageDraw.Draw(image), chance.randint(20, 30)
        left, top = chance.randint(4, 44 - size), chance.randint(4, 44 - size)
        right, bottom = left + size, top + size
        if shape == "circle":
            pen.ellipse((left, top, right, bottom), colour)
        elif shape == "square":
            pen.rectangle((left, top, right, bottom), colour)
        else:
            pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], colour)
        yield {"__key__": f"drawing-{number:04d}", "jpg": image, "txt": f"a {colour} {shape}"}


def word_ids(captions: list[str]) -> tuple[Tensor, Tensor]:
    """The words of all captions as one int64 tensor, and where each caption begins.

    A word's id is a hash that is the same in each process, in place of a vocabulary.
    """
    ids: list[int] = []
    begins: list[int] = []
    for caption in captions:
        begins.append(len(ids))
        ids += [int.from_bytes(word.encode(), "little") % 4093 % BUCKETS for word in caption.lower().split()]
    return torch.tensor(ids), torch.tensor(begins)


class Clip(nn.Module):
    """Puts images and captions into one space, where those that belong together are near."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        self.picture = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, width))
        self.words = nn.EmbeddingBag(BUCKETS, width)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, pixels: Tensor, captions: list[str]) -> Tensor:
        """How near each image [B, 3, 32, 32] is to each of C captions: float [B, C]."""
        pictures = F.normalize(self.picture(pixels), dim=1)
        texts = F.normalize(self.words(*word_ids(captions)), dim=1)
        return self.scale.exp() * pictures @ texts.T


def clip_loss(scores: Tensor, captions: list[str]) -> Tensor:
    """The loss of CLIP. Captions that are equal count as equally right."""
    same = torch.tensor([[float(one == other) for other in captions] for one in captions])
    right = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def found(model: Clip, url: str, options: argparse.Namespace) -> tuple[int, int]:
    """How many pictures are nearest to their own caption, of all captions, and how many there are."""
    decode = images.Evaluate(32, fields=(options.image,))  # the middle, not a random crop
    dataset = ss.StreamingDataset(url, fields=[options.image, options.text], decode=decode)
    batches = list(ss.StreamingLoader(dataset, batch_size=64, last="short"))
    captions = sorted({caption for batch in batches for caption in batch[options.text]})
    right = 0
    with torch.inference_mode():
        for batch in batches:
            nearest = model(batch["image"], captions).argmax(1).tolist()
            right += sum(captions[at] == own for at, own in zip(nearest, batch[options.text], strict=True))
    return right, len(dataset)


def main() -> None:
    """Pack drawings, train on them, and look for the captions of others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a packed dataset of yours to train on; drawings are made without it")
    parser.add_argument("--test", help="another one, whose captions are looked for at the end")
    parser.add_argument("--image", default="jpg", help="the field of the image")
    parser.add_argument("--text", default="txt", help="the field of the caption")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    if bool(options.data) != bool(options.test):
        parser.error("--data and --test go together: pictures of the training would tell too good a result")

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="shardstream-") as folder:
        data, test = options.data, options.test
        if not data:
            data, test = os.path.join(folder, "train"), os.path.join(folder, "test")
            ss.pack(drawings(480, seed=0), data)
            ss.pack(drawings(120, seed=1), test)

        decode = images.Train(32, area=(0.6, 1.0), fields=(options.image,))
        dataset = ss.StreamingDataset(
            data, fields=[options.image, options.text], decode=decode, shuffle=ss.Shuffle(seed=0)
        )
        print(f"{len(dataset)} pictures, the first is {dataset[0][options.text]!r}")
        loader = ss.StreamingLoader(dataset, batch_size=options.batch_size)
        model = Clip()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for epoch in range(options.epochs):
            losses = []
            for batch in loader:
                captions = batch[options.text]  # a list of str; batch["image"] is float [B, 3, 32, 32]
                loss = clip_loss(model(batch["image"], captions), captions)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            print(f"epoch {epoch}  loss {sum(losses) / len(losses):.3f}", flush=True)
        right, of = found(model, test, options)
        print(f"{right} of {of} pictures find their caption")


if __name__ == "__main__":
    main()
