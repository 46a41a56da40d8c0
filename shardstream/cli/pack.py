"""shardstream pack"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from shardstream.cli import options
from shardstream.errors import OptionError
from shardstream.packing.formats import FORMATS
from shardstream.progress import shown


def pack(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... DEST",
            help="Files, folders, globs, URLs, - for standard input; and last the directory or URL of the "
            "dataset.",
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{', '.join(FORMATS)}; recognised by the extensions if left out."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=COLUMN", help="Tables: the column of a field, as in jpg=image.bytes; repeatable."
        ),
    ] = None,
    text_key: Annotated[str, typer.Option(help="Rows: the column or key that holds the text.")] = "text",
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Makes text of messages: a tokenizer_config.json or .jinja file."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD|none",
            help="Rows: the column or key whose value names a sample; none numbers them. __key__, key or id "
            "by default, behind the path of the file if there are several files.",
        ),
    ] = None,
    split_key: Annotated[
        str, typer.Option(metavar="first|last", help="Archives: the dot at which the key of a member ends.")
    ] = "first",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD,...",
            help="Rows: what to keep in field json, such as lang,meta.url; repeatable. All by default.",
        ),
    ] = None,
    compression: Annotated[
        str | None,
        typer.Option(help="zstd or none; none by default if the data is compressed already."),
    ] = None,
    level: Annotated[int, typer.Option(help="zstd level, 1 to 22.")] = 3,
    frame_size: Annotated[
        str | None, typer.Option(help="Bytes of samples in a frame; 1MiB, or less in smaller shards.")
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            help="Bytes of samples in a shard; 64MiB, or more for larger frames. auto: by the input."
        ),
    ] = None,
    workers: options.Workers = None,
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="Shuffle the whole corpus.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="bytes, a tokenizers JSON, a tiktoken ranks file or encoding name.")
    ] = None,
    eos: Annotated[
        str | None,
        typer.Option(metavar="ID|none", help="Token that ends each document; none glues documents together."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Files of tokens: uint16 or uint32; as the files show by default.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images: the shorter side to N pixels, if longer.")
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of resized JPEG and WebP images; 90 by default.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="none|leaf|top",
            help="Images: the folder that is the class; as the folders show by default.",
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(metavar="SELECT", help="Databases: what to pack; --key orders the rows.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pack the first N samples only.")] = None,
    on_error: Annotated[str, typer.Option(help="raise, or skip bad samples and list them.")] = "raise",
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Commit nothing if more is skipped.")
    ] = 0.5,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished pack.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add to the dataset at DEST.")] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do share I of N, from 0, as one of an array of jobs; any may run again. Then --commit.",
        ),
    ] = None,
    commit: Annotated[bool, typer.Option("--commit", help="Commit what all parts have packed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Where tasks run: processes here, or Ray.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Ray: a cluster, auto for that of this machine; Ray starts here if left out."),
    ] = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Pack sources into a dataset at DEST."""
    import time

    from shardstream.cli import report
    from shardstream.packing.end_of_text import NO_EOS
    from shardstream.packing.pack_parts import PackedPart
    from shardstream.packing.packer import pack as run
    from shardstream.packing.planning import Plan

    sources, dest = options.split_paths(paths, "pack", "SOURCE... DEST")
    share = _part(part)
    if "-" in sources and (commit or share is not None):
        raise OptionError("--part and --commit read the sources anew in each process; - cannot be read again")
    stores = options.storage_options(storage_option)
    end = _eos(eos)
    if tokenizer is not None and end is None:
        options.warn(NO_EOS)
        end = "none"
    started = time.monotonic()
    with (
        options.standard_input(sources) as inputs,
        options.warnings_shown(),
        shown("packing", quiet=json or dry_run) as progress,
    ):
        done = run(
            inputs,
            dest,
            format=options.unchecked(format),
            text_key=text_key,
            column=options.pairs("--column", column),
            chat_template=chat_template,
            key=key,
            split_key=options.unchecked(split_key),
            keep=None if keep is None else [name for names in keep for name in names.split(",") if name],
            compression=options.unchecked(compression),
            level=level,
            frame_size=frame_size,
            shard_size=shard_size,
            workers=workers,
            shuffle=shuffle,
            tokenizer=tokenizer,
            eos=end,
            dtype=options.unchecked(dtype),
            resize=resize,
            quality=quality,
            labels=options.unchecked(labels),
            query=query,
            limit=limit,
            on_error=options.unchecked(on_error),
            max_rejects=max_rejects,
            resume=resume,
            append=append,
            part=share,
            commit=commit,
            dry_run=dry_run,
            engine=_engine(engine, address),
            storage_options=stores,
            progress=progress,
        )
    if isinstance(done, Plan):
        report.print_plan(done, json)
    elif isinstance(done, PackedPart):
        report.print_part(done, time.monotonic() - started, json)
    else:
        report.print_packed(done, dest, stores, time.monotonic() - started, limit is not None, json)


def _engine(name: str, address: str | None) -> Any:
    if name not in ("local", "ray"):
        raise OptionError(f"--engine {name}: local or ray")
    if address is None:
        return name
    if name != "ray":
        raise OptionError(f"--address {address} is that of a Ray cluster: give --engine ray, too")
    from shardstream.packing.engines.ray import Ray

    return Ray(address)


def _eos(text: str | None) -> int | Literal["none"] | None:
    if text is None or text == "none":
        return None if text is None else "none"
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"--eos {text}: give a token id, or none") from None


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise OptionError(f"--part {text} must be I/N, such as 0/100 for the first of 100 parts")
    return int(number), int(count)
