"""pack(): plan the tasks, run them, commit the manifest last."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

from shardstream.errors import OptionError
from shardstream.format import frames
from shardstream.format.manifest import Manifest
from shardstream.format.names import SplitKey
from shardstream.format.numbers import whole_number
from shardstream.packing import reservation
from shardstream.packing.build_manifest import provenance
from shardstream.packing.destination import Destination, manifest_at
from shardstream.packing.end_of_text import Eos, token_id
from shardstream.packing.engines.choice import EngineOption, check_engine, engine_of, needs_of
from shardstream.packing.from_python import (
    PythonOptions,
    check_options,
    pack_rows,
    pack_samples,
    samples_or_calls,
)
from shardstream.packing.hf_rows import is_hf_dataset
from shardstream.packing.job import Job, input_bytes
from shardstream.packing.keys import described, key_rule
from shardstream.packing.layout import AUTO, Codec, Layout, fitting_shard_size
from shardstream.packing.pack_options import PackOptions, Sources
from shardstream.packing.pack_parts import PackedPart, checked_pack_part, commit_parts, run_part
from shardstream.packing.passes import run_passes
from shardstream.packing.planned import StoredPlan
from shardstream.packing.planning import Plan, expected_bytes, plan_tasks, suitable_codec
from shardstream.packing.resize import Resize
from shardstream.packing.runner import Runner
from shardstream.packing.shard_names import clear_temporary
from shardstream.packing.share import shares
from shardstream.packing.sources import (
    Format,
    Source,
    SourceOptions,
    input_files,
    make_source,
    recognise,
    source_class,
    without_companions,
)
from shardstream.packing.sources.base import TokenDtype, prepared, sized
from shardstream.packing.sources.calls import Call, Calls
from shardstream.packing.version_01 import old_record
from shardstream.progress import Report, with_bar
from shardstream.storage.store import Options, absolute, is_private

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PackedPart", "Plan", "pack"]


@overload
def pack(
    sources: Sources,
    dest: str | os.PathLike[str],
    *,
    dry_run: Literal[False] = False,
    part: None = None,
    **options: Unpack[PackOptions],
) -> Manifest: ...
@overload
def pack(
    sources: Sources | Sequence[Call], dest: str | os.PathLike[str], *, part: tuple[int, int],
    **options: Unpack[PackOptions],
) -> PackedPart: ...  # fmt: skip
@overload
def pack(
    sources: Sources, dest: str | os.PathLike[str], *, dry_run: Literal[True], **options: Unpack[PackOptions]
) -> Plan: ...
@overload
def pack(
    sources: Sources, dest: str | os.PathLike[str], *, dry_run: bool, part: tuple[int, int] | None = None,
    **options: Unpack[PackOptions],
) -> Manifest | Plan | PackedPart: ...  # fmt: skip
@overload
def pack(
    sources: Iterable[Mapping[str, Any]], dest: str | os.PathLike[str], **options: Unpack[PythonOptions]
) -> Manifest: ...
@overload
def pack(
    sources: Sequence[Call], dest: str | os.PathLike[str], **options: Unpack[PythonOptions]
) -> Manifest: ...
@with_bar("packing")
def pack(
    sources: Sources | Iterable[Mapping[str, Any]] | Sequence[Call],
    dest: str | os.PathLike[str],
    *,
    format: Format | Source | None = None,
    text_key: str = "text",
    column: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    key: str | None = None,
    split_key: SplitKey = "first",
    keep: Sequence[str] | None = None,
    compression: Codec | None = None,
    level: int = 3,
    frame_size: str | int | None = None,
    shard_size: str | int | None = None,
    workers: int | None = None,
    shuffle: int | None = None,
    tokenizer: str | None = None,
    eos: Eos = None,
    dtype: TokenDtype | None = None,
    limit: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    max_rejects: float = 0.5,
    resume: bool = False,
    append: bool = False,
    part: tuple[int, int] | None = None,
    commit: bool = False,
    dry_run: bool = False,
    resize: int | None = None,
    quality: int | None = None,
    labels: Literal["none", "leaf", "top"] | None = None,
    query: str | None = None,
    engine: EngineOption = "local",
    storage_options: Options = None,
    progress: Report = None,
) -> Manifest | Plan | PackedPart:
    """Pack sources into a dataset at `dest`.

    A Dataset or IterableDataset of Hugging Face is taken as it is: `text_key`, `column`, `key` and `keep` are
    as for tables.

    Samples of Python are dicts with `__key__` and the values of fields, as `Writer.write` takes them. They
    are given as an iterable, which is read here while threads compress; or as a list of functions without
    arguments, each of which returns or yields samples in a worker process. Such samples take only the options
    that are not about files.

    The output is the same for any number of workers. The manifest is written last. Until then readers see
    what was there before.

    Args:
        sources: The path or URL of a file or folder, or a list of them. Globs and {0..9} are expanded. Or an
            iterable of samples, or a list of functions that can be pickled.
        dest: Where the dataset is written: a path, or a URL that fsspec knows.
        format: The kind of the files, or a `Source` that reads them. None: their extensions show it.
        text_key: Only for JSONL: the key of the text in an object.
        column: Only for tables: from a field to the column that becomes it; "image.bytes" is a part of the
            column `image`, and "*" in the name of a field is the extension of the content. None: the text is
            in `text_key`, and each column of bytes is a field that is named by its content.
        chat_template: Only for JSONL and tables: the file of a chat template, such as the
            tokenizer_config.json of a tokenizer. It makes the text of the messages in `text_key`, by default
            "messages".
        key: For JSONL and tables: the key in an object whose value names the sample, as it is. "none":
            samples are numbered, those of archives too. None: the first of `__key__`, `key` and `id` that an
            object has; of archives the names of their members. With several input files the path of the file,
            without its extensions, and a slash stand before it, since ids often begin again in each file. An
            append goes on with the keys of its dataset.
        split_key: Only for archives: at which dot of the last part of a name the key ends and the field
            begins, "first", as in WebDataset, or "last". With "last" the dots in a key become "%2E".
        keep: For JSONL and tables: the other keys that are stored, in field json; "a.b" is `b` of the
            object in `a`. None: all of them. Of those that are named, numbers, bools and strings of at most
            256 bytes are columns of the index, too, by which `subset(where=...)` chooses. For samples of
            Python it names the columns alone; see `Writer`. A name that no object has is an error before the
            commit.
        compression: "zstd" or "none". None: "none" if the first samples are compressed already, else "zstd".
        level: The level of zstd, 1 to 22.
        frame_size: Bytes of samples in a frame, at most 1 GiB. A frame is the unit of reading and of
            checksums. None: 1 MiB, or less if `shard_size` is less.
        shard_size: Bytes of samples in a shard, at least `frame_size`. None: 64 MiB, or more if `frame_size`
            is more. "auto", for files: the smallest power of two from 64 MiB to 2 GiB that makes fewer than
            50,000 shards of the input; a compressed file counts four times.
        workers: How many processes work; threads if the samples come from an iterable. None: one for each
            core. Of a cluster: how many tasks run at a time; None: as many as there is room for.
        shuffle: A seed, 0 to 2**63 - 1. The whole corpus is permuted by it. None: it stays in order.
        tokenizer: "bytes", a tokenizers .json file, a .tiktoken file or the name of an encoding of tiktoken.
            The dataset then holds token ids. None: it holds samples.
        eos: The token id at the end of each document: with `tokenizer` it is put there; files of tokens are
            cut into documents behind it. "none": texts are glued together. None does the same with a
            warning, and will be an error in the next version.
        dtype: Only for files of tokens: "uint16" or "uint32". None: as the files show.
        limit: How many samples are packed at most, from the beginning of the input. There may be fewer if
            some are rejected when they are written, such as those whose key comes twice. None: all.
        on_error: "raise" ends the pack at the first bad sample. "skip" leaves out bad samples, and files
            that cannot be read, and lists them in rejects.jsonl beside the manifest, the first million of
            each task.
        max_rejects: The share of samples that may be rejected, 0 to 1. If more are, the list of rejects is
            written, but nothing is committed; the same pack with `resume` and a larger share commits it.
        resume: Whether to continue an unfinished pack of the same sources and options. Another version of
            shardstream may have begun it. An iterable is read from its first sample, and compared with what
            is there.
        append: Whether to add to the dataset at `dest`.
        part: For many processes that have no engine in common, such as an array of jobs: the number of this
            one, from 0, and how many there are. Each does its share of the work, with the same arguments. It
            may run at any time, again, and twice at once: what is done is kept. Then `commit` ends the pack.
        commit: Whether to commit what all parts have packed. The other arguments are those of the parts.
        dry_run: Whether to write nothing, and only say what would be done.
        resize: Only for images: pixels of the shorter side. If that of an image is longer, the image is made
            smaller and encoded again. All images are turned upright.
        quality: The quality of resized JPEG and WebP images, 1 to 100. None is 90.
        labels: Only for images: which folder is the class, whose number becomes field cls. "top" is the first
            folder below the one that was given, "leaf" the folder that holds the image, "none" no folder.
            None: the top folder; but folders such as train and val or images are no classes, so that behind
            them the next folder counts; and no folder if other files lie beside images.
        query: Only for databases: the SELECT whose rows are samples, in the order of `key`, which must be
            given. The source is a URL as SQLAlchemy takes it, or duckdb:///PATH, or duckdb:// for a query
            over files. A row that is added, removed or given another key meanwhile is an error.
        engine: Where the tasks run: "local", in processes of this machine; "ray", on Ray that is started here
            for this pack; `ss.engines.Ray(address="auto")`, on a cluster; or anything with a method `submit`,
            such as a Dask client or an executor of concurrent.futures. The bytes of the dataset are the same.
        storage_options: Options for the stores of the sources and of `dest`, as fsspec takes them.
        progress: True shows a bar on stderr. A function is called with a Progress after each task.

    Returns:
        The manifest of the dataset. With `dry_run`, a Plan, of a part its own. With `part`, a PackedPart.

    Raises:
        OptionError: An option is wrong, no row has a name in `keep`, `resume` finds a pack of other sources
            or options, or another part was begun with others.
        SourceError: The data is bad. The message names the file and the line. Or there were more rejects
            than `max_rejects`.
        StorageError: There is no access, or the disk is full.
        CommitError: The target holds a dataset, another packer is at work there, or parts are missing at the
            commit; its attribute `parts` has their numbers.
        CorruptionError: The dataset to append to, or the reservation of the target, is damaged.
        MissingExtraError: The package for `tokenizer`, `resize` or `engine` is not installed.
    """
    arguments = dict(locals())
    if not (isinstance(max_rejects, (int, float)) and 0 <= max_rejects <= 1):
        raise OptionError(f"max_rejects={max_rejects!r} must be a share of the samples, from 0 to 1")
    part = checked_pack_part(part, commit, limit, engine)
    where = engine_of(engine)
    if is_hf_dataset(sources):
        return pack_rows(pack, sources, dest, arguments)
    given = samples_or_calls(sources)
    unread: list[tuple[str, str]] = []  # what on_error="skip" leaves out before there are tasks
    beside: list[tuple[str, str]] = []  # what is harmless to leave out
    if isinstance(given, list):
        files = input_files(given, format, storage_options, unread if on_error == "skip" else None, beside)
    else:
        options = check_options(pack, arguments)
        if not isinstance(given, Calls):
            return pack_samples(given, dest, options)
        kept = None if keep is None else (keep,) if isinstance(keep, str) else tuple(keep)
        files, format, keep = given.files(), replace(given, keep=kept), None  # noqa: A001 - an option's name
    auto = shard_size == AUTO and isinstance(given, list)
    layout = Layout.of_sizes(frame_size, None if auto else shard_size, whole_number("level", level))
    workers = None if workers is None else whole_number("workers", workers, least=1)
    if quality is not None and resize is None:
        raise OptionError("quality needs resize: images that are not resized stay the bytes they are")
    if key is not None and not (isinstance(key, str) and key):
        raise OptionError(f"key={key!r} must be the name of a key or column, or 'none'")
    chosen = format or recognise(files, storage_options)
    takes = source_class(chosen).takes if isinstance(chosen, str) else getattr(chosen, "takes", ())
    if isinstance(chosen, str):
        files, passed = without_companions(chosen, files)
        beside += passed
    source = make_source(
        chosen,
        SourceOptions(
            text_key=text_key,
            column=None if column is None else tuple(column.items()),
            chat_template=chat_template,
            key=key,
            split_key=split_key,
            keep=None if keep is None else (keep,) if isinstance(keep, str) else tuple(keep),
            resize=None if resize is None else Resize(resize, 90 if quality is None else quality),
            # With a tokenizer, or for samples, it is for the job, which says what is wrong with it.
            eos=eos if eos != "none" and tokenizer is None and "eos" in takes else None,
            dtype=dtype,
            labels=labels,
            query=query,
            storage_options=storage_options,
        ),
    )
    kind = source.name
    source = prepared(source, files)
    files = sized(source, files)
    if auto:
        layout = replace(layout, shard_size=fitting_shard_size(expected_bytes(files), layout.frame_size))
    job = Job(
        source=source,
        dest=absolute(os.fspath(dest)),  # workers may have another working directory
        layout=layout,
        tokenizer=tokenizer,
        eos=token_id(eos, tokenizer, stacklevel=4),
        limit=limit,
        on_error=on_error,
        shuffle=shuffle,
        storage_options=storage_options,
    )
    job.check_tokenizer()
    check_engine(where, job, files)
    before = manifest_at(job.dest, storage_options) if append and "key" in source.takes else None
    keys = key_rule(source, key, len(files), before)
    tasks = plan_tasks(job, files, unread, keys)
    codec = suitable_codec(job, tasks) if compression is None else compression
    frames.compressor(codec, level)  # raises OptionError for a bad level before anything is written
    job = replace(job, layout=replace(layout, codec=codec))
    record = provenance(job, kind, files, keys)
    mine = tasks if part is None else shares(tasks, part[1])[part[0]]
    total = sum(map(input_bytes, mine))
    if dry_run:
        return Plan(kind, len(files), len(mine), total, codec, described(record), layout.shard_size)

    if is_private(job.dest) or any(is_private(file.url) for file in files):
        workers = 1
    destination = Destination(job, record, append, old_record(record, files), isinstance(tasks, StoredPlan))
    needs = needs_of(where, job, files, workers, destination.store.local_path(""))
    if part is not None or commit:
        with where.started(needs) as crew:
            runner = Runner(destination, total, crew, progress)
            if part is not None:
                return run_part(job, tasks, destination, runner, record, part)
            return commit_parts(job, tasks, unread, beside, destination, runner, record, max_rejects)
    with reservation.lock_machine(destination.store) as lock:
        if lock is not None:
            clear_temporary(destination.store)  # with the lock, no other packer of this machine is alive
        if resume and (manifest := destination.committed()):
            destination.clean()
            return manifest
        shared = where.shared  # before the start: Ray that has started looks like the program's own
        with where.started(needs) as crew:
            runner = Runner(destination, total, crew, progress)
            return run_passes(
                job, tasks, unread, beside, destination, runner, record, resume, lock, max_rejects, shared,
            )  # fmt: skip
