"""How well does each shuffle mix a sorted corpus? Writes docs/shuffle-quality.md and its picture.

    python -m benchmarks.shuffle_quality --peers PYTHON [--docs docs]

Sample i of N has the label i / N: shards hold neighbours, as where a corpus was packed source by
source. Orders are computed by each library's own code; nothing is read.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import ROOT

Ints = NDArray[np.int64]
SHARDS, SIZE, FRAMES, BATCH = 1000, 1000, 20, 256
RANKS, WORKERS = 8, 8
TITLES = {
    "webdataset": "WebDataset, buffer 1,000",
    "litdata": "LitData",
    "py1e": "MDS py1e (default)",
    "py1br": "MDS py1br (default)",
    "py1e-small": "MDS py1e, blocks of 1/16 of the corpus",
    "py1br-small": "MDS py1br, blocks of 1/16 of the corpus",
}


def ours(window: int, lanes: int) -> Ints:
    """The order of a dataset with shards of `FRAMES` frames."""
    from shardstream.order.lanes import Order, recent_windows
    from shardstream.order.shuffle import Shuffle

    first = np.linspace(0, SIZE, FRAMES + 1).astype(np.int64)
    shuffle = Shuffle(seed=1, lanes=lanes, window=window)
    order = Order([SIZE] * SHARDS, lambda _: first, shuffle, 0, lanes, recent=recent_windows(1 << 30))
    # In pieces, as a loader does: the work grows with shards times positions asked for at once.
    pieces = [order.locate(part) for part in np.array_split(np.arange(SHARDS * SIZE), SHARDS)]
    return np.concatenate([shards * SIZE + samples for shards, samples in pieces])


def peer(name: str, python: str, streams: int) -> Ints:
    """The order of a peer, `streams` workers' batches in turn."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/order.npy"
        command = [python, "-m", "benchmarks.shuffle_peers", name, *map(str, (SHARDS, SIZE, streams)), path]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        if done.returncode:
            sys.exit(done.stderr)
        return interleave(np.load(path))


def interleave(streams: Ints) -> Ints:
    """Global batches of 8 ranks with 8 workers each, whose workers give whole batches in turn."""
    if len(streams) == 1:
        return streams[0]
    share = BATCH // RANKS
    turns = streams.shape[1] // share
    cut = streams[:, : turns * share].reshape(RANKS, WORKERS, turns, share)
    return cut.transpose(2, 1, 0, 3).reshape(-1)


def measures(order: Ints) -> dict[str, float]:
    """What is reported of an order.

    travel: mean |place in the order - place in the corpus| / N; a full permutation has 1/3.
    near: the share of samples that stay within 1 % of the corpus of where they were: 2 %.
    shards: different shards in a global batch.  neighbours: correlation of the labels of samples
    that follow each other: 0.  spread: the standard deviation of the batches' mean label, over that
    of batches drawn at random: 1. What is above 1 is noise that every step's gradient has too much.
    """
    count = len(order)
    label = order / (SHARDS * SIZE)
    travel = np.abs(label - np.arange(count) / count)
    batches = order[: count // BATCH * BATCH].reshape(-1, BATCH)
    sorted_shards = np.sort(batches // SIZE, axis=1)
    distinct = 1 + (np.diff(sorted_shards, axis=1) != 0).sum(axis=1)
    means = (batches / (SHARDS * SIZE)).mean(axis=1)
    return {
        "travel": float(travel.mean()),
        "near": float((travel < 0.01).mean()),
        "shards": float(distinct.mean()),
        "neighbours": float(np.corrcoef(label[:-1], label[1:])[0, 1]),
        "spread": float(means.std() / (label.std() / np.sqrt(BATCH))),
    }


def orders(peers: str | None) -> dict[str, Ints]:
    """All orders that are compared."""
    everything = np.random.default_rng(1).permutation(SHARDS * SIZE)
    found = {"full permutation": everything}
    for lanes in (64, 256):
        for window in (1, 4, 16):
            note = ", the default" if (lanes, window) == (64, 4) else ""
            found[f"shardstream, {lanes} lanes, window {window}{note}"] = ours(window, lanes)
    for name, title in TITLES.items() if peers else ():
        found[f"{title}, 1 reader" if name in ("webdataset", "litdata") else title] = peer(
            name, peers or "", 1
        )
        if name in ("webdataset", "litdata"):
            found[f"{title}, 8 ranks x 8 workers"] = peer(name, peers or "", RANKS * WORKERS)
    return found


PAGE = """# Shuffle quality

How well does each shuffle mix a corpus that is sorted? {samples:,} samples lie in {shards:,} shards of
{size:,}. Our shards have {frames} frames each. Sample i of N has the label i / N. Orders are computed by each
library's own code. A global batch has {batch} samples.

WebDataset and LitData deal shards out to workers. So they are shown with one reader, and with 8 ranks of
8 workers each, whose batches come in turn. MDS has one order for all workers. Its default block of
4,000,000 samples holds all of this corpus. So blocks of 1/16 are shown, too, as a large corpus would
have. Our order is the same for any number of ranks and workers.

| | mean travel | stay within 1 % | shards per batch | neighbours | spread of batch means |
| --- | --- | --- | --- | --- | --- |
{rows}

![Shards per batch and spread of batch means, as bars](images/shuffle-quality.png)

- *Mean travel*: how far samples are from where they were, as a share of the corpus. A full permutation has
  1/3. An order that permutes shards and nothing else has 1/3, too: alone this measure says little.
- *Stay within 1 %*: the share of samples that barely moved. It is 2 % at random.
- *Shards per batch*: different shards in a global batch. Lanes, workers, blocks and buffers bound it.
- *Neighbours*: the correlation of the labels of samples that follow each other. It is 0 at random.
- *Spread of batch means*: the standard deviation of the batches' mean label, divided by that of random
  batches. At 1 a batch is as good as a random draw. At 4 its mean is as noisy as the mean of a batch of a
  sixteenth of the size.

More `lanes` mix more places of the corpus into each batch, and keep as many shards open at once. `window`
mixes neighbours within a shard. These measures do not see that. It costs memory for as many frames of each
lane. A corpus that was shuffled when it was packed (`pack --shuffle`) needs neither.

Made by `python -m benchmarks.shuffle_quality --peers PYTHON`, with the Python of an environment that has
`benchmarks/requirements-peers.txt`.
"""


def row(name: str, found: dict[str, float]) -> str:
    """One line of the table."""
    cells = [
        name,
        f"{found['travel']:.3f}",
        f"{found['near']:.1%}",
        f"{found['shards']:.0f}",
        f"{abs(found['neighbours']) if abs(found['neighbours']) < 0.0005 else found['neighbours']:.3f}",
        f"{found['spread']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, write the page, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", required=True, metavar="PYTHON")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    table = {name: measures(order) for name, order in orders(os.path.abspath(options.peers)).items()}
    rows = "\n".join(row(name, found) for name, found in table.items())
    page = PAGE.format(samples=SHARDS * SIZE, shards=SHARDS, size=SIZE, frames=FRAMES, batch=BATCH, rows=rows)
    (options.docs / "shuffle-quality.md").write_text(page)
    (options.docs / "images").mkdir(exist_ok=True)
    picture = str(options.docs / "images" / "shuffle-quality.png")
    bars = [(name, found["shards"], found["spread"]) for name, found in table.items()]
    code = f"from benchmarks.plots import mixing; mixing({bars!r}, {picture!r})"
    subprocess.run([options.peers, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


if __name__ == "__main__":
    main()
