"""What a notebook shows of a dataset: a table of its facts, and its first samples with thumbnails."""

from __future__ import annotations

import base64
import html
import io
import threading
from collections.abc import Iterator
from typing import Any

from shardstream.dataset.contents import Contents
from shardstream.dataset.selected import SelectedContents
from shardstream.decode.tiles import Tile, tile
from shardstream.errors import reason
from shardstream.format.manifest import Manifest
from shardstream.format.shown import table
from shardstream.format.sizes import human_size
from shardstream.read.dataset_blocks import STREAMS
from shardstream.storage.cancellation import Cancelled, CancelScope, working_for

__all__ = ["as_html"]

_SAMPLES = 4
_TEXT = 200  # characters
_SIDE = 112  # pixels of a thumbnail
_FRAME = 16 << 20  # bytes of a frame, decompressed, above which nothing is read
_PATIENCE = 5.0  # seconds for a store to answer


def as_html(title: str, contents: Contents[Any]) -> str:
    """HTML that says what a dataset is. It raises nothing: a notebook would show the error in its place.

    What a manifest says needs no reading. For the first samples one index and one frame are read.

    Args:
        title: The name of the class.
        contents: Of the dataset.
    """
    rows = {"url": contents.url} | contents.described()
    if not isinstance(contents, SelectedContents) or (manifest := contents.opening.known) is None:
        return table(title, rows)
    timer = threading.Timer(_PATIENCE, (scope := CancelScope()).end)
    timer.daemon = True
    timer.start()
    try:
        rows |= _facts(manifest)
        with working_for(scope):
            tiles = list(_first(contents, manifest))
        return table(title, rows) + _samples(tiles)
    except (Exception, Cancelled) as error:  # noqa: BLE001 - what was found is shown all the same
        told = f"the store did not answer within {_PATIENCE:.0f} s" if scope.over else reason(error)
        return table(title, rows | {"first samples": f"not shown: {told}"})
    finally:
        timer.cancel()


def _facts(manifest: Manifest) -> dict[str, str]:
    """What the manifest says, by name."""
    codecs = ", ".join(sorted({shard.codec for shard in manifest.shards})) or "none"
    held = manifest.sample_bytes
    if held is not None and manifest.bytes:
        codecs += f", {held / manifest.bytes:.2f} times smaller than the samples"
    columns = {"columns": ", ".join(f"{one.name} ({one.dtype})" for one in manifest.columns)}
    return {
        "size": f"{human_size(manifest.bytes)} stored, {human_size(manifest.raw_bytes)} decompressed",
        "compression": codecs,
        **(columns if manifest.columns else {}),
    }


def _first(contents: SelectedContents[Any], manifest: Manifest) -> Iterator[Tile]:
    """The first samples, as far as they are in the first frame."""
    if not contents.chosen_samples:
        return
    reader = contents.reader
    shard, sample = contents.place_of_sample(0)
    if manifest.shards[shard].codec in STREAMS:
        raise ValueError("the archive is one stream, which would be read as a whole")
    index = reader.index(shard)
    frame = index.frame_of(sample)
    if (size := int(index.frame_raw_size[frame])) > _FRAME:
        raise ValueError(f"the first frame has {human_size(size)}")
    told = manifest.provenance.get("tokenizer")
    tokenizer = _Bytes() if isinstance(told, dict) and told.get("name") == "bytes" else None
    for number in range(min(_SAMPLES, contents.chosen_samples)):
        place = contents.place_of_sample(number)
        if place[0] != shard or index.frame_of(place[1]) != frame:
            return
        yield tile(manifest, *reader.sample(*place), tokenizer)


class _Bytes:
    """Reads what the tokenizer "bytes" has made."""

    def decode(self, ids: list[int], /) -> str:
        """The text of these ids, without end tokens."""
        return bytes(one for one in ids if one < 256).decode("utf-8", "replace")


def _samples(tiles: list[Tile]) -> str:
    """A table of samples: key, class, picture and text."""
    left = "style='text-align: left'"
    cells = "".join(
        f"<tr><th {left}>{html.escape(_cut(each.key, 80))}</th>"
        f"<td {left}>{html.escape(_cut(each.label, 80))}</td>"
        f"<td>{_picture(each.image)}</td>"
        f"<td {left}>{html.escape(_cut(each.text, _TEXT))}</td></tr>"
        for each in tiles
    )
    return f"<table><caption>first samples</caption>{cells}</table>" if tiles else ""


def _cut(text: str, most: int) -> str:
    text = " ".join(text[: 4 * most].split())
    return text if len(text) <= most else f"{text[:most]}…"


def _picture(image: Any) -> str:
    """A thumbnail within the page; a text that says why there is none."""
    if image is None or isinstance(image, str):
        return html.escape(_cut(image or "", 80))
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    coded = base64.b64encode(data.getvalue()).decode()
    return f"<img alt='' src='data:image/jpeg;base64,{coded}'>"
