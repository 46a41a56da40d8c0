"""Pictures for notebooks: contact sheets of datasets, and plots of the waits of a loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import shardstream as ss
from shardstream.decode.tiles import Tile
from shardstream.observe.sheet import small
from tests.corpora import pack_rows


def near(page: Any, colour: tuple[int, int, int]) -> int:
    """The pixels that have about this colour."""
    return int((np.abs(np.asarray(page.convert("RGB"), np.int64) - colour).max(2) < 20).sum())


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Six red pictures, then six blue ones."""
    colours = [(250, 10, 10)] * 6 + [(10, 10, 250)] * 6
    samples = [
        {"__key__": f"p{n:02d}", "png": np.full((40, 60, 3), c, np.uint8)} for n, c in enumerate(colours)
    ]
    ss.pack(samples, str(tmp_path / "images"))
    return str(tmp_path / "images")


def test_a_sheet_shows_samples_of_a_dataset_a_subset_or_a_url(images: str) -> None:
    ds = ss.StreamingDataset(images, transform=lambda sample: 1 / 0)  # samples are shown as they are stored
    for found in (ds, images, Path(images)):
        page = ss.observe.contact_sheet(found, 12)
        assert near(page, (250, 10, 10)) == pytest.approx(near(page, (10, 10, 250)), rel=0.02)
        assert near(page, (250, 10, 10)) > 6 * 60 * 40
    blue = ss.observe.contact_sheet(ds.subset(numbers=range(6, 12)), 3)
    assert near(blue, (10, 10, 250)) > 3 * 60 * 40
    assert near(blue, (250, 10, 10)) == 0


def test_pictures_that_wait_for_their_sheet_are_small() -> None:
    held = small(Tile("key", Image.new("RGB", (4000, 3000), "red")))
    assert held.image.size == (400, 300)
    assert small(Tile("key", "damaged")).image == "damaged"


def test_a_sheet_of_tokens_is_text(tmp_path: Path) -> None:
    packed = pack_rows(tmp_path, [{"text": "some words " * 20}] * 6, tokenizer="bytes", eos=256)
    tokens = ss.TokenDataset(packed, 8)
    assert (
        ss.observe.contact_sheet(tokens, 2).tobytes()
        == ss.observe.contact_sheet(tokens, 2, tokenizer="bytes").tobytes()
    )


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 401}, "n=401"),
        ({"tokenizer": "bytes"}, "tokenizer=bytes: the dataset holds no tokens"),
    ],
)
def test_what_a_sheet_cannot_draw_is_an_error(images: str, more: Any, told: str) -> None:
    with pytest.raises(ss.OptionError, match=told):
        ss.observe.contact_sheet(images, **more)


def test_a_mixture_has_no_sheet(images: str) -> None:
    with pytest.raises(ss.OptionError, match=r"not a Mixture; of a mixture, draw one of its datasets"):
        ss.observe.contact_sheet(ss.Mixture([(ss.StreamingDataset(images), 1)]))


@pytest.fixture
def loader(tmp_path: Path) -> ss.StreamingLoader:
    def slow(sample: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.01)
        return sample

    packed = pack_rows(tmp_path, [{"text": f"{n}"} for n in range(40)])
    return ss.StreamingLoader(ss.StreamingDataset(packed, transform=slow), 4, threads=1)


def test_waits_are_drawn_of_a_loader_its_stats_and_a_trace(
    loader: ss.StreamingLoader, tmp_path: Path
) -> None:
    with ss.observe.trace(tmp_path / "run.pftrace") as trace:
        for _ in loader:
            time.sleep(0.002)
    stats = loader.stats()
    waits = [end - begin for begin, end in trace.waits]
    assert sum(waits) == pytest.approx(stats["stages"]["wait"]["seconds"], rel=0.05)
    assert sum(waits) > 0
    assert all(0 <= begin <= end for begin, end in trace.waits)
    assert trace.waits == sorted(trace.waits)
    assert sum(end - begin for begin, end in trace.steps) > 0.01  # 10 steps of 2 ms
    pages = [ss.observe.plot_stalls(each) for each in (loader, stats, trace)]
    assert pages[0].size == pages[1].size == pages[2].size == (900, 320)
    assert pages[0].tobytes() == pages[1].tobytes()
    for page in pages:
        assert near(page, (181, 71, 60)) > 50  # the colour of waiting


def test_a_plot_of_nothing_is_an_error(loader: ss.StreamingLoader, tmp_path: Path) -> None:
    with pytest.raises(ss.OptionError, match="no batch yet"):
        ss.observe.plot_stalls(loader)
    with pytest.raises(ss.OptionError, match="a loader, its stats"):
        ss.observe.plot_stalls({})
    with (
        ss.observe.trace(tmp_path / "run.pftrace") as trace,
        pytest.raises(ss.OptionError, match="still running"),
    ):
        ss.observe.plot_stalls(trace)
    with pytest.raises(ss.OptionError, match="no step of a loop"):
        ss.observe.plot_stalls(trace)
