"""Writer: a dataset from samples that a program makes, one after another."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from shardstream.cores import cores
from shardstream.counters.page import begin
from shardstream.errors import CommitError, OptionError, SourceError
from shardstream.format import frames
from shardstream.format.columns import NO_COLUMNS, ColumnValue
from shardstream.format.manifest import Manifest
from shardstream.format.numbers import whole_number
from shardstream.packing.columns import columns_of_sample
from shardstream.packing.documents import Documents
from shardstream.packing.end_of_text import Eos, token_id
from shardstream.packing.layout import Codec, Layout
from shardstream.packing.parts import StreamJob
from shardstream.packing.sources.base import Reject
from shardstream.packing.sources.calls import Calls, key_and_fields, located
from shardstream.packing.stream_output import StreamOutput
from shardstream.packing.stream_target import StreamTarget, checked_part
from shardstream.progress import Report, Reporter, shown
from shardstream.storage.store import Options, redact

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt
    from typing_extensions import Self

__all__ = ["Writer"]

_REPORT_EVERY = 256  # samples
_MAX_REJECTS_LISTED = 1_000_000


class Writer:
    """Writes samples into a dataset, in the order in which they come.

        with ss.Writer("out") as writer:
            writer.write({"__key__": "a", "txt": "some text", "jpg": image})

    Threads compress the samples and write the shards. Nothing is seen by readers until the writer is closed
    without an error, as at the end of the `with` block. An exception in the block commits nothing. What was
    written until then stays for `resume`.

    A writer may be shared by threads; the samples are then in the order of their calls. It belongs to the
    process that made it: it cannot be pickled, and a fork of the process cannot use it. A writer that is
    dropped without being closed commits nothing, and warns with a ResourceWarning.

    Args:
        dest: Where the dataset is written: a path, or a URL that fsspec knows.
        shard_size: Bytes of samples in a shard. A shard ends at the first sample behind that size. None: 64
            MiB, or `frame_size` if that is more.
        frame_size: Bytes of samples in a frame, at most 1 GiB. None: 1 MiB, or `shard_size` if that is less.
        tokens: Whether the samples are documents of token ids. "uint16" and "uint32" also say how they are
            stored; True stores uint16 if the first document is an array of uint16, else uint32.
        tokenizer: As for `pack`: turns the field txt, or else text, of each sample into a document.
        eos: The token id that is put at the end of each document. Only with `tokenizer`. "none": documents
            are glued together. None does the same with a warning.
        keep: The names of values that are columns of the index, too, by which `subset(where=...)` chooses:
            numbers, bools, and strings of at most 256 bytes. A name is that of a value of the sample, or in
            its field json, an object or the text of one; "a.b" is also `b` of the object in `a`. A value
            that is None is no column, and no field of the sample either. Of documents of tokens, these values
            are columns alone. A name that no sample has is an error.
        shuffle: A seed, 0 to 2**63 - 1. The samples, of a part those of the part, are permuted by it. They
            wait on a local disk, and are written when the writer is closed. None: they stay in order.
        compression: "zstd" or "none". None: "none" if the first sample is compressed already, else "zstd".
        level: The level of zstd, 1 to 22.
        workers: How many threads compress. None: one for each core.
        on_error: "raise" raises for a bad sample; the writer goes on without it if the caller catches the
            error. "skip" lists bad samples in rejects.jsonl.
        part: The number of this writer, from 0, and how many writers there are, such as the rank and the
            world size. Each writes a part of the dataset; then `commit` makes the dataset. A part that is
            written again, as by a rank that was started again, takes the place of what was there.
        resume: Whether to continue an unfinished writer with the same options. The caller gives all samples
            again, from the first one. Shards that are there are compared and not written again.
        append: Whether to add to the dataset at `dest`.
        storage_options: Options for the store, as fsspec takes them.
        progress: True shows a bar on stderr. A function is called with a Progress now and then.

    Raises:
        OptionError: An option is wrong; or the writers of other parts, or the one to resume, have others.
        CommitError: The target holds a dataset, or another packer is at work there.
        StorageError: The target cannot be accessed.
        MissingExtraError: The package for `tokenizer` is not installed.
    """

    def __init__(
        self,
        dest: str | os.PathLike[str],
        *,
        shard_size: str | int | None = None,
        frame_size: str | int | None = None,
        tokens: bool | Literal["uint16", "uint32"] = False,
        tokenizer: str | None = None,
        eos: Eos = None,
        keep: Sequence[str] | None = None,
        shuffle: int | None = None,
        compression: Codec | None = None,
        level: int = 3,
        workers: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        part: tuple[int, int] | None = None,
        resume: bool = False,
        append: bool = False,
        storage_options: Options = None,
        progress: Report = None,
    ) -> None:
        if tokens not in (True, False, "uint16", "uint32"):
            raise OptionError(f"tokens={tokens!r} must be True, False, 'uint16' or 'uint32'")
        if tokens and tokenizer is not None:
            raise OptionError("tokens and tokenizer: give the one or the other")
        layout = replace(
            Layout.of_sizes(frame_size, shard_size, whole_number("level", level)), codec=compression or "zstd"
        )
        frames.compressor(layout.codec, layout.level)  # raises OptionError for a bad codec or level
        job = StreamJob(
            Calls(), os.fspath(dest), layout, tokenizer=tokenizer,
            eos=token_id(eos, tokenizer, stacklevel=3), on_error=on_error, shuffle=shuffle,
            storage_options=storage_options,
            holds="tokens" if tokens or tokenizer is not None else "samples",
        )  # fmt: skip
        self._job = job
        begin("pack", redact(job.dest))
        workers = cores() if workers is None else whole_number("workers", workers, 1)
        self._part = checked_part(part)
        self._keep = () if keep is None else (keep,) if isinstance(keep, str) else tuple(keep)
        self._unknown: list[str] | None = None  # of these, what no sample has had so far
        self._documents: Documents | None = None
        if job.kind == "tokens":
            self._documents = Documents(
                tokens if isinstance(tokens, str) else None, tokenizer, job.eos, self._keep
            )
        self._write_lock = threading.Lock()
        self._owner = os.getpid()
        self._given = self._rejected = 0  # samples
        self._rejects: list[tuple[str, str]] = []
        self._max_rejects = 1.0  # the share that may be; `pack` has another
        self._state: Literal["open", "closed", "aborted"] = "open"
        self._manifest: Manifest | None = None
        options: dict[str, object] = {"compression": compression, "tokens": tokens}
        if keep is not None:
            options["keep"] = list(self._keep)
        self._target = StreamTarget(job, options, self._part, resume, append)
        try:
            if self._documents is not None and self._target.old is not None:
                self._documents.fit(self._target.old, self._target.store.url)
            self._output = StreamOutput(self._target, layout, compression, workers, job.shuffle)
        except BaseException:
            self._target.release()
            raise
        if progress is True:
            progress = self._target.held.enter_context(shown("writing", quiet=False))
        self._report = Reporter(progress)
        self._dropped = weakref.finalize(self, self._target.drop)

    @property
    def samples(self) -> int:
        """How many samples were written so far."""
        return self._output.samples

    @property
    def rejects(self) -> Sequence[tuple[str, str]]:
        """The first million samples that were left out: where each is, and why."""
        return self._rejects

    @property
    def rejected(self) -> int:
        """How many bad samples were left out so far."""
        return self._rejected

    @property
    def manifest(self) -> Manifest:
        """The manifest of the dataset. Raises OptionError before the writer is closed, and for a part."""
        if self._manifest is None:
            raise OptionError("there is no manifest before the writer is closed, or for a part")
        return self._manifest

    def write(self, sample: Mapping[str, Any] | npt.ArrayLike) -> None:
        """Write one sample.

        Args:
            sample: The values of the fields by name, and `__key__`, a str or an int. Without `__key__` the
                sample is numbered. The last extension of a field's name says what becomes of its value: see
                the table in `shardstream.packing.values`. A writer of tokens takes the token ids, [n], as a
                list or an array of integers, in the field `tokens` or alone.

        Raises:
            SourceError: The sample cannot be stored, and `on_error` is "raise".
            OptionError: The sample is not the one that was given before, and `resume` is True.
            CommitError: The writer is closed, or belongs to another process.
            StorageError: A shard could not be written. Nothing can be committed any more.
        """
        if self._state != "open" or self._owner != os.getpid():
            self._check_usable()
        with self._write_lock:
            number, self._given = self._given, self._given + 1
            if self._documents is None:
                self._add(sample, number)
            else:
                bad = self._documents.take(sample, f"sample {number}", self._key(number))
                if bad is not None:
                    self._reject(bad)
                self._add_documents(self._documents)
            if self._given % _REPORT_EVERY == 0:
                self._tell()

    def close(self) -> None:
        """Write what is left, and commit the dataset; a part is committed by `commit`. Once is enough.

        Raises:
            SourceError: There is no sample, or one of the last cannot be stored.
            OptionError: The samples are not those that were given before, and `resume` is True.
            CommitError: The dataset has changed, or the writer was aborted or belongs to another process.
            StorageError: A shard could not be written.
        """
        if self._state == "closed" and self._owner == os.getpid():
            return
        self._check_usable()
        with self._write_lock:
            try:
                self._finish()
            except BaseException:
                self._end("aborted")
                raise
            self._end("closed")

    def abort(self) -> None:
        """End the writer without a commit. What was written stays for `resume`."""
        if self._state == "open" and self._owner == os.getpid():
            self._end("aborted")

    def __enter__(self) -> Self:
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def _key(self, number: int) -> str:
        """The key of a sample that names none."""
        return f"{number:012d}" if self._part is None else f"{self._part[0]:06d}-{number:012d}"

    def _add(self, sample: Any, number: int) -> None:
        where = f"sample {number}"
        columns: Mapping[str, ColumnValue] = NO_COLUMNS
        missing: tuple[str, ...] = ()
        try:
            if self._job.shuffle is not None:
                where = located(sample, where)
            key, fields = key_and_fields(sample, self._keep)
            if self._keep:
                columns, missing = columns_of_sample(sample, self._keep)
            self._output.add(key or self._key(number), fields, columns, where)
        except SourceError as error:
            self._reject(Reject(located(sample, f"sample {number}"), str(error)), error)
            return
        if self._unknown != []:
            self._note_missing(missing)

    def _add_documents(self, documents: Documents, last: bool = False) -> None:
        for document in documents.ready(last):
            assert documents.dtype is not None  # there is a document
            try:
                self._output.add_document(document, documents.dtype)
            except SourceError as error:
                self._reject(Reject(document.where, str(error)), error)
                continue
            self._note_missing(document.missing)

    def _add_waiting(self) -> None:
        """Add the texts that wait to be tokenized with others."""
        if self._documents is not None:
            self._add_documents(self._documents, last=True)

    def _note_missing(self, missing: Sequence[str]) -> None:
        before = missing if self._unknown is None else self._unknown
        self._unknown = [name for name in before if name in missing]

    def _reject(self, bad: Reject, cause: Exception | None = None) -> None:
        if self._job.on_error == "raise":
            raise SourceError(
                f"{bad.where}: {bad.reason}. To leave such samples out: on_error='skip'"
            ) from cause
        self._rejected += 1
        if len(self._rejects) < _MAX_REJECTS_LISTED:
            self._rejects.append((bad.where, bad.reason))

    def _finish(self) -> None:
        self._add_waiting()
        shards = self._output.close(lambda where, error: self._reject(Reject(where, str(error)), error))
        dtype = None if self._documents is None or not shards else self._documents.dtype
        self._manifest = self._target.commit(
            shards, dtype, self._rejects, self._rejected, self._max_rejects, self._unknown
        )
        self._tell()

    def _end(self, state: Literal["closed", "aborted"]) -> None:
        self._state = state
        self._dropped.detach()
        self._target.release()

    def _check_usable(self) -> None:
        if self._owner != os.getpid():
            raise CommitError(
                f"{self._target.store.url}: this Writer belongs to process {self._owner}, of which "
                "this one is a fork; open one in each process, with part=(rank, world), and commit them"
            )
        if self._state != "open":
            raise CommitError(f"{self._target.store.url}: this Writer is {self._state}; open another one")

    def _tell(self) -> None:
        done = self._output
        if done.samples:
            self._report(samples=done.samples, done_bytes=done.input_bytes, rejected=self._rejected)

    def __reduce__(self) -> str:
        raise OptionError("a Writer stays in its process; open one in each process, with part=(rank, world)")
