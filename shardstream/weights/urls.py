"""Where a URL of weights leads: a store, and what is known of its files without reading them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
import xxhash

from shardstream.errors import CorruptionError, OptionError, StorageError
from shardstream.storage.options import Options
from shardstream.storage.secrets import redact
from shardstream.storage.store import Store, local_path_of

__all__ = ["PICKLES", "HubFile", "Place", "folder_name", "open_place"]

_HUB = re.compile(r"hf://(?:models/)?([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.*))?\Z")
_MODEL = re.compile(r"\w[\w.-]*/\w[\w.-]*")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Keys of a query that sign a request or say how long it is good: of S3, GCS, Azure and others.
_SIGNS = re.compile(
    "x-(amz|goog|oss|cos|ms)-.*|.*(sign|token|expire|auth|key|credential|secret|passw|policy|access).*|"
    "sig|se|sp|sr|sv|st|ss|srt|sip|spr|skoid|sktid|skt|ske|sks|skv|saoid|suoid|scid",
    re.IGNORECASE,
)


class HubFile(NamedTuple):
    """A file as the Hugging Face Hub lists it: its size, and its SHA-256 if it is a large one."""

    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Place:
    """A folder with weights.

    Attributes:
        store: Paths of files are below it.
        file: The one file that the URL names, or None for a folder. It may be "", the store's root.
        names: The files below the store if that is known: None for web servers, which do not list.
        hub: What the Hub says of files.
    """

    store: Store
    file: str | None = None
    names: list[str] | None = None
    hub: Mapping[str, HubFile] = field(default_factory=dict)

    def where(self, file: str) -> str:
        """A file's name for messages."""
        return self.store.where(file) if file else self.store.url


def open_place(url: str | os.PathLike[str], options: Options = None, connections: int = 0) -> Place:
    """The place that a URL names: a folder, a file `.safetensors`, or an index `.index.json`.

    Args:
        url: A local path, a URL of a store, https://, or hf://ORGANISATION/MODEL[@REVISION][/FOLDER].
        options: For the store.
        connections: How many to open meanwhile, since much will be read soon.

    Raises:
        OptionError: No such URL is possible.
        StorageError: The Hub or the store does not answer.
    """
    url = os.fspath(url)
    if url.startswith("hf://"):
        return _open_hub(url, dict(options or {}))
    local = local_path_of(url)
    path = url if local is not None else urlsplit(url).path
    if path.endswith(".safetensors"):
        store = Store.open(url, options)
        store.warm_up("", connections)
        return Place(store, "")
    if path.endswith(".index.json"):
        folder, _, name = (url if local is None else local).rpartition("/")
        store = Store.open(folder or "/", options)
        store.warm_up(name, connections)
        return Place(store, name)
    if local is not None and not os.path.isdir(local):
        raise _no_folder(url, local)
    store = Store.open(url, options)
    store.warm_up("model.safetensors", connections)  # it need not be there
    lists = not url.lower().startswith(("http://", "https://"))
    return Place(store, names=store.list() if lists else None)


def _no_folder(url: str, path: str) -> StorageError:
    if path.endswith(PICKLES):
        return StorageError(f"{url}: pickles are never loaded: convert it to safetensors")
    if os.path.exists(path):
        return StorageError(f"{url}: this is no folder, and no .safetensors file")
    below = os.path.relpath(path)
    hint = f"; a model of the Hugging Face Hub is hf://{below}" if _MODEL.fullmatch(below) else ""
    return StorageError(f"{url}: no such folder{hint}")


def folder_name(url: str) -> str:
    """The name of the folder that a URL is fetched to: the same however the URL is signed."""
    plain = redact(url).rstrip("/")
    last = re.sub(r"[^\w.-]+", "-", "-".join(plain.split("/")[-2:]))[-60:].strip(".-")
    if local_path_of(url) is None:
        # Such as a version. What signs the request is another one every time, for the same object.
        asked = sorted(pair for pair in parse_qsl(urlsplit(url).query, True) if not _SIGNS.fullmatch(pair[0]))
        plain += f"?{urlencode(asked)}" if asked else ""
    return f"{last or 'model'}-{xxhash.xxh3_64_hexdigest(plain.encode())}"


def _open_hub(url: str, options: dict[str, Any]) -> Place:
    """A model of the Hub, by the plain requests that its pages document."""
    match = _HUB.match(url.rstrip("/"))
    if match is None:
        raise OptionError(
            f"{url}: such a URL is hf://ORGANISATION/MODEL, with @REVISION and /FOLDER if need be"
        )
    model, revision, folder = match[1], quote(match[2] or "main", safe=""), match[3] or ""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = _token()
    if token and "headers" not in options:
        options["headers"] = {"Authorization": f"Bearer {token}"}
    file = folder if folder.endswith((".safetensors", ".index.json")) else None
    folder = folder if file is None else folder.rpartition("/")[0]
    below = f"/{quote(folder)}" if folder else ""
    listing = Store.open(f"{endpoint}/api/models/{model}/tree", options)
    data = listing.read(f"{revision}{below}", 256 << 20)
    try:
        hub = {
            entry["path"].removeprefix(f"{folder}/" if folder else ""): HubFile(
                int(entry["size"]), (entry.get("lfs") or {}).get("oid")
            )
            for entry in msgspec.json.decode(data)
            if entry["type"] == "file"
        }
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CorruptionError(f"{listing.where(revision)}: this is no list of files of the Hub") from error
    store = Store.open(f"{endpoint}/{model}/resolve/{revision}{below}", options)
    return Place(store, None if file is None else file.rpartition("/")[2], sorted(hub), hub)


def _token() -> str | None:
    """The user's token, where Hugging Face's own tools look for it."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return os.environ[name].strip()
    home = os.environ.get("HF_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "huggingface")
    try:
        with open(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"), encoding="utf-8") as file:
            return file.read().strip() or None
    except OSError:
        return None
