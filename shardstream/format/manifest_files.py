"""A manifest as files: one file, or a small one that names a large one, if there are very many shards.

The small one is the stub: it is manifest.json, and to put it is the commit. The large one, the body, has the
fingerprint in its name, so that no other manifest ever has this name.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
import xxhash
import zstandard

from shardstream.errors import CorruptionError
from shardstream.format.columns import ColumnInfo
from shardstream.format.manifest import MAX_BYTES, NAME, FieldInfo, Manifest, decoded
from shardstream.format.shards import Shards

__all__ = [
    "BODY", "LARGE", "Stub", "body_name", "is_stub", "join", "load", "load_body", "load_stub", "make_body",
    "make_stub",
]  # fmt: skip

# Bytes of JSON above which there is a stub: some 2,700 shards. Up to here one file comes in about the time
# that the store takes to answer. Above, all processes of all nodes would load one object at the same time.
LARGE = 1 << 20
BODY = re.compile(r"manifest-([0-9a-f]{64})\.json\.zst\Z")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")
_MAGIC = b"\x28\xb5\x2f\xfd"  # of zstd; no JSON has it, since it is no UTF-8
_LEVEL = 1  # the smallest, too: most of it are checksums, among which higher ones look for what is not there

Data = bytes


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that a stub names.

    Args:
        url: Its name below the dataset.
        bytes: Its size.
        raw_bytes: Its size decompressed.
        checksum: xxh3_128 of the file, 32 hex digits.
    """

    url: str
    bytes: int
    raw_bytes: int
    checksum: str


class Stub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file manifest.json of a dataset of very many shards.

    Args:
        version: 2, whatever the version in the body is: readers of version 1 do not know stubs.
        kind, samples, tokens, bytes, raw_bytes, fingerprint: As in the manifest.
        shards: How many shards there are.
        body: Where all the rest is.
    """

    version: Literal[2]
    kind: Literal["samples", "tokens"]
    shards: int
    samples: int
    tokens: int
    bytes: int
    raw_bytes: int
    fingerprint: str
    body: Body

    def to_bytes(self) -> Data:
        """The content of manifest.json."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The JSON in a body: a manifest whose shards are columns."""

    version: int
    kind: Literal["samples", "tokens"]
    fields: tuple[FieldInfo, ...]
    samples: int
    tokens: int
    bytes: int
    raw_bytes: int
    provenance: dict[str, Any]
    external: bool
    fingerprint: str
    shards: msgspec.Raw
    columns: tuple[ColumnInfo, ...] = ()


_COMMON = tuple(name for name in _Content.__struct_fields__ if name != "shards")


class _Kind(msgspec.Struct):
    """What tells a stub from a manifest that is one file."""

    body: dict[str, Any] | None = None


def body_name(fingerprint: str) -> str:
    """The name of the body of a manifest."""
    return f"manifest-{fingerprint}.json.zst"


def make_body(manifest: Manifest) -> Data:
    """The content of the body of a manifest."""
    shards = msgspec.Raw(Shards.of(manifest.shards).to_json())
    content = _Content(shards=shards, **{name: getattr(manifest, name) for name in _COMMON})
    return zstandard.ZstdCompressor(_LEVEL, write_checksum=True).compress(
        msgspec.json.encode(content, order="deterministic")
    )


def make_stub(manifest: Manifest, body: Data) -> Stub:
    """The stub that names a body of this manifest."""
    return Stub(
        2, manifest.kind, len(manifest.shards), manifest.samples, manifest.tokens, manifest.bytes,
        manifest.raw_bytes, manifest.fingerprint,
        Body(
            body_name(manifest.fingerprint), len(body), zstandard.frame_content_size(body),
            xxhash.xxh3_128_hexdigest(body),
        ),
    )  # fmt: skip


def is_stub(data: Data) -> bool:
    """Whether a file manifest.json seems to be a stub."""
    if len(data) > LARGE or b'"body"' not in data:  # to look through a list of shards takes long
        return False
    try:
        return msgspec.json.decode(data, type=_Kind).body is not None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def load_stub(data: Data, where: str = NAME) -> Stub:
    """Load and check a stub.

    Raises:
        CorruptionError: It is no stub, is damaged, or has another format version.
    """
    stub = decoded(data, Stub, where)
    if not _FINGERPRINT.match(stub.fingerprint) or stub.body.url != body_name(stub.fingerprint):
        raise CorruptionError(f"{where}: it names {stub.body.url[:100]!r}, which is not the name of its body")
    if not 0 < stub.body.bytes <= MAX_BYTES or not 0 < stub.body.raw_bytes <= MAX_BYTES:
        raise CorruptionError(f"{where}: its body has a size out of range")
    return stub


def load_body(stub: Stub, data: Data, where: str, fingerprint: bool = True) -> Manifest:
    """The manifest in a body.

    Args:
        stub: What names it.
        data: Its content.
        where: Its name, for messages.
        fingerprint: Whether the fingerprint of the content is computed, too, which takes as long as all the
            rest. Without it, a body is what its checksum in the stub says.

    Raises:
        CorruptionError: It is damaged, or is not what the stub names.
    """
    if len(data) != stub.body.bytes or xxhash.xxh3_128_hexdigest(data) != stub.body.checksum:
        raise CorruptionError(
            f"{where}: not the {stub.body.bytes} bytes whose checksum is in {NAME}; "
            "copy both files again, or rebuild the dataset"
        )
    try:
        if zstandard.frame_content_size(data) != stub.body.raw_bytes:
            raise CorruptionError(f"{where}: it does not have the size that {NAME} says")
        content = msgspec.json.decode(zstandard.decompress(data), type=_Content)
        shards = Shards.from_json(content.shards)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, zstandard.ZstdError) as error:
        raise CorruptionError(f"{where}: not the body of a manifest ({error})") from error
    except CorruptionError as error:
        raise CorruptionError(f"{where}: {error}") from error
    found = Manifest(shards=shards, **{name: getattr(content, name) for name in _COMMON})
    same = make_stub(found, data)
    if same != stub:
        raise CorruptionError(f"{where}: it is not the manifest that {NAME} names")
    found.check(where, fingerprint)
    return found


def join(manifest: Manifest) -> Data:
    """A manifest as one string of bytes for `load`, small and soon loaded: for a cache or another process."""
    if not isinstance(manifest.shards, Shards):
        return manifest.to_bytes()
    body = make_body(manifest)
    return make_stub(manifest, body).to_bytes() + body


def load(data: Data, where: str = NAME) -> Manifest:
    """The manifest in one file manifest.json, or in a stub with its body behind it.

    Raises:
        CorruptionError: It is none, or is damaged.
    """
    at = data.find(_MAGIC)
    if at < 0:
        return Manifest.from_bytes(data, where)
    return load_body(load_stub(data[:at], where), data[at:], where, fingerprint=False)
