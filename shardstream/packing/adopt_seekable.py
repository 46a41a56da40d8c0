"""Archives in the Zstandard Seekable Format: whole samples in whole zstd frames, read from where they are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import xxhash
import zstandard

from shardstream.errors import CorruptionError, SourceError
from shardstream.format.frames import check_size
from shardstream.format.rows import FrameRow
from shardstream.format.seekable import FOOTER, StoredFrame, entries, table_size
from shardstream.packing.adopt_archive import MAX_REGROUPED, Frame
from shardstream.storage.inputs import open_input, read_into, read_slice
from shardstream.storage.store import Options

__all__ = ["seekable_frames", "stored_frames"]


def seekable_frames(url: str, size: int, options: Options) -> list[StoredFrame] | None:
    """The zstd frames of an archive with a seek table.

    Args:
        url: The archive.
        size: Its bytes.
        options: Options for its store.

    Returns:
        The frames. None if there is no table, it does not fit, or a frame is too large to be read for one
        sample.
    """
    length = table_size(bytes(read_slice(url, max(0, size - FOOTER), FOOTER, options)))
    if not 0 < length <= size:
        return None
    found = entries(bytes(read_slice(url, size - length, length, options)), size)
    if not found or max(frame.raw_end - frame.raw_begin for frame in found) > MAX_REGROUPED:
        return None
    return found


def stored_frames(
    frames: Sequence[Frame], known: Sequence[StoredFrame], where: str, url: str, options: Options
) -> tuple[list[FrameRow], bool]:
    """The frames of an index, with the checksums of their stored bytes.

    Args:
        frames: The frames, which begin and end where zstd frames do.
        known: All zstd frames of the archive.
        where: The archive, for messages.
        url: The archive.
        options: Options for its store.

    Returns:
        The frames; and whether one of them is several zstd frames, or does not name its size.

    Raises:
        SourceError: The seek table does not say what is in the file.
    """
    begins = [frame.raw_begin for frame in known] + [known[-1].raw_end]
    rows: list[FrameRow] = []
    grouped = False
    with open_input(url, options) as file:
        for begin, end, first, _ in frames:
            one = known[bisect_left(begins, begin) : bisect_left(begins, end)]
            stored = bytearray(one[-1].end - one[0].begin)
            file.seek(one[0].begin)
            read_into(file, memoryview(stored), where)
            try:
                single = check_size(bytes(stored), end - begin, where)
            except (CorruptionError, zstandard.ZstdError) as error:
                raise SourceError(f"{where}: its seek table does not fit: {error}") from error
            grouped |= not single
            checksum = xxhash.xxh3_64_intdigest(stored)
            rows.append((one[0].begin, len(stored), begin, end - begin, first, checksum))
    return rows, grouped
