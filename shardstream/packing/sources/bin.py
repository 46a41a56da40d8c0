"""Files of token ids: .bin of nanoGPT and llm.c, and .bin with .idx of Megatron."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from shardstream.errors import OptionError, SourceError
from shardstream.format.numbers import whole_number
from shardstream.packing.sources.base import (
    TOKENS,
    FileSpan,
    Reject,
    Sample,
    SourceOptions,
    Task,
    TokenDtype,
    relative,
)
from shardstream.packing.sources.file_keys import unique_keys
from shardstream.storage.inputs import FileInfo, open_input, read_into, read_slice, size_of
from shardstream.storage.store import Options, redact

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy as np
    import numpy.typing as npt

_CHUNK = 1 << 20  # bytes at once
_AT_ONCE = 1 << 16  # documents whose places are looked up
_PIECE = 1 << 16  # tokens of a document where none ends
_LONGEST = 64 << 20  # bytes of a document
_HEADER = 1024  # bytes of the header of llm.c: 256 numbers
_LLM_C: dict[tuple[int, int], TokenDtype] = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
_OTHERS = {
    b"PK\x03\x04": "a zip archive", b"\x80\x02\x8a": "a pickle", b"GGUF": "GGUF",
    b"\x1f\x8b\x08": "a gzip file", b"\x28\xb5\x2f\xfd": "a zstd file",
}  # fmt: skip
_LOOK = 1 << 16  # tokens that show the dtype
_PEEK = 64  # tokens that are enough for it


@dataclass(frozen=True)
class BinSource:
    """Token ids as documents. `pack` makes a dataset of tokens of them.

    A .bin file with an .idx file beside it is of Megatron, which says where documents end. A file with the
    header of llm.c says its dtype. Any other one is the numbers alone, as nanoGPT writes them. A document of
    these two ends behind each `eos`, which stays in it. Without `eos`, files are cut into pieces of 65,536
    tokens.

    Args:
        eos: The token id that ends each document, or None.
        dtype: How the ids of a file without a header are stored. None: uint16, if they look like it.
        token_dtype: How the ids are stored in the dataset. `prepare` finds it.
        storage_options: Options for the stores of the input.
    """

    eos: int | None = None
    dtype: TokenDtype | None = None
    token_dtype: TokenDtype = "uint16"  # noqa: S105 - tokens of text
    storage_options: Options = field(default=None, repr=False)
    name: str = "bin"
    extensions: ClassVar[tuple[str, ...]] = (".bin", ".idx")
    takes: ClassVar[frozenset[str]] = frozenset({"eos", "dtype"})

    @classmethod
    def make(cls, options: SourceOptions) -> BinSource:
        if options.dtype not in (None, "uint16", "uint32"):
            raise OptionError(f"dtype={options.dtype!r} must be 'uint16' or 'uint32'")
        eos = None if options.eos is None else whole_number("eos", options.eos, 0, (1 << 32) - 1)
        usual: TokenDtype = options.dtype or "uint16"
        return cls(eos, options.dtype, usual, options.storage_options)

    def options(self) -> dict[str, Any]:
        return {"eos": self.eos, "dtype": self.token_dtype}

    def prepare(self, files: Sequence[FileInfo]) -> BinSource:
        """The source for these files: their dtypes say how ids are stored.

        Raises:
            OptionError: The ids do not look like the dtype that was given, or like uint16.
            SourceError: A file is damaged, or is no file of tokens.
        """
        found: set[TokenDtype] = {self._stored(data, index) for data, index in _pairs(files)}
        wide = "uint32" in found or (self.eos or 0) >= 1 << 16
        if self.dtype == "uint16" and (self.eos or 0) >= 1 << 16:
            raise OptionError(f"eos={self.eos} does not fit uint16; give --dtype uint32")
        return replace(self, token_dtype="uint32" if wide and self.dtype != "uint16" else "uint16")

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Slices of about `target` bytes. A document belongs to the slice in which it begins."""
        tasks: list[Task] = []
        pairs = _pairs(files)
        bases = unique_keys(relative(data).removesuffix(".bin") for data, _ in pairs)
        for (data, index), base in zip(pairs, bases, strict=True):
            for spans in (
                self._indexed(data, index, base, target) if index else self._plain(data, base, target)
            ):
                tasks.append(Task(len(tasks), spans))
        return tasks

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span in task.files:
            if span.url.endswith(".idx"):
                continue
            yield from self._documents(span) if span.label else self._numbers(span)

    def _stored(self, data: FileInfo, index: FileInfo | None) -> TokenDtype:
        if index:
            from shardstream.packing.sources.megatron import open_index

            with open_index(index.url, index.size, data.size, self.storage_options) as found:
                return found.stored
        begin, dtype = self._layout(data.url, data.size)
        if not begin:
            self._check(data, dtype)
        return dtype

    def _layout(self, url: str, size: int) -> tuple[int, TokenDtype]:
        """The first byte of the ids, and their dtype.

        Raises:
            SourceError: The size does not fit.
        """
        where, dtype, begin = redact(url), self.dtype or "uint16", 0
        head = bytes(read_slice(url, 0, 12, self.storage_options))
        for magic_bytes, kind in _OTHERS.items():
            if head.startswith(magic_bytes):
                raise SourceError(f"{where}: this is {kind}, not token ids")
        if size >= _HEADER:
            magic, version, count = struct.unpack("<3i", head)
            if (magic, version) in _LLM_C:
                begin, dtype = _HEADER, _LLM_C[magic, version]
                if size != begin + count * (2 if dtype == "uint16" else 4):
                    raise SourceError(f"{where}: its header says {count} {dtype} ids; is it cut off?")
        if (size - begin) % (2 if dtype == "uint16" else 4):
            raise SourceError(
                f"{where}: {size} bytes are no whole {dtype} ids; is it cut off, or not {dtype}?"
            )
        return begin, dtype

    def _check(self, data: FileInfo, dtype: TokenDtype) -> None:
        """Raise OptionError if the ids are clearly of the other dtype."""
        import numpy as np

        first = bytes(read_slice(data.url, 0, 4 * _LOOK, self.storage_options))
        halves = np.frombuffer(first[: len(first) // 4 * 4], "<u2")
        high, low = halves[1::2], halves[::2]
        where = redact(data.url)
        if len(high) < _PEEK:
            return
        if self.dtype is None and high.max() < 32 <= low.max():
            raise OptionError(
                f"{where}: every second 16-bit number is below 32, as in ids of 32 bits; pass --dtype "
                "uint32, or --dtype uint16 if they are of 16 bits"
            )
        if dtype == "uint32" and np.median(high) >= 256:
            raise OptionError(
                f"{where}: as uint32 most ids would be above 16,777,215, as in ids of 16 bits; "
                "pass --dtype uint16"
            )

    def _plain(self, data: FileInfo, base: str, target: int) -> Iterator[tuple[FileSpan, ...]]:
        begin, dtype = self._layout(data.url, data.size)
        width = 2 if dtype == "uint16" else 4
        step = max(width, target // width * width)
        start = 0
        for end in [*range(begin + step, data.size, step), data.size]:
            yield (FileSpan(data.url, start, end, data.size, base),)
            start = end

    def _indexed(
        self, data: FileInfo, index: FileInfo, base: str, target: int
    ) -> Iterator[tuple[FileSpan, ...]]:
        from shardstream.packing.sources.megatron import open_index

        # The index is counted in the first task. All tasks read their part of it.
        more: tuple[FileSpan, ...] = (FileSpan(index.url, 0, index.size, index.size, base),)
        with open_index(index.url, index.size, data.size, self.storage_options) as found:
            for first, last, start, end in found.parts(target):
                span = FileSpan(data.url, start, end, data.size, base, "idx", units=(first, last))
                yield (span, *more)
                more = ()

    def _documents(self, span: FileSpan) -> Iterator[Sample | Reject]:
        """The documents of a part of a .bin file by its .idx file."""
        from shardstream.packing.sources.megatron import open_index

        where, url, options = redact(span.url), _index_of(span.url), self.storage_options
        with (
            open_input(span.url, options) as file,
            open_index(url, size_of(url, options), span.size, options) as index,
        ):
            file.seek(span.start)
            for at in range(*span.units, _AT_ONCE):
                bounds = index.bounds(at, min(at + _AT_ONCE, span.units[1])).tolist()
                for number, (begin, end) in enumerate(itertools.pairwise(bounds), at):
                    place = f"{where}, document {number}"
                    if end - begin > _LONGEST:
                        raise SourceError(f"{place}: {end - begin} bytes are more than 64 MiB; cut it")
                    ids = _ids(file, end - begin, index.dtype, where)
                    yield self._sample(f"{span.key_base}-{number:012d}", ids, place)

    def _numbers(self, span: FileSpan) -> Iterator[Sample | Reject]:
        """The documents that begin in a part of a file of numbers."""
        import numpy as np

        where = redact(span.url)
        begin, name = self._layout(span.url, span.size)
        dtype = np.dtype(name).newbyteorder("<")
        at = start = max(begin, span.start)
        if self.eos is None:  # documents are pieces, counted from the beginning of the file
            piece = _PIECE * dtype.itemsize
            at = start = begin - (begin - start) // piece * piece
        elif start > begin:
            at = start - dtype.itemsize  # the id before: does a document begin at `start`?
        skipping = at < start
        parts: list[npt.NDArray[Any]] = []
        held = 0  # bytes in `parts`
        with open_input(span.url, self.storage_options) as file:
            file.seek(at)
            while at < span.size and (start < span.end or held):
                ids = _ids(file, min(_CHUNK, span.size - at), dtype, where)
                for part, ends in self._cut(ids, (at - begin) // dtype.itemsize):
                    at += part.nbytes
                    held += part.nbytes
                    if not skipping:
                        parts.append(part)
                    if held > _LONGEST:
                        raise SourceError(
                            f"{where}, byte {start}: no token {self.eos} in 64 MiB; is --eos right?"
                        )
                    if not ends and at < span.size:
                        continue
                    if not skipping:
                        key = f"{span.key_base}-{start:012d}"
                        yield self._sample(key, np.concatenate(parts), f"{where}, byte {start}")
                    start, parts, held, skipping = at, [], 0, False
                    if start >= span.end:
                        return

    def _cut(self, ids: npt.NDArray[Any], number: int) -> Iterator[tuple[npt.NDArray[Any], bool]]:
        """Parts of an array, and whether a document ends behind each; `number` is that of its first token."""
        import numpy as np

        if self.eos is None:
            cuts: Iterable[int] = range(_PIECE - number % _PIECE, len(ids) + 1, _PIECE)
        else:
            cuts = (np.flatnonzero(ids == self.eos) + 1).tolist()
        begin = 0
        for cut in cuts:
            yield ids[begin:cut], True
            begin = cut
        if begin < len(ids):
            yield ids[begin:], False

    def _sample(self, key: str, ids: npt.NDArray[Any], where: str) -> Sample | Reject:
        import numpy as np

        wanted = np.dtype(self.token_dtype).newbyteorder("<")
        if ids.size and ids.dtype != wanted and (ids.min() < 0 or ids.max() > np.iinfo(wanted).max):
            return Reject(where, f"ids from {ids.min()} to {ids.max()} do not fit {self.token_dtype}")
        return Sample(key, {TOKENS: ids.astype(wanted, copy=False).tobytes()}, where)


def _ids(file: BinaryIO, size: int, dtype: np.dtype[Any], where: str) -> npt.NDArray[Any]:
    import numpy as np

    data = bytearray(size)
    read_into(file, memoryview(data), where)
    return np.frombuffer(data, dtype)


def _index_of(url: str) -> str:
    return url[: -len(".bin")] + ".idx"


def _pairs(files: Sequence[FileInfo]) -> list[tuple[FileInfo, FileInfo | None]]:
    """The .bin files, each with the .idx file beside it, or None.

    Raises:
        SourceError: A file is neither, or an .idx file is alone.
    """
    indexes = {info.url: info for info in files if info.url.endswith(".idx")}
    pairs: list[tuple[FileInfo, FileInfo | None]] = []
    for info in files:
        if info.url.endswith(".idx"):
            continue
        if not info.url.endswith(".bin"):
            raise SourceError(f"{redact(info.url)}: neither .bin nor .idx")
        pairs.append((info, indexes.pop(_index_of(info.url), None)))
    if indexes:
        raise SourceError(f"{redact(min(indexes))}: there is no .bin file beside it in the input")
    return pairs
