"""The manifest: the list of a dataset's shards. Writing it, in one atomic put, is the commit.

docs/format.md describes the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from shardstream.errors import CorruptionError, SourceError
from shardstream.format.columns import ColumnInfo, merge
from shardstream.format.names import check_field
from shardstream.format.shard_checks import shards_problem
from shardstream.format.shard_info import ShardInfo, is_inside
from shardstream.format.shards import Layout, Shards
from shardstream.format.shown import counted, one_line, table
from shardstream.format.sizes import human_size

__all__ = ["MAX_BYTES", "NAME", "VERSIONS", "FieldInfo", "Manifest", "ShardInfo", "decoded", "is_inside"]

# The structs below have a field `bytes`, which hides the type inside them.
Data = bytes


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


T = TypeVar("T", bound=_Versioned)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

NAME = "manifest.json"
VERSIONS = (1, 2)  # 2: for columns of values, shards that are `grouped` or `sparse`, and very many shards
MAX_BYTES = 1 << 30


class FieldInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field that samples may have.

    Args:
        name: The name of the field, as in the names of tar members.
        codec: The extension by which the field is decoded, such as "jpg".
        dtype: The dtype of tokens; None for other fields.
    """

    name: str
    codec: str
    dtype: Literal["uint16", "uint32"] | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole dataset.

    Attributes:
        version: The version of the format: 2 if there are columns, or a shard is `grouped` or `sparse`, else
            1.
        kind: "samples", or "tokens" for documents of token ids.
        fields: All fields that samples may have.
        shards: The shards in their order: a tuple, or a sequence that makes the object of a shard when it is
            asked for, if they are very many.
        samples: How many samples all shards have.
        tokens: How many tokens all shards have.
        bytes: The sizes of all files, added up.
        raw_bytes: The sizes of all tars in them, added up.
        provenance: Where the data came from, and the options that it was packed with.
        external: Whether shards may lie outside the dataset, as adopted archives do.
        fingerprint: The SHA-256 of everything else, 64 hex digits.
        columns: The columns of values in the indexes of the shards.
    """

    version: int
    kind: Literal["samples", "tokens"]
    fields: tuple[FieldInfo, ...]
    shards: Sequence[ShardInfo]
    samples: int
    tokens: int
    bytes: int
    raw_bytes: int
    provenance: dict[str, Any]
    external: bool
    fingerprint: str
    columns: tuple[ColumnInfo, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.shards, list):
            msgspec.structs.force_setattr(self, "shards", tuple(self.shards))

    @property
    def sample_bytes(self) -> int | None:
        """The bytes that the fields of all samples hold: what was packed, without the padding of tars.

        None if a part of the dataset was made by version 0.1, which did not record it, or adopted.
        """
        appended = self.provenance.get("appended", [])
        records = [self.provenance, *(appended if isinstance(appended, list) else [])]
        sizes = [record.get("sample_bytes") if isinstance(record, dict) else None for record in records]
        known = [size for size in sizes if isinstance(size, int)]
        return sum(known) if len(known) == len(sizes) else None

    @classmethod
    def build(
        cls,
        kind: Literal["samples", "tokens"],
        fields: tuple[FieldInfo, ...],
        shards: Sequence[ShardInfo],
        provenance: dict[str, Any],
        external: bool = False,
    ) -> Manifest:
        """Make a manifest, and compute its totals and its fingerprint.

        Args:
            kind: As in the class.
            fields: As in the class.
            shards: As in the class.
            provenance: As in the class.
            external: As in the class.

        Returns:
            The manifest, of the oldest version that can hold it.
        """
        columns = merge((shard.samples, shard.columns) for shard in shards)
        manifest = cls(
            version=_version(shards, columns),
            kind=kind,
            fields=fields,
            shards=shards,
            samples=sum(shard.samples for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            bytes=sum(shard.bytes for shard in shards),
            raw_bytes=sum(shard.raw_bytes for shard in shards),
            provenance=provenance,
            external=external,
            fingerprint="",
            columns=columns,
        )
        return msgspec.structs.replace(manifest, fingerprint=manifest.computed_fingerprint())

    def computed_fingerprint(self) -> str:
        """The SHA-256 of all but the fingerprint, 64 hex digits."""
        import hashlib  # here, since it loads slowly and a worker of a pack does not need it

        blank = msgspec.structs.replace(self, fingerprint="")
        return hashlib.sha256(blank.to_json()).hexdigest()

    def _described(self) -> dict[str, str]:
        """What a person is shown, by name. Neither provenance nor URLs, since they may hold secrets."""
        tokens = {"tokens": counted(self.tokens, "token")} if self.kind == "tokens" else {}
        return {
            "kind": self.kind,
            "samples": counted(self.samples, "sample"),
            **tokens,
            "shards": counted(len(self.shards), "shard"),
            "fields": f"fields={[field.name for field in self.fields]}",
            **({"columns": f"columns={[column.name for column in self.columns]}"} if self.columns else {}),
            "bytes": f"{human_size(self.bytes)} stored",
            "raw_bytes": f"{human_size(self.raw_bytes)} decompressed",
            "fingerprint": f"fingerprint={self.fingerprint[:12]}",
        }

    def __repr__(self) -> str:
        return one_line("Manifest", self._described().values())

    def _repr_html_(self) -> str:
        return table("Manifest", self._described() | {"fingerprint": self.fingerprint})

    def to_json(self) -> Data:
        """The manifest as JSON without white space."""
        return msgspec.json.encode(self, order="deterministic", enc_hook=_rows)

    def to_bytes(self) -> Data:
        """The manifest as one file manifest.json."""
        return msgspec.json.format(self.to_json(), indent=1) + b"\n"

    @classmethod
    def from_bytes(cls, data: Data, where: str = NAME) -> Manifest:
        """Load and check a manifest that is one file.

        Args:
            data: The content of the file.
            where: Its name, for messages.

        Returns:
            The manifest.

        Raises:
            CorruptionError: The file is no manifest, is damaged, or has another format version.
        """
        manifest = decoded(data, cls, where)
        manifest.check(where)
        return manifest

    def check(self, where: str, fingerprint: bool = True) -> None:
        """Raise CorruptionError if something is wrong with the manifest.

        Args:
            where: The name of the file, for the message.
            fingerprint: Whether the fingerprint is computed and compared.
        """
        try:
            problem = self._wrong_fingerprint() if fingerprint else None
            problem = problem or self.problem()
        except (SourceError, CorruptionError) as error:
            raise CorruptionError(f"{where}: {error}") from error
        if problem:
            raise CorruptionError(f"{where}: {problem}")

    def _wrong_fingerprint(self) -> str | None:
        if self.fingerprint == self.computed_fingerprint():
            return None
        return "the fingerprint does not match the contents; the file was damaged or edited"

    def problem(self) -> str | None:
        """What is wrong with the manifest, or None. The fingerprint is not looked at."""
        names = [check_field(field.name) for field in self.fields]
        if len(set(names)) != len(names):
            return "a field is listed twice"
        if self.kind == "tokens" and (len(names) != 1 or self.fields[0].dtype is None):
            return "a token dataset needs one field with a dtype"
        shards = Shards.of(self.shards)
        problem = shards_problem(shards, names, self.external)
        if problem:
            return problem
        totals = tuple(sum(shards.values(name)) for name in ("samples", "tokens", "bytes", "raw_bytes"))
        if totals != (self.samples, self.tokens, self.bytes, self.raw_bytes):
            return "the totals are not the sums over the shards"
        if self.columns != merge(shards.merged()):
            return "the columns are not those of the shards"
        if self.version != _version(shards.layouts, self.columns):
            return f"format version {self.version} does not go with its columns and shards"
        return None


def _version(shards: Iterable[ShardInfo | Layout], columns: tuple[ColumnInfo, ...]) -> int:
    return 2 if columns or any(shard.grouped or shard.sparse for shard in shards) else 1


def decoded(data: Data, kind: type[T], where: str) -> T:
    """What a JSON file holds, unchecked, if this version of shardstream knows its format version.

    Args:
        data: The content of the file.
        kind: The struct that it should be.
        where: Its name, for messages.

    Raises:
        CorruptionError: It is something else, or has another format version.
    """
    try:
        found = msgspec.json.decode(data, type=kind)
    except _UNREADABLE as error:
        # Perhaps another format version is why. It is looked at only now, since that goes through the whole
        # file.
        try:
            version = msgspec.json.decode(data, type=_Version).version
        except _UNREADABLE as first:
            raise _no_manifest(data, where, first) from first
        if version in VERSIONS:
            raise _no_manifest(data, where, error) from error
    else:
        version = found.version
    if version not in VERSIONS:
        raise CorruptionError(
            f"{where}: format version {version}; this shardstream reads versions 1 and 2, upgrade it"
        )
    return found


def _no_manifest(data: Data, where: str, error: Exception) -> CorruptionError:
    return CorruptionError(f"{where}: {_what(data)}, not a manifest ({error})")


def _what(data: Data) -> str:
    """A guess at the content of a file that is no manifest."""
    if not data:
        return "this is an empty file"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "this is HTML, as a login page or a proxy sends it"
    if start.startswith(b"<"):
        return "this is XML"
    return "this is JSON of another kind, or damaged" if start.startswith(b"{") else "this is something else"


def _rows(shards: object) -> list[ShardInfo]:
    if isinstance(shards, Shards):
        return list(shards)
    raise NotImplementedError(f"a manifest cannot hold {type(shards).__name__}")


class _Version(msgspec.Struct):
    version: int
