"""What a notebook shows of a dataset beside its one line: facts of the manifest, and the first samples."""

from __future__ import annotations

import base64
import io
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

import shardstream as ss
from shardstream.dataset import notebook
from shardstream.read.reader import DatasetReader
from tests.corpora import pack_rows

HOSTILE = "<script>alert('x')</script>&amp;\"'"


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name == "src"]
        assert not [name for name, _ in attrs if name not in ("style", "src", "alt")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page(shown: Any) -> Page:
    return Page(shown._repr_html_())


def test_the_table_has_size_compression_and_columns(tmp_path: Path) -> None:
    rows = [{"id": f"s{n}", "text": "some text " * 50, "lang": "en"} for n in range(30)]
    ds = ss.StreamingDataset(pack_rows(tmp_path, rows, keep=["lang"]))
    texts = page(ds).texts
    assert re.fullmatch(r"[\d.]+ K?i?B stored, [\d.]+ KiB decompressed", texts[texts.index("size") + 1])
    assert re.fullmatch(r"zstd, [\d.]+ times smaller than the samples", texts[texts.index("compression") + 1])
    assert texts[texts.index("columns") + 1].startswith("lang (")
    assert [text for text in texts if text in ("s0", "s3", "s4")] == ["s0", "s3"]  # the first four


def test_nothing_of_a_sample_is_markup(tmp_path: Path) -> None:
    samples = [{"__key__": f"a{n}<b>&", "txt": HOSTILE, "json": {HOSTILE: HOSTILE}} for n in range(2)]
    ss.pack(samples, str(tmp_path / "out"))
    shown = page(ss.StreamingDataset(tmp_path / "out"))
    assert set(shown.tags) <= {"table", "caption", "tr", "th", "td"}
    assert HOSTILE in "".join(shown.texts)
    assert "a0<b>&" in shown.texts


def test_images_are_thumbnails(tmp_path: Path) -> None:
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[:] = (250, 10, 10)
    samples = [{"__key__": f"p{n}", "jpg": pixels} for n in range(9)]
    ss.pack(
        [*samples[:2], {"__key__": "damaged", "jpg": b"\xff\xd8 no image"}, *samples[2:]],
        str(tmp_path / "out"),
    )
    shown = page(ss.StreamingDataset(tmp_path / "out"))
    assert len(shown.sources) == 3
    assert any("cannot be decoded" in text for text in shown.texts)
    for source in shown.sources:
        image = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
        assert max(image.size) == 112
        assert np.abs(np.asarray(image, np.int64) - (250, 10, 10)).max() < 20


def test_a_subset_and_tokens_show_their_own_samples(tmp_path: Path) -> None:
    rows = [{"id": f"s{n:02d}", "text": f"text number {n}"} for n in range(40)]
    ds = ss.StreamingDataset(pack_rows(tmp_path, rows)).subset(numbers=range(20, 23))
    assert [text for text in page(ds).texts if re.fullmatch(r"s\d\d", text)] == ["s20", "s21", "s22"]
    (tmp_path / "tokens").mkdir()
    tokens = ss.TokenDataset(pack_rows(tmp_path / "tokens", rows, tokenizer="bytes", eos=256), 8)
    assert any(text.startswith("text number 0") for text in page(tokens).texts)


def test_one_frame_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"s{n:02d}", "text": f"{n} " * 200} for n in range(40)]
    ds = ss.StreamingDataset(pack_rows(tmp_path, rows, shard_size="4KiB", frame_size="1KiB"))
    read: list[tuple[int, int]] = []
    before = DatasetReader.frame
    monkeypatch.setattr(DatasetReader, "frame", lambda self, *at: read.append(at) or before(self, *at))
    assert "first samples" in page(ds).texts
    assert set(read) == {(0, 0)}
    # A frame that is large is left where it is.
    monkeypatch.setattr(notebook, "_FRAME", 100)
    read.clear()
    texts = page(ds).texts
    assert texts[texts.index("first samples") + 1].startswith("not shown: the first frame has ")
    assert not read


def test_texts_of_any_size_are_cut(tmp_path: Path) -> None:
    samples = [{"__key__": "k" * 200, "txt": "long " * 100_000}]
    ss.pack(samples, str(tmp_path / "out"))
    assert len(ss.StreamingDataset(tmp_path / "out")._repr_html_()) < 4000


def test_no_error_reaches_the_notebook(tmp_path: Path) -> None:
    packed = pack_rows(tmp_path, [{"text": "a"}, {"text": "b"}])
    ds = ss.StreamingDataset(packed)
    shard = next(Path(packed).glob("*.tar.zst"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    shard.write_bytes(data)
    texts = page(ds).texts
    assert texts[texts.index("samples") + 1] == "2 samples"
    for path in Path(packed).iterdir():
        path.unlink()
    texts = page(ds).texts
    assert texts[texts.index("first samples") + 1].startswith("not shown: ")


def test_a_store_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_rows(tmp_path, [{"text": "a"}, {"text": "b"}])
    fsspec.filesystem("memory").put(packed, "/stalls/data", recursive=True)
    ds = ss.StreamingDataset("memory://stalls/data")
    answers = threading.Event()
    monkeypatch.setattr(notebook, "_PATIENCE", 0.2)
    memory = type(fsspec.filesystem("memory"))
    before = memory.cat_file
    monkeypatch.setattr(memory, "cat_file", lambda *args, **more: answers.wait(60) and before(*args, **more))
    try:
        texts = page(ds).texts
        assert texts[texts.index("first samples") + 1] == "not shown: the store did not answer within 0 s"
    finally:
        answers.set()


def test_a_loader_says_what_it_delivered(tmp_path: Path) -> None:
    loader = ss.StreamingLoader(
        ss.StreamingDataset(pack_rows(tmp_path, [{"text": f"{n}"} for n in range(10)])), 3
    )
    assert "0 samples in 0 batches" in loader._repr_html_()
    list(loader)
    assert "9 samples in 3 batches, waited " in loader._repr_html_()
