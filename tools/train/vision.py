"""Train a small convolutional net on JPEGs with DDP and mixed precision.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tools/train/vision.py \
        --data DATASET --out DIR --steps 100 [--precision bf16|fp16|fp32] [--size 64]

DATASET has images in the field `jpg` (or --image) and class numbers in `cls`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from loop import arguments, processes, train
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import shardstream as ss


def pictures(samples: list[dict[str, Any]], field: str, size: int) -> dict[str, Any]:
    """A batch of decoded samples, in the loader's threads: uint8 [B, 3, size, size].

    The one place that knows how images are decoded: the dataset's own decoder gave uint8 [H, W, 3].
    """
    rows = []
    for sample in samples:
        image = torch.from_numpy(sample[field]).permute(2, 0, 1).unsqueeze(0).float()
        rows.append(F.interpolate(image, (size, size), mode="area").to(torch.uint8))
    return {
        "images": torch.cat(rows),
        "labels": torch.tensor([sample["cls"] for sample in samples]),
        "__key__": [sample["__key__"] for sample in samples],
    }


def network(classes: int) -> nn.Module:
    """Three convolutions: [B, 3, H, W] to [B, classes]. No batch norm: ranks stay independent."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--image", default="jpg", help="the field of the images")
    parser.add_argument("--size", type=int, default=64, help="pixels that images are scaled to")
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args()
    with processes() as device:
        torch.manual_seed(options.seed)
        topology = ss.Topology.detect()
        ds = ss.StreamingDataset(
            options.data,
            fields=[options.image, "cls"],
            shuffle=ss.Shuffle(seed=options.seed),
            cache=options.cache,
            topology=topology,
        )
        collate = functools.partial(pictures, field=options.image, size=options.size)
        loader = ss.StreamingLoader(
            ds, options.batch // topology.dp_size, collate=collate, engine=options.engine
        )
        model = DistributedDataParallel(
            network(options.classes).to(device), device_ids=[device.index] if device.type == "cuda" else None
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)

        def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
            images = batch["images"].to(device, non_blocking=True).float() / 255
            return F.cross_entropy(model(images).float(), batch["labels"].to(device, non_blocking=True))

        train(
            options, device, model, optimizer, loader, loss_of, lambda batch: len(batch["labels"]), "images"
        )


if __name__ == "__main__":
    main()
