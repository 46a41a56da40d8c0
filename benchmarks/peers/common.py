"""What adapters share. An adapter is a module with

PACKAGES    distributions whose versions are reported
write(corpus, dest, options)        make the contender's own dataset at `dest`
open(corpus, dest, options)         an iterable whose every iteration is a shuffled epoch of batches
count(batch)                        its samples
payloads(corpus, batch)             the bytes that arrived, for the digest
expected(corpus, dest, options)     what the digest of an epoch must be
views(batch)                        optional: the JPEGs of a batch, for options["hash"]: each is hashed
state(corpus, dest, options, fraction)      optional: the state after that part of an epoch
resume(corpus, dest, options, state)        optional: as `loader`, from that state
between(loader)                     optional: called before each timed epoch

options: batch, workers, and codec or whatever else a question gives. With options["decode"], the pixels of
a side, images are to be decoded: batches are dicts of "image", float [B, 3, side, side], and "label".
options["remote"] is where the dataset is in an object store: url, signed (URLs of its files), endpoint, key,
secret, and an empty folder `cache`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus, Digest, document_payload, image_payload

Options = dict[str, Any]


def same(batch: Any) -> Any:
    """A collate function for samples of different sizes: the list itself."""
    return batch


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_crop(height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom, as torchvision's RandomResizedCrop chooses them."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if wide <= width and high <= height:
            left, top = int(random.integers(width - wide + 1)), int(random.integers(height - high + 1))
            return left, top, left + wide, top + high
    side = min(height, width)
    return 0, 0, side, side


class Pillow:
    """Collates {"image", "label"}: the images by Pillow, as torchvision's transforms do it."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.random = np.random.default_rng()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        images = torch.stack([self._one(row["image"]) for row in rows])
        return {"image": images, "label": torch.tensor([row["label"] for row in rows])}

    def _one(self, data: bytes) -> Any:
        import torch
        from PIL import Image

        image = Image.open(io.BytesIO(data)).convert("RGB")
        box = random_crop(image.height, image.width, self.random)
        image = image.crop(box).resize((self.side, self.side), Image.Resampling.BILINEAR)
        if self.random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))


def collate(options: Options) -> Callable[[Any], Any]:
    """The collate function of documents and images: none, or one that decodes."""
    return Pillow(options["decode"]) if "decode" in options else same


def count(batch: Any) -> int:
    """The samples of a list or a tensor, or of decoded images."""
    return len(batch["label"]) if type(batch) is dict else len(batch)


def views(batch: Any) -> list[Any]:
    """The bytes of the images of a list of samples."""
    return [row["image"] for row in batch]


def payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """For batches of rows of tokens, or of dicts with id and text, or image and label."""
    if corpus.kind == "images" and type(batch) is dict:
        yield from label_payloads(batch["image"], batch["label"].tolist())
    elif corpus.kind == "tokens":
        yield from token_payloads(corpus, batch)
    elif corpus.kind == "documents":
        for row in batch:
            yield document_payload(row["id"], row["text"])
    else:
        for row in batch:
            yield image_payload(row["image"], row["label"])


def label_payloads(images: Any, labels: list[int]) -> Iterator[bytes]:
    """Of decoded images the labels: pixels differ with each decoder and crop."""
    if images.shape != (len(labels), 3, images.shape[2], images.shape[2]) or not images.isfinite().all():
        raise ValueError(f"images of shape {tuple(images.shape)} with {len(labels)} labels")
    for label in labels:
        yield b"%d" % label


def token_payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """The rows of a tensor in the corpus's dtype."""
    # uint16 tensors have few operations: to int64 first.
    for row in batch.long().numpy().astype(corpus.dtype):
        yield row.tobytes()


def expected(corpus: Corpus, dest: str, options: Options) -> dict[str, Any]:
    """The corpus as it is; of images that are decoded the labels."""
    if "decode" in options:
        digest = Digest()
        digest.add(b"%d" % label for _, label in corpus.images())
        return digest.facts()
    return {"count": corpus.count, "bytes": corpus.bytes, "digest": corpus.digest}


def samples(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Documents or images as dicts."""
    if corpus.kind == "documents":
        yield from corpus.documents()
    else:
        for path, label in corpus.images():
            with open(path, "rb") as file:
                yield {"image": file.read(), "label": label}
