"""The manifest: what a dataset consists of. Its one atomic put is the commit."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from shardstream.errors import CorruptionError, SourceError
from shardstream.format.names import check_field, shorten

# The structs below have a field `bytes`, which hides the type inside them.
Data = bytes

NAME = "manifest.json"
VERSION = 1
MAX_BYTES = 1 << 30

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_HEX = re.compile(r"[0-9a-f]{32}\Z")


class FieldInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field that samples may have: its name, its codec (an extension) and, for tokens, the dtype."""

    name: str
    codec: str
    dtype: Literal["uint16", "uint32"] | None = None


class ShardInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shard and its index. Sizes in bytes; checksums are xxh3_128, 32 hex digits.

    `fields` names the columns of the index, each one of the manifest's fields.
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


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole dataset. `fingerprint` is the SHA-256 over everything else in it."""

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

    @classmethod
    def build(
        cls,
        kind: Literal["samples", "tokens"],
        fields: tuple[FieldInfo, ...],
        shards: tuple[ShardInfo, ...],
        provenance: dict[str, Any],
        external: bool = False,
    ) -> Manifest:
        """A manifest with its totals and fingerprint computed.

        `external` says that shards may lie outside the dataset's root, as adopted archives do.
        """
        manifest = cls(
            version=VERSION,
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
        )
        return msgspec.structs.replace(manifest, fingerprint=manifest._fingerprint())

    def _fingerprint(self) -> str:
        import hashlib  # slow to load, and a worker of a pack does without

        blank = msgspec.structs.replace(self, fingerprint="")
        return hashlib.sha256(msgspec.json.encode(blank, order="deterministic")).hexdigest()

    def to_bytes(self) -> Data:
        """The file manifest.json."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=1) + b"\n"

    @classmethod
    def from_bytes(cls, data: Data, where: str = NAME) -> Manifest:
        """Load and validate manifest.json; raises CorruptionError."""
        try:
            version = msgspec.json.decode(data, type=_Version).version
            if version != VERSION:
                raise CorruptionError(
                    f"{where}: format version {version}; this shardstream reads version {VERSION}, upgrade it"
                )
            manifest = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptionError(f"{where}: not a manifest ({error})") from error
        try:
            problem = manifest.problem()
        except SourceError as error:
            raise CorruptionError(f"{where}: {error}") from error
        if problem:
            raise CorruptionError(f"{where}: {problem}")
        return manifest

    def problem(self) -> str | None:
        """What is wrong with it, or None."""
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
        return None


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
