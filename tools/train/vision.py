"""Train a small convolutional net on JPEGs with DDP and mixed precision; run it again, and it goes on.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tools/train/vision.py \
        --data DATASET --out DIR --steps 100 [--test DATASET] [--decoder auto|cpu|dali]

DATASET has images in the field `jpg` (or --image) and class numbers in `cls`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from loop import arguments, on_this_rank, train
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import shardstream as ss
from shardstream.decode import dali, images


def chosen(decoder: str) -> str:
    """What "auto" means here: DALI where it is installed and has a GPU to decode on, else the CPU path."""
    if decoder != "auto":
        return decoder
    if not torch.cuda.is_available():
        return "cpu"
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return "cpu"
    return "dali"


def pictures(
    options: argparse.Namespace, url: str, device: torch.device, training: bool
) -> ss.StreamingLoader | ss.DaliLoader:
    """Batches of normalised float32 [B, 3, size, size] and of labels: random crops, for tests the centres."""
    topology = ss.Topology.detect()
    each, left = divmod(options.batch, topology.dp_size)
    if left:
        raise SystemExit(f"--batch {options.batch} does not divide among {topology.dp_size} ranks")
    common: dict[str, Any] = {
        "fields": [options.image, "cls"],
        "shuffle": ss.Shuffle(seed=options.seed) if training else False,
        "cache": options.cache,
        "topology": topology,
    }
    last = "drop" if training else "pad"  # a test counts each image, and those that pad not again
    size, shorter = options.size, round(options.size / 0.875)
    if options.decoder == "dali":
        # On the GPU ("mixed") where there is one; its threads share the cores with those of the other ranks.
        pipeline = dali.imagenet_train(size) if training else dali.imagenet_eval(size, shorter)
        threads = torch.get_num_threads()
        ds = ss.StreamingDataset(url, **common)
        return ss.DaliLoader(ds, pipeline, each, last=last, threads=threads, seed=options.seed)
    fields, gpu = (options.image,), device.type == "cuda"
    decode: images.Images = (
        images.Train(size, fields=fields, seed=options.seed)
        if training
        else images.Evaluate(size, fields=fields, resize=shorter)
    )
    ds = ss.StreamingDataset(url, decode=decode, **common)
    return ss.StreamingLoader(ds, each, last=last, engine=options.engine, pin=gpu, device=device)


def network(classes: int) -> nn.Module:
    """Three convolutions: [B, 3, H, W] to [B, classes]. No batch norm: ranks stay independent."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--test", help="a dataset to count right answers on in the end")
    parser.add_argument(
        "--decoder",
        default="auto",
        choices=("auto", "cpu", "dali"),
        help="auto: DALI where there are a GPU and DALI, else libjpeg-turbo in the loader's threads.\n"
        "A run goes on with the one that it began with: their crops differ",
    )
    parser.add_argument("--image", default="jpg", help="the field of the images")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side of the crops")
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args()
    options.decoder = chosen(options.decoder)
    if options.decoder == "dali" and options.engine != "thread":
        parser.error("--engine is of --decoder cpu: DALI has threads of its own")
    name = images.IMAGE

    def work(device: torch.device) -> None:
        torch.manual_seed(options.seed)
        model = DistributedDataParallel(
            network(options.classes).to(device), device_ids=[device.index] if device.type == "cuda" else None
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)

        def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
            return F.cross_entropy(model(batch[name].to(device)).float(), batch["cls"].to(device))

        loader = pictures(options, options.data, device, training=True)
        train(options, device, model, optimizer, loader, loss_of, lambda batch: len(batch["cls"]), "images")
        if options.test:
            # [right, all] over the ranks.
            counts = torch.zeros(2, dtype=torch.int64, device=device)
            with torch.inference_mode():
                for batch in pictures(options, options.test, device, training=False):
                    real = ~batch["__pad__"].to(device)
                    right = model.module(batch[name].to(device)).argmax(1) == batch["cls"].to(device)
                    counts += torch.stack([(right & real).sum(), real.sum()])
            dist.all_reduce(counts)
            if dist.get_rank() == 0:
                right, total = counts.tolist()
                print(f"{right:,} of {total:,} test images right", flush=True)

    on_this_rank(work)


if __name__ == "__main__":
    main()
