"""The interface of sources: plan tasks over files, and read the samples of one task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, cast

from shardstream.errors import SourceError
from shardstream.format.columns import NO_COLUMNS, ColumnValue
from shardstream.format.names import SplitKey
from shardstream.packing.resize import Resize
from shardstream.storage.inputs import FileInfo, read_slice
from shardstream.storage.store import Options, redact

if TYPE_CHECKING:
    from typing_extensions import Self

NO_COUNTS: Mapping[str, int] = MappingProxyType({})
TokenDtype = Literal["uint16", "uint32"]
# What hubs have beside the data in a folder, in lower case.
HUB_FILES = (
    "/readme.md", "/license", "/license.md", "/license.txt", "/dataset_infos.json", "/dataset_info.json",
    "/croissant.json",
)  # fmt: skip
TOKENS = "tokens"  # the field of a sample that is a document of token ids


class FileSpan(NamedTuple):
    """A part of a file.

    Args:
        url: The path or URL of the file.
        start: The first byte of the part.
        end: The byte behind the part.
        size: The bytes of the whole file.
        key_base: The keys of samples without an id are this text and a number.
        label: The class of the file, or "".
        prefix: Default keys of samples with an id are this text and the id. `pack` fills it: "", or
            `key_base` and a slash.
        units: Of sources that count in row groups, rows or records: the first one of the part, and the one
            behind its last.
    """

    url: str
    start: int
    end: int
    size: int
    key_base: str
    label: str = ""
    prefix: str = ""
    units: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class SourceOptions:
    """What `pack` was asked for and sources have to know. A source uses those that it names in `takes`.

    Args:
        text_key: The key of the text in an object or a row.
        keep: The other keys that are stored; "a.b" is `b` of the object in `a`. None: all. Names that no row
            has are an error before the commit.
        column: Which column of a row becomes which field: pairs of a field and a column. None: as the types
            of the columns show.
        key: The key in an object or a row whose value names the sample, as it is; "none": samples are
            numbered. None: the first of `__key__`, `key` and `id` that is there, with the path of the file
            before it if there are several files.
        split_key: Of archives: at which dot of the name of a member its key ends.
        chat_template: The file of a chat template, which makes text of messages; or None.
        resize: How images are made smaller, or None.
        eos: Of tokens that are there already: the token id that ends each document, or None.
        dtype: Of tokens that are there already: how they are stored. None: as the input shows.
        labels: Which folder is the class of an image: "none", "leaf" or "top". None: as the folders show.
        query: Of databases: the SELECT whose rows are packed.
        storage_options: Options for the stores of the input. Every source takes them.
    """

    text_key: str = "text"
    keep: tuple[str, ...] | None = None
    column: tuple[tuple[str, str], ...] | None = None
    key: str | None = None
    split_key: SplitKey = "first"
    chat_template: str | None = None
    resize: Resize | None = None
    eos: int | None = None
    dtype: TokenDtype | None = None
    labels: Literal["none", "leaf", "top"] | None = None
    query: str | None = None
    storage_options: Options = field(default=None, repr=False)


@dataclass(frozen=True)
class Task:
    """One slice of the input: consecutive whole files, or a part of one file."""

    # Whether no second attempt may run beside a slow one: what it does need not be the same each time.
    alone: ClassVar[bool] = False

    number: int
    files: tuple[FileSpan, ...]


class Sample(NamedTuple):
    """A sample.

    Args:
        key: The key of the sample.
        fields: The bytes of each field, by name.
        where: Where the sample came from, such as "corpus.jsonl:17".
        counts: Numbers that are added up over all samples, for the provenance in the manifest.
        columns: The values that the index keeps for the choice of samples, by name.
        missing: The names in the option `keep` that the row does not have.
    """

    key: str
    fields: dict[str, bytes]
    where: str
    counts: Mapping[str, int] = NO_COUNTS
    columns: Mapping[str, ColumnValue] = NO_COLUMNS
    missing: tuple[str, ...] = ()


class Reject(NamedTuple):
    """A piece of the input that is no sample.

    Args:
        where: Where it is, such as "corpus.jsonl:17".
        reason: Why it is no sample.
        harmless: Whether nothing is lost without it, as a file that an operating system adds. It is named and
            counted, and it is never an error.
    """

    where: str
    reason: str
    harmless: bool = False


class Source(Protocol):
    """One kind of input: a frozen dataclass of its options, which is pickled for worker processes.

    Its class says how files are recognised (`extensions`, in lower case), which options beside
    `storage_options` it uses (`takes`), and how it is made of them (`make`). A class that another package
    names in the entry point group `shardstream.sources` is a format like any other.

    A class may also have `companions`, ends of the names of files that it reads beside these, and `left_out`,
    those of files that `pack` keeps from it.

    A class whose `is_database` is true is given URLs that are no files. What it raises while it reads is
    never a sample to skip. Its method `sized(files)` returns them with their sizes.

    A class that is derived from `Streamed` yields the tasks of its plan one by one.

    `keys`, if it is there, says for people what is taken for the keys.

    `streams` is true if compressed files are read as streams and samples are given before their ends, where
    their checksums are. If bad samples are skipped, such files are then checked before.

    Tasks may only depend on the input and the target size, never on the number of workers.
    `shardstream.testing.SourceContract` checks a source.
    """

    extensions: ClassVar[tuple[str, ...]]
    takes: ClassVar[frozenset[str]]

    @classmethod
    def make(cls, options: SourceOptions) -> Self:
        """The source with these options.

        Args:
            options: Those of `pack`. Only those in `takes` are set.

        Returns:
            The source.

        Raises:
            OptionError: An option is wrong.
        """
        ...

    @property
    def name(self) -> str:
        """The name that --format takes."""
        ...

    def options(self) -> dict[str, Any]:
        """The options that shape the samples, for the manifest's provenance."""
        ...

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Cut the files into tasks.

        Args:
            files: The files with their sizes, in the order in which they are packed.
            target: About how many bytes of input a task should have.

        Returns:
            The tasks, in the order of their samples.
        """
        ...

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """The samples of one task in a fixed order. The memory must not grow with the input.

        Args:
            task: One of the tasks of `plan`.

        Yields:
            Samples, and a `Reject` in the place of each that cannot be packed.
        """
        ...


class Streamed:
    """A source that gives its tasks one after another: for more files than memory has room for."""

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        """The tasks of `plan`, of files that may be on a local disk, and are gone through several times."""
        raise NotImplementedError

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Cut the files into tasks of about `target` bytes each."""
        return list(self.tasks(files, target))


def tasks_of(source: Source, files: Sequence[FileInfo], target: int) -> Iterable[Task]:
    """The tasks of a source, one after another if it is `Streamed`."""
    # A class that is derived from one of ours may have a plan of its own. The methods of others may be of the
    # object, and not of its class.
    if isinstance(source, Streamed):
        plan: object = type(source).plan
        if plan is Streamed.plan:
            return source.tasks(files, target)
    return source.plan(files, target)


def token_dtype(source: Source) -> TokenDtype | None:
    """The dtype of the tokens, if the samples of a source are documents of token ids already; else None.

    Such a source has an attribute `token_dtype`. Each of its samples has one field, `TOKENS`: the ids in this
    dtype, little-endian. They are stored as they are.
    """
    found: TokenDtype | None = getattr(source, "token_dtype", None)
    return found


def prepared(source: Source, files: Sequence[FileInfo]) -> Source:
    """The source for these files: what its method `prepare` returns, or itself if it has none.

    A source has such a method if its options depend on the files: `prepare(files)` returns a copy of it.
    """
    prepare = getattr(source, "prepare", None)
    return source if prepare is None else cast("Source", prepare(files))


def sized(source: Source, files: Sequence[FileInfo]) -> Sequence[FileInfo]:
    """The files with their sizes, for a source that knows them better than a store: see `Source`."""
    found = getattr(source, "sized", None)
    return files if found is None else cast("Sequence[FileInfo]", found(files))


def relative(file: FileInfo) -> str:
    """The path of a file below the folder that was given; its name if the file itself was given.

    It is the same wherever the files lie. It becomes keys and provenance, so that a signature in a URL must
    not be in it.
    """
    if file.root and file.url.startswith(file.root.rstrip("/") + "/"):
        return file.url[len(file.root.rstrip("/")) + 1 :]
    name = redact(file.url) if "://" in file.url else file.url
    return os.path.basename(name.rstrip("/")) or name


def group(bundles: Iterable[list[FileSpan]], target: int, sizes: Iterable[int] | None = None) -> list[Task]:
    """Tasks of about `target` bytes each; see `grouped`."""
    return list(grouped(bundles, target, sizes))


def grouped(
    bundles: Iterable[list[FileSpan]], target: int, sizes: Iterable[int] | None = None
) -> Iterator[Task]:
    """Tasks of about `target` bytes each, so that small files do not become shards of their own.

    Args:
        bundles: Parts of files that have to be in the same task.
        target: Bytes.
        sizes: The bytes of each bundle. None: those of its parts.
    """
    number = 0
    spans: list[FileSpan] = []
    size, given = 0, None if sizes is None else iter(sizes)
    for bundle in bundles:
        extra = sum(span.end - span.start for span in bundle) if given is None else next(given)
        if spans and size + extra > target:
            yield Task(number, tuple(spans))
            number += 1
            spans, size = [], 0
        spans += bundle
        size += extra
    if spans:
        yield Task(number, tuple(spans))


def whole_files(files: Iterable[tuple[FileInfo, str]], target: int) -> Iterator[Task]:
    """Tasks of about `target` bytes, of files that are never cut.

    Args:
        files: Each file with the begin of its keys.
        target: Bytes.
    """
    return grouped(([FileSpan(file.url, 0, file.size, file.size, key)] for file, key in files), target)


def cut_files(
    files: Iterable[tuple[FileInfo, str]], target: int, is_whole: Callable[[FileInfo], bool]
) -> Iterator[Task]:
    """Tasks of about `target` bytes, of files that are cut every `target` bytes.

    Args:
        files: Each file with the begin of its keys.
        target: Bytes.
        is_whole: Whether a file cannot be cut. It is only asked of files of more than `target`.
    """

    def slices() -> Iterator[list[FileSpan]]:
        for file, key in files:
            step = file.size if file.size > target and is_whole(file) else target
            for start in range(0, file.size, step):
                yield [FileSpan(file.url, start, min(start + step, file.size), file.size, key)]

    return grouped(slices(), target)


def read_whole(span: FileSpan, storage_options: Options) -> bytes:
    """The bytes of a whole file. Raises SourceError if its size has changed since it was listed."""
    data = read_slice(span.url, 0, span.size + 1, storage_options)
    if len(data) != span.size:
        raise SourceError(
            f"{redact(span.url)}: its size changed from {span.size} bytes while packing; pack again"
        )
    return bytes(data)
