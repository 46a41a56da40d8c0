"""Folders that `save_to_disk` of Hugging Face datasets has written.

A dataset is a folder with `state.json`, which lists its Arrow files in order. A dict of datasets is a folder
of such folders. Source: arrow_dataset.py and dataset_dict.py of the package `datasets`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from shardstream.errors import SourceError
from shardstream.format.names import escape_key
from shardstream.packing.sources.arrow import ArrowSource
from shardstream.packing.sources.base import FileSpan, Task, group, relative
from shardstream.storage.inputs import FileInfo, read_slice
from shardstream.storage.store import redact

_STATE = "state.json"
_INFO = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class HfSource(ArrowSource):
    """Rows of the datasets in a folder as samples, in their order; see `ArrowSource`."""

    name: str = "hf"
    extensions: ClassVar[tuple[str, ...]] = (f"/{_STATE}",)
    left_out: ClassVar[tuple[str, ...]] = ()  # all that it finds is a part of it, or an error
    companions: ClassVar[tuple[str, ...]] = (*(f"/{name}" for name in _INFO), ".arrow")

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        by_url = {file.url: file for file in files}
        spans: list[FileSpan] = []
        used: set[str] = set()
        for file in files:
            if os.path.basename(file.url) != _STATE:
                continue
            folder = file.url[: -len(_STATE)]
            names = [folder + name for name in self._data_files(file)]
            used.update([file.url, *names])
            base = escape_key(relative(file)[: -len(_STATE) - 1] or os.path.basename(folder.rstrip("/")))
            for url in names:
                if url not in by_url:
                    raise SourceError(f"{redact(file.url)} lists {redact(url)}, which is not there")
                stem = os.path.basename(url).rpartition(".")[0]
                # Rows are counted in each file.
                own = base if len(names) == 1 else f"{base}/{escape_key(stem)}"
                spans += self.parts(by_url[url], own, target)
        if files and not used:
            raise SourceError(
                f"no {_STATE} among {len(files)} files: this is no folder that save_to_disk has written"
            )
        odd = [url for url in by_url if url not in used and os.path.basename(url) not in _INFO]
        if odd:
            raise SourceError(f"{redact(odd[0])} is no part of a dataset of save_to_disk; pack it alone")
        return group(([span] for span in spans), target)

    def _data_files(self, file: FileInfo) -> Iterator[str]:
        """The names of the files with the rows."""
        data = read_slice(file.url, 0, file.size, self.storage_options)
        try:
            state = msgspec.json.decode(bytes(data), type=dict[str, Any])
            names = [str(entry["filename"]) for entry in state["_data_files"]]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
            raise SourceError(f"{redact(file.url)}: no state of a dataset ({error})") from error
        if state.get("_indices_files") or state.get("_indices_data_files"):
            # Versions before 2 saved the indices of a filtered dataset apart from its rows.
            raise SourceError(
                f"{redact(file.url)}: the dataset was saved with indices that choose its rows; load it, and "
                "save what flatten_indices() returns"
            )
        yield from names
