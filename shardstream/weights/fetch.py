"""Weights as a verified folder on this machine, downloaded once for all its processes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import msgspec

from shardstream.errors import CorruptionError, OptionError, ShardstreamError, StorageError
from shardstream.progress import Report, with_bar
from shardstream.storage.cache.locks import FetchLocks
from shardstream.storage.cache.options import Cache
from shardstream.storage.local_store import LocalStore
from shardstream.storage.options import Options
from shardstream.storage.secrets import redact
from shardstream.storage.store import Store, absolute, local_path_of, named
from shardstream.storage.transport.failures import is_unreachable
from shardstream.weights import digests
from shardstream.weights.catalog import INDEX, Catalog, open_catalog, optional
from shardstream.weights.digests import Digests
from shardstream.weights.download import RemoteFile, digests_of_file, download
from shardstream.weights.urls import Place, folder_name, open_place

__all__ = ["fetch_weights"]

log = logging.getLogger("shardstream")

_STATE = ".shardstream-fetched.json"
_POLL = 0.05  # seconds between two tries to take the lock of another process
_REQUESTS = 16
# Files of models that are no weights, which web servers do not list.
_BESIDE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
# The same weights in other formats.
_OTHERS = re.compile(r".*\.(bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|ot|tflite|npz|zip|tar|safetensors)\Z|\..*")


class _Fetched(msgspec.Struct, frozen=True):
    """A file that was fetched.

    Args:
        path: Its path in the store.
        remote: Its version there, and its size.
        local: What the file system said of it when it was verified.
        digests: Its checksums.
    """

    path: str
    remote: tuple[str, int]
    local: tuple[str, int]
    digests: Digests


class _State(msgspec.Struct, frozen=True):
    """What was fetched of a URL.

    Args:
        url: It, without what is secret.
        files: The files by their names in the folder.
        whole: False while a download is under way, and after it was killed.
        listing: The files that the store listed, of those that could be wanted; None for web servers.
    """

    url: str
    files: dict[str, _Fetched]
    whole: bool = False
    listing: list[str] | None = None


@with_bar("fetching")
def fetch_weights(
    url: str | os.PathLike[str],
    cache: Cache | str | os.PathLike[str],
    *,
    storage_options: Options = None,
    progress: Report = None,
) -> str:
    """A local folder with the weights at a URL, and the small files beside them, for any loader there is.

    The first process of a machine downloads; others wait for it. Later calls ask the store whether a file is
    another one, and look whether the local file was touched. What has changed is verified, and fetched again
    if need be. Each file appears at once, whole. If nobody answers, what is here and sound is used, and the
    log says so.

    Example:
        ``AutoModel.from_pretrained(ss.fetch_weights("s3://bucket/model", "/nvme/cache"))``

    Args:
        url: See `load_weights`.
        cache: A folder on a local disk, or a `Cache` with one.
        storage_options: For the store.
        progress: True shows a bar while files are fetched. A function is called with a Progress now and then.

    Returns:
        The path of the folder.

    Raises:
        CorruptionError: A file is damaged in the store.
        OptionError: The cache has no folder, or no such URL is possible.
        StorageError: The weights cannot be read, or there is no room.
    """
    url, root = absolute(os.fspath(url)), _root(cache)
    name = folder_name(url)
    folder = os.path.join(root, name)
    with named(f"making {folder}"):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    with _lock(root, name):
        _fetch(url, folder, storage_options, progress)
    return folder


def _root(cache: Cache | str | os.PathLike[str]) -> str:
    found = cache.dir if isinstance(cache, Cache) else cache
    if found is None or "://" in os.fspath(found):
        raise OptionError(f"cache={cache!r} must be a folder on a local disk, such as /nvme/cache")
    return os.path.join(os.path.abspath(os.path.expanduser(os.fspath(found))), "weights")


@contextlib.contextmanager
def _lock(root: str, name: str) -> Iterator[None]:
    """Let one process and thread of the machine fetch; the lock ends with its process."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with named(f"locking {root}"):
        file = os.open(os.path.join(root, ".lock"), flags, 0o600)
    locks, pause = FetchLocks(file), threading.Event()
    lock = locks.take(name)
    if lock is None:
        log.info("%s: another process fetches it: waiting", name)
    while lock is None:
        pause.wait(_POLL)
        lock = locks.take(name)
    try:
        yield
    finally:
        lock.release()


def _fetch(url: str, folder: str, options: Options, progress: Report) -> None:
    local = LocalStore(folder)
    state = _read_state(local, url)
    try:
        if state is not None and state.whole and _is_current(open_place(url, options), state):
            changed = _changed(local, state)
            if not changed:
                # What was only touched has another time now: it is not read again for that.
                again = {name: _as_now(local, name, file) for name, file in state.files.items()}
                if again != state.files:
                    local.write(_STATE, msgspec.json.encode(msgspec.structs.replace(state, files=again)))
                return
            log.warning("%s: fetched again, since they are not as they were: %s", folder, ", ".join(changed))
        local.clear_temporary()  # of a download that was killed
        catalog = open_catalog(url, options)
        wanted = _wanted(catalog, url)
        fetched = _download(catalog, wanted, local, state or _State(redact(url), {}), progress)
    except StorageError as error:
        if state is None or not state.whole or not is_unreachable(error) or _changed(local, state):
            raise
        log.warning("%s; what was fetched before is used", error)
        return
    for name in set(state.files if state else ()) - fetched.keys():
        local.delete(name)  # it was here because of us
    local.write(digests.NAME, digests.encode({name: file.digests for name, file in fetched.items()}))
    done = _State(redact(url), fetched, True, _listing(catalog.place))
    local.write(_STATE, msgspec.json.encode(done))


def _read_state(local: Store, url: str) -> _State | None:
    try:
        found = msgspec.json.decode(local.read(_STATE), type=_State)
    except (ShardstreamError, msgspec.DecodeError):
        return None  # nothing was fetched yet, or it is not known what
    return found if found.url == redact(url) else None


def _listing(place: Place) -> list[str] | None:
    """The names of the files in the store that may be weights or lie beside them."""
    if place.names is None:
        return None
    return sorted(name for name in place.names if name.endswith(".safetensors") or not _OTHERS.match(name))


def _is_current(place: Place, state: _State) -> bool:
    """Whether the store has what was fetched, and nothing more."""
    if _listing(place) != state.listing:
        return False
    paths = [file.path for file in state.files.values()]
    more: set[str] = set()  # what a web server, which does not list, may have by now
    if place.names is None and place.file != "":
        more = {INDEX, *_BESIDE} - set(paths)
    with ThreadPoolExecutor(_REQUESTS, "shardstream-weights") as pool:
        try:
            found = list(pool.map(place.store.version, paths))
            if any(data is not None for data in pool.map(lambda name: optional(place, name), more)):
                return False
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise
    return found == [file.remote for file in state.files.values()]


def _changed(local: LocalStore, state: _State) -> list[str]:
    """The files that are not as they were fetched. Those that were only touched are read."""
    found = []
    for name, file in state.files.items():
        try:
            same = local.version(name) == file.local or (
                local.size(name) == file.digests.bytes and digests_of_file(local, name) == file.digests
            )
        except StorageError:
            same = False
        if not same:
            found.append(name)
    return found


def _wanted(catalog: Catalog, url: str) -> list[RemoteFile]:
    """The files that are fetched: weights, the index, and the small files beside them."""
    place = catalog.place
    index = catalog.index or ""
    prefix = index[: index.rfind("/") + 1]
    found = []
    for file, header in catalog.files.items():
        name = file.removeprefix(prefix) or os.path.basename(
            url if local_path_of(url) is not None else urlsplit(url).path
        )
        known = place.hub.get(file)
        found.append(
            RemoteFile(name, file, header.bytes, catalog.digests.get(file), known.sha256 if known else None)
        )
    if place.file == "":
        return found
    beside = {index} if index else set()
    if place.names is None:
        beside |= {name for name in _BESIDE if optional(place, name) is not None}
    else:
        beside |= {name for name in place.names if not _OTHERS.match(name) and _is_file(place, name)}
    beside -= {digests.NAME, "manifest.json"}
    found += [
        RemoteFile(file.removeprefix(prefix), file, place.store.size(file), None, None)
        for file in sorted(beside)
    ]
    return found


def _is_file(place: Place, name: str) -> bool:
    path = place.store.local_path(name)
    return os.path.isfile(path) if path is not None else place.store.exists(name)


def _download(
    catalog: Catalog, wanted: Sequence[RemoteFile], local: LocalStore, state: _State, progress: Report
) -> dict[str, _Fetched]:
    """Fetch the files that are not here as they are in the store. What is finished is noted at once."""
    place = catalog.place
    versions: Mapping[str, tuple[str, int]] = {file.path: place.store.version(file.path) for file in wanted}
    fetched = {
        file.name: state.files[file.name]
        for file in wanted
        if file.name in state.files and state.files[file.name].remote == versions[file.path]
    }
    for name in _changed(local, _State(state.url, fetched)):
        del fetched[name]
    fetched = {name: _as_now(local, name, file) for name, file in fetched.items()}
    fresh = {file.name: file for file in wanted if file.name not in fetched}
    for name, found in download(place, list(fresh.values()), local, catalog.anew, progress):
        file = fresh[name]
        if file.sha256 is not None and _sha256(local, name) != file.sha256:
            local.delete(name)
            raise CorruptionError(f"{place.where(file.path)}: damaged: its SHA-256 is not that of the Hub")
        fetched[name] = _Fetched(file.path, versions[file.path], local.version(name), found)
        local.write(_STATE, msgspec.json.encode(_State(state.url, fetched)))
    return fetched


def _as_now(local: LocalStore, name: str, file: _Fetched) -> _Fetched:
    return msgspec.structs.replace(file, local=local.version(name))


def _sha256(local: LocalStore, name: str) -> str:
    hasher = hashlib.sha256()  # by hand: Python 3.10 has no file_digest
    with open(str(local.local_path(name)), "rb") as file:
        while data := file.read(1 << 20):
            hasher.update(data)
    return hasher.hexdigest()
