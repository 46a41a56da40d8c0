"""A mixture: two corpora in fixed proportions, stopped in the middle and resumed.

    python examples/mixture.py

Two corpora of different sizes are packed, each alone. `ss.Mixture` draws from them by weight, so the
proportions are not those of the sizes, and changing them needs no packing. Each batch says in "__source__"
which corpus a sample is of. It prints how many samples came from each, as they were asked for and as they
came. Then a second loader goes on from the state that the first one left, and gives what the first one would
have given.

With `--data A B` it mixes two packed datasets of yours.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter

import shardstream as ss


def make(folder: str, name: str, count: int) -> str:
    """A packed corpus to try it on."""
    samples = ({"__key__": f"{name}-{number:04d}", "txt": f"{name} {number}"} for number in range(count))
    url = os.path.join(folder, name)
    ss.pack(samples, url)
    return url


def loader_of(urls: list[str], weights: list[float], batch_size: int) -> ss.StreamingLoader:
    """Batches of the mixture, from its beginning."""
    datasets = [ss.StreamingDataset(url, fields=["txt"], shuffle=ss.Shuffle(seed=0)) for url in urls]
    # stop="first" ends the epoch when one corpus has been read once; with "all" the smaller ones come again.
    mixture = ss.Mixture(list(zip(datasets, weights, strict=True)), stop="first")
    return ss.StreamingLoader(mixture, batch_size=batch_size)


def drawn(loader: ss.StreamingLoader, steps: int | None = None) -> tuple[list[str], Counter[int]]:
    """The keys of the next `steps` batches, or of all that are left, and how many are of each corpus."""
    keys: list[str] = []
    counts: Counter[int] = Counter()
    for step, batch in enumerate(loader, start=1):
        keys += batch["__key__"]
        counts.update(batch["__source__"].tolist())
        if step == steps:
            break
    return keys, counts


def main() -> None:
    """Mix, stop, resume, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs=2, metavar=("A", "B"), help="two packed datasets with the field txt")
    parser.add_argument("--weights", nargs=2, type=float, default=[0.7, 0.3], metavar=("A", "B"))
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--stop-at", type=int, default=10, help="the step after which the first run stops")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="shardstream-") as folder:
        urls = options.data or [make(folder, "code", 400), make(folder, "prose", 1000)]
        sizes = [ss.StreamingDataset(url).total for url in urls]

        whole, counts = drawn(loader_of(urls, options.weights, options.batch_size))
        for number, (url, weight) in enumerate(zip(urls, options.weights, strict=True)):
            asked, came = weight / sum(options.weights), counts[number] / len(whole)
            name = os.path.basename(url.rstrip("/"))
            print(f"{name}: {sizes[number]} samples, weight {asked:.3f}, drawn {counts[number]} ({came:.3f})")

        first = loader_of(urls, options.weights, options.batch_size)
        before, _ = drawn(first, options.stop_at)
        state = os.path.join(folder, "state.json")
        with open(state, "w", encoding="utf-8") as file:
            json.dump(first.state_dict(), file)  # with a model, ss.Checkpoints keeps it beside the weights
        print(f"stopped after {len(before)} samples; the state has {os.path.getsize(state)} bytes")

        second = loader_of(urls, options.weights, options.batch_size)
        with open(state, encoding="utf-8") as file:
            second.load_state_dict(json.load(file))
        after, _ = drawn(second)
        if before + after != whole:
            raise SystemExit("the resumed run gave other samples")
        print(f"resumed: the other {len(after)} samples are those of the run that was not stopped")


if __name__ == "__main__":
    main()
