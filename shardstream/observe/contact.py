"""observe.contact_sheet: some samples of a dataset on one picture, for a notebook or a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shardstream.decode.tiles import spread, tile
from shardstream.errors import MissingExtraError, OptionError
from shardstream.format.numbers import whole_number
from shardstream.format.shown import counted

if TYPE_CHECKING:
    from shardstream.dataset.choosing import ChoosableDataset
    from shardstream.format.manifest import Manifest
    from shardstream.packing.tokenize import Tokenizer

__all__ = ["contact_sheet", "tokenizer_of"]

_MOST = 400  # samples


def contact_sheet(
    dataset: ChoosableDataset[Any] | str | os.PathLike[str],
    n: int = 24,
    *,
    seed: int | None = None,
    tokenizer: str | None = None,
) -> Any:
    """Draw some samples: images, masks and waveforms with captions and labels, or texts.

    Samples are shown as they are stored, without crops and without `transform`. `shardstream show` draws the
    same.

    Args:
        dataset: A StreamingDataset, a TokenDataset, a subset of one, or the URL of a dataset.
        n: How many samples, 1 to 400. Each may need a frame of its own, so a remote dataset reads up to `n`
            frames.
        seed: Draws the samples at random. None: they are spread evenly.
        tokenizer: "bytes", a .json or .tiktoken file, or a name, to read tokens by. None: that of
            the dataset, if it is "bytes" or a file that is here; else tokens are shown as numbers.

    Returns:
        A picture of Pillow. A notebook shows it; `.save("sheet.png")` writes it.

    Raises:
        OptionError: An argument cannot be.
        MissingExtraError: Pillow is not installed.
        StorageError, CorruptionError: As when the samples are read.
    """
    from shardstream.observe.sheet import sheet, small

    n = whole_number("n", n, 1, _MOST)
    if isinstance(dataset, (str, os.PathLike)):
        from shardstream.read.reader import DatasetReader

        reader = DatasetReader.open(os.fspath(dataset))
        places, total = reader.locate, reader.manifest.samples
    else:
        from shardstream.dataset import contents_of
        from shardstream.dataset.choosing import ChoosableDataset
        from shardstream.dataset.selected import SelectedContents

        contents = contents_of(dataset) if isinstance(dataset, ChoosableDataset) else None
        if not isinstance(contents, SelectedContents):
            raise OptionError(
                f"contact_sheet draws a StreamingDataset, a TokenDataset or a URL, not a "
                f"{type(dataset).__name__}; of a mixture, draw one of its datasets: mixture.datasets[0]"
            )
        reader, places, total = contents.reader, contents.place_of_sample, contents.chosen_samples
    known = tokenizer_of(reader.manifest, tokenizer, "tokenizer=")
    numbers = spread(total, n, seed)
    tiles = [small(tile(reader.manifest, *reader.sample(*places(number)), known)) for number in numbers]
    return sheet(f"{reader.url}: {len(tiles):,} of {counted(total, 'sample')}", tiles)


def tokenizer_of(manifest: Manifest, asked: str | None, option: str) -> Tokenizer | None:
    """The tokenizer of a dataset of tokens; None if it is not known.

    Args:
        manifest: Of the dataset.
        asked: The tokenizer that the user gave, or None.
        option: What the user calls it, for messages: "--tokenizer ".

    Raises:
        OptionError: The dataset holds no tokens, or was packed with another tokenizer.
    """
    told = manifest.provenance.get("tokenizer")
    if manifest.kind != "tokens":
        if asked is not None:
            raise OptionError(f"{option}{asked}: the dataset holds no tokens, but {manifest.kind}")
        return None
    name = told.get("name") if isinstance(told, dict) else None
    # Without being asked nothing is fetched: a file of that name may lie here, and its content is compared.
    if asked is None and not (name == "bytes" or (isinstance(name, str) and os.path.isfile(name))):
        return None
    from shardstream.packing.tokenize import load_tokenizer

    try:
        found = load_tokenizer(asked or str(name))
    except (OptionError, MissingExtraError):
        if asked is None:
            return None
        raise
    if isinstance(told, dict) and told.get("fingerprint") != found.fingerprint:
        if asked is None:
            return None
        raise OptionError(f"{option}{asked!r} is not {name!r}, which the dataset was packed with")
    return found
