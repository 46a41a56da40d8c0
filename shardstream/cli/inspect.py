"""shardstream ls and cat: look at the samples of a dataset."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardstream.cli import options
from shardstream.cli.screen import clean, warn
from shardstream.errors import OptionError
from shardstream.format.shown import counted
from shardstream.format.sizes import human_size

if TYPE_CHECKING:
    from shardstream.read.reader import DatasetReader

_MOST = 1 << 13  # bytes of a field, or letters of its numbers, that a terminal gets
Url = Annotated[str, typer.Argument(help="Directory or URL of the dataset.")]


def _open(url: str, pairs: list[str] | None) -> DatasetReader:
    from shardstream.read.reader import DatasetReader

    return DatasetReader.open(url, options.storage_options(pairs))


def ls(
    url: Url,
    limit: Annotated[int | None, typer.Option(min=1, help="Show the first N samples only.")] = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """List the samples: number, key, fields with their sizes in bytes, shard and frame."""
    rows = itertools.islice(_rows(_open(url, storage_option)), limit)
    if json:
        options.print_rows(rows)
        return
    for row in rows:
        listed = " ".join(f"{name}={size}" for name, size in row["fields"].items())
        place = f"{clean(row['shard'])}:{row['frame']}"
        print(f"{row['number']}\t{clean(row['key'])}\t{clean(listed)}\t{place}")


def _rows(reader: DatasetReader) -> Iterator[dict[str, Any]]:
    """What is listed of each sample."""
    names = [field.name for field in reader.manifest.fields]
    numbers = itertools.count()
    for shard, shard_info in enumerate(reader.manifest.shards):
        index = reader.index(shard)
        for sample in range(index.samples):
            sizes = zip(names, index.field_size[sample].tolist(), strict=True)
            yield {
                "number": next(numbers),
                "key": index.key(sample),
                "fields": {name: size for name, size in sizes if size >= 0},
                "shard": shard_info.url,
                "frame": index.frame_of(sample),
            }


def cat(
    url: Url,
    sample: Annotated[str, typer.Argument(metavar="KEY|NUMBER", help="A key, or a sample's number from 0.")],
    field: Annotated[str | None, typer.Option(help="The field to write, as raw bytes.")] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Write all bytes as they are to a terminal, too."),
    ] = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Write one sample: the raw bytes of a field; or all fields as JSON, if there are several.

    Digits are a number, unless no sample has that number; anything else is a key. A terminal gets the
    beginning of what is long, without characters that would steer it; a file or a pipe gets every byte.
    """
    reader = _open(url, storage_option)
    key, fields = reader.sample(*_place(reader, sample))
    if field is not None:
        if field not in fields:
            raise OptionError(f"sample {key!r} has no field {field!r}; it has {', '.join(fields)}")
        fields = {field: fields[field]}
    careful = sys.stdout.isatty() and not raw
    if field is None and reader.manifest.kind == "tokens":
        import numpy as np

        from shardstream.format.shown import numbers

        tokens = np.frombuffer(fields["tokens"], np.dtype(reader.manifest.fields[0].dtype))
        shown = numbers(tokens, _MOST) if careful else " ".join(map(str, tokens.tolist()))
        print(shown)
        if careful and " ... " in shown:
            warn(f"{counted(len(tokens), 'token')}; --raw or a pipe gets all of them")
    elif len(fields) == 1:
        data = next(iter(fields.values()))
        if careful:
            _print_safely(data)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
    else:
        options.print_json(
            {"__key__": key, **{name: _shown(data, not careful) for name, data in fields.items()}}
        )
    sys.stdout.flush()


def _print_safely(data: bytes) -> None:
    """Print what a field holds, as far as a person reads it."""
    text = _beginning(data)
    if text is None:
        warn(f"{counted(len(data), 'byte')} that are no text; --raw writes them here, > FILE to a file")
        return
    print(clean(text, lines=True), end="" if text.endswith("\n") else "\n")
    if len(data) > _MOST:
        warn(f"the first {human_size(_MOST)} of {human_size(len(data))}; --raw or a pipe gets all")


def _beginning(data: bytes) -> str | None:
    """The text of the first bytes; None if they are no text."""
    begin = data[:_MOST]
    try:
        text = begin.decode()
    except UnicodeDecodeError as error:
        if len(begin) == len(data) or error.start < len(begin) - 3:
            return None
        text = begin[: error.start].decode()  # the end is within a letter
    return None if "\0" in text else text


def _place(reader: DatasetReader, sample: str) -> tuple[int, int]:
    from shardstream.format.names import escape_key

    if sample.isdecimal() and int(sample) < reader.manifest.samples:
        return reader.locate(int(sample))
    found = reader.find(sample) or reader.find(escape_key(sample))
    if found is None:
        raise OptionError(
            f"no sample has the key {sample!r}, and there are {reader.manifest.samples:,} in the dataset"
        )
    return found


def _shown(data: bytes, whole: bool) -> object:
    """A field as a value of JSON; of what is too long, the beginning as text, unless it must be whole."""
    import msgspec

    if not whole and len(data) > _MOST and (text := _beginning(data)) is not None:
        return f"{text}... ({human_size(len(data))})"
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"<{counted(len(data), 'byte')}>"
