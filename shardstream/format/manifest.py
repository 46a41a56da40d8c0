"""The manifest: the list of a dataset's shards. Writing it, in one atomic put, is the commit.

docs/format.md describes the file.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from shardstream.errors import CorruptionError, SourceError
from shardstream.format.columns import ColumnInfo, merge
from shardstream.format.names import check_field, shorten
from shardstream.format.shown import counted, one_line, table
from shardstream.format.sizes import human_size

# The structs below have a field `bytes`, which hides the type inside them.
Data = bytes

NAME = "manifest.json"
VERSIONS = (1, 2)  # 2 is written only for columns of values, and if a shard is `grouped` or `sparse`
MAX_BYTES = 1 << 30

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_HEX = re.compile(r"[0-9a-f]{32}\Z")


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


class ShardInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One shard and its index.

    Args:
        url: The path of the file below the dataset, or the URL of an adopted archive.
        codec: "zstd" for frames of zstd, "none" for a plain tar; "gzip" and "zstd-stream" for an adopted
            archive that is compressed as a whole.
        fields: The columns of the index. Each is a field of the manifest.
        bytes: The size of the file.
        raw_bytes: The size of the tar in the file.
        samples: How many samples there are.
        tokens: How many tokens there are; 0 in a dataset of samples.
        frames: How many frames there are.
        checksum: xxh3_128 of the file, 32 hex digits.
        index_url: The path of the index below the dataset.
        index_bytes: The size of the index.
        index_checksum: xxh3_128 of the index, 32 hex digits.
        grouped: Whether a frame of an adopted archive may be several frames of zstd, or one without its size.
        columns: The columns of values in the index.
        index_head: If there are such columns: the bytes of the index without them. They come first.
        index_head_checksum: xxh3_128 of these bytes, 32 hex digits.
        sparse: Whether the index lists the fields that samples have, since they lack most.
    """

    url: str
    codec: Literal["zstd", "none", "gzip", "zstd-stream"]
    fields: tuple[str, ...]
    bytes: int
    raw_bytes: int
    samples: int
    tokens: int
    frames: int
    checksum: str
    index_url: str
    index_bytes: int
    index_checksum: str
    grouped: bool = False
    columns: tuple[ColumnInfo, ...] = ()
    index_head: int = 0
    index_head_checksum: str = ""
    sparse: bool = False


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole dataset.

    Args:
        version: The version of the format: 2 if there are columns, or a shard is `grouped` or `sparse`, else
            1.
        kind: "samples", or "tokens" for documents of token ids.
        fields: All fields that samples may have.
        shards: The shards in their order.
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
    shards: tuple[ShardInfo, ...]
    samples: int
    tokens: int
    bytes: int
    raw_bytes: int
    provenance: dict[str, Any]
    external: bool
    fingerprint: str
    columns: tuple[ColumnInfo, ...] = ()

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
        shards: tuple[ShardInfo, ...],
        provenance: dict[str, Any],
        external: bool = False,
    ) -> Manifest:
        """Make a manifest, and compute its totals and its fingerprint.

        Args:
            kind, fields, shards, provenance, external: As in the class.
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
        return msgspec.structs.replace(manifest, fingerprint=manifest._fingerprint())

    def _fingerprint(self) -> str:
        import hashlib  # here, since it loads slowly and a worker of a pack does not need it

        blank = msgspec.structs.replace(self, fingerprint="")
        return hashlib.sha256(msgspec.json.encode(blank, order="deterministic")).hexdigest()

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

    def to_bytes(self) -> Data:
        """The content of the file manifest.json."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=1) + b"\n"

    @classmethod
    def from_bytes(cls, data: Data, where: str = NAME) -> Manifest:
        """Load and check manifest.json.

        Args:
            data: The content of the file.
            where: Its name, for messages.

        Raises:
            CorruptionError: The file is no manifest, is damaged, or has another format version.
        """
        try:
            version = msgspec.json.decode(data, type=_Version).version
            if version not in VERSIONS:
                raise CorruptionError(
                    f"{where}: format version {version}; this shardstream reads versions 1 and 2, upgrade it"
                )
            manifest = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptionError(f"{where}: {_what(data)}, not a manifest ({error})") from error
        try:
            problem = manifest.problem()
        except SourceError as error:
            raise CorruptionError(f"{where}: {error}") from error
        if problem:
            raise CorruptionError(f"{where}: {problem}")
        return manifest

    def problem(self) -> str | None:
        """What is wrong with the manifest, or None."""
        if self.fingerprint != self._fingerprint():
            return "the fingerprint does not match the contents; the file was damaged or edited"
        names = [check_field(field.name) for field in self.fields]
        if len(set(names)) != len(names):
            return "a field is listed twice"
        if self.kind == "tokens" and (len(names) != 1 or self.fields[0].dtype is None):
            return "a token dataset needs one field with a dtype"
        for shard in self.shards:
            sizes = (
                shard.bytes, shard.raw_bytes, shard.samples, shard.tokens, shard.frames,
                shard.index_bytes,
            )  # fmt: skip
            if min(sizes) < 0 or max(sizes) >= 1 << 62:
                return f"shard {shorten(shard.url)!r} has a size out of range"
            if shard.frames > shard.samples:
                return f"shard {shorten(shard.url)!r} has more frames than samples"
            if len(set(shard.fields)) != len(shard.fields) or not set(shard.fields) <= set(names):
                return f"shard {shorten(shard.url)!r} has columns that are not fields"
            if not (_HEX.match(shard.checksum) and _HEX.match(shard.index_checksum)):
                return f"shard {shorten(shard.url)!r} has a checksum that is not 32 hex digits"
            heads = (shard.index_head > 0, bool(_HEX.match(shard.index_head_checksum)))
            if heads != (bool(shard.columns),) * 2 or not 0 <= shard.index_head <= shard.index_bytes:
                return f"shard {shorten(shard.url)!r} has columns of values without the size of its index"
            if any(not 0 <= column.missing <= shard.samples for column in shard.columns):
                return f"shard {shorten(shard.url)!r} has a column that more samples lack than there are"
            if len({column.name for column in shard.columns}) != len(shard.columns):
                return f"shard {shorten(shard.url)!r} has a column of values twice"
            if not is_inside(shard.index_url) or not (self.external or is_inside(shard.url)):
                return f"{shorten(shard.url)!r} leaves the dataset's root"
            if self.external and shard.url.startswith(("pipe:", "-")):
                return f"{shorten(shard.url)!r} is not a URL that data may come from"
        totals = (
            sum(shard.samples for shard in self.shards),
            sum(shard.tokens for shard in self.shards),
            sum(shard.bytes for shard in self.shards),
            sum(shard.raw_bytes for shard in self.shards),
        )
        if totals != (self.samples, self.tokens, self.bytes, self.raw_bytes):
            return "the totals are not the sums over the shards"
        if self.columns != merge((shard.samples, shard.columns) for shard in self.shards):
            return "the columns are not those of the shards"
        if self.version != _version(self.shards, self.columns):
            return f"format version {self.version} does not go with its columns and shards"
        return None


def _version(shards: tuple[ShardInfo, ...], columns: tuple[ColumnInfo, ...]) -> int:
    return 2 if columns or any(shard.grouped or shard.sparse for shard in shards) else 1


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


class _Version(msgspec.Struct):
    version: int


def is_inside(url: str) -> bool:
    """Whether `url` is a relative path that stays within the dataset's root."""
    return bool(url) and not (
        url.startswith("/")
        or "\\" in url
        or "\0" in url
        or _SCHEME.match(url)
        or any(part in ("", ".", "..") for part in url.split("/"))
    )
