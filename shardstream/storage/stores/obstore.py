"""The backend over obstore: s3, gs and az, where it is installed and the options can be translated."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache, partial
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from shardstream.storage.failures import Failure, failure_of
from shardstream.storage.retry import policy
from shardstream.storage.stores.base import MOST_IGNORED, Got, no_ranges, too_large

__all__ = ["Obstore", "forked", "open_obstore"]

Options = Mapping[str, Any] | None
_SCHEMES = {"s3": "S3Store", "s3a": "S3Store", "gs": "GCSStore", "gcs": "GCSStore", "az": "AzureStore"}
_LONGEST = timedelta(minutes=20)  # for one request; what bounds it really is the policy


_forked: list[bool] = []


def forked() -> bool:
    """Whether this process is the fork of one that had obstore loaded: without its threads it would hang."""
    return bool(_forked)


def _after_fork() -> None:
    if "obstore" in sys.modules:
        _forked.append(True)


def open_obstore(url: str, options: Options) -> tuple[Obstore, str] | None:
    """(backend, path) of a URL, or None where fsspec has to do it."""
    scheme, _, rest = url.partition("://")
    kind = _SCHEMES.get(scheme.lower())
    bucket, _, path = rest.partition("/")
    if kind is None or forked() or not bucket or set(bucket + path) & set("@?#*[]"):
        return None
    translate = {"S3Store": _s3, "GCSStore": _gcs, "AzureStore": _azure}[kind]
    config = translate({name: value for name, value in (options or {}).items() if value is not None})
    if config is None or _module() is None:
        return None
    return Obstore(kind, bucket, json.dumps(config, sort_keys=True)), path


def _module() -> ModuleType | None:
    try:
        import obstore
        import obstore.store
    except ImportError:
        return None
    return obstore


@lru_cache(64)
def _made(kind: str, bucket: str, config: str, silence: float, connect: float) -> Any:
    """A client; `silence`: seconds without a byte of the answer after which it gives up."""
    values = json.loads(config)
    client = {
        "timeout": _LONGEST, "read_timeout": timedelta(seconds=silence),
        "connect_timeout": timedelta(seconds=connect),
        "allow_http": str(values.get("endpoint", values.get("base_url", ""))).startswith("http://"),
    }  # fmt: skip
    obstore = _module()
    assert obstore is not None
    return getattr(obstore.store, kind)(
        bucket, config=values, client_options=client, retry_config={"max_retries": 0}
    )


def _first(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _s3(options: dict[str, Any]) -> dict[str, Any] | None:
    """Keys given as such, or none at all. Profiles, roles and what else SDKs know is left to s3fs."""
    client = dict(options.pop("client_kwargs", {}))
    endpoint = options.pop("endpoint_url", None) or client.pop("endpoint_url", None)
    endpoint = endpoint or _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    region = client.pop("region_name", None) or _first("AWS_REGION", "AWS_DEFAULT_REGION")
    anonymous = options.pop("anon", False)
    key, secret = options.pop("key", None), options.pop("secret", None)
    token = options.pop("token", None)
    # Without region or endpoint boto finds out where the bucket is; obstore does not.
    if options or client or not (endpoint or region):
        return None
    config: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        if urlsplit(endpoint).username:
            return None
        config["endpoint"] = endpoint
    if anonymous:
        return {**config, "skip_signature": True}
    if not (key or secret or os.environ.get("AWS_PROFILE")):
        key, secret = _first("AWS_ACCESS_KEY_ID"), _first("AWS_SECRET_ACCESS_KEY")
        token = token or _first("AWS_SESSION_TOKEN")
    if not (key and secret):
        return None
    if not token and os.environ.get("AWS_SESSION_TOKEN"):
        return None  # it belongs to other keys, and obstore would send it nevertheless
    config |= {"access_key_id": key, "secret_access_key": secret}
    return {**config, "session_token": token} if token else config


def _gcs(options: dict[str, Any]) -> dict[str, Any] | None:
    token = options.pop("token", None)
    options.pop("project", None)
    if options or _first("STORAGE_EMULATOR_HOST"):
        return None
    if token == "anon":  # noqa: S105 - what gcsfs calls it
        return {"skip_signature": True}
    path = token or _first("GOOGLE_APPLICATION_CREDENTIALS")
    return {"application_credentials": path} if isinstance(path, str) and os.path.isfile(path) else None


def _azure(options: dict[str, Any]) -> dict[str, Any] | None:
    account = options.pop("account_name", None) or _first("AZURE_STORAGE_ACCOUNT_NAME")
    key = options.pop("account_key", None) or _first("AZURE_STORAGE_ACCOUNT_KEY")
    sas = options.pop("sas_token", None) or _first("AZURE_STORAGE_SAS_TOKEN")
    anonymous = options.pop("anon", False)
    if options or not account or _first("AZURE_STORAGE_CONNECTION_STRING"):
        return None
    if key:
        return {"account_name": account, "account_key": key}
    if sas:
        return {"account_name": account, "sas_key": sas.lstrip("?")}
    return {"account_name": account, "skip_signature": True} if anonymous is True else None


class Obstore:
    """Buckets and containers by obstore; paths are keys."""

    connects = True

    def __init__(self, kind: str, bucket: str, config: str) -> None:
        self.name = f"obstore-{kind.removesuffix('Store').lower()}"
        self._made = partial(_made, kind, bucket, config)
        self._store = self._made(policy().timeout, policy().timeout)

    async def get(self, path: str, start: int, size: int | None, most: int | None) -> Got:
        import obstore

        if size == 0:
            return Got(b"", None, "")
        asked: Any = {} if size is None else {"range": (start, start + size)}
        try:
            answer = await obstore.get_async(self._store, path, options=asked)
        except obstore.exceptions.BaseError as error:
            if size is not None and failure_of(error).status == 416:
                return Got(b"", None, "")
            raise
        meta = answer.meta
        total, version = int(meta["size"]), str(meta.get("e_tag") or meta.get("version") or "")
        if size is None:
            if most is not None and total > most:
                raise too_large(total, most)
            first, length = 0, total
        else:
            first, last = answer.range
            length = min(start + size, total) - start
            if first != start and last - first > MOST_IGNORED:
                raise no_ranges(total)
            if (first, last) != (start, start + length):
                raise Failure(f"bytes {first} to {last} of {total} came back", transient=True)
        data = await answer.bytes_async()
        if len(data) != length:  # longer ones are passed on as they come
            raise Failure(f"{len(data)} bytes came back, {length} were asked for", transient=True)
        return Got(memoryview(data), total, version)  # what the client holds is looked at, not copied

    async def head(self, path: str) -> tuple[int | None, str]:
        import obstore

        meta = await obstore.head_async(self._store, path)
        return int(meta["size"]), str(meta.get("e_tag") or "")

    async def put(self, path: str, data: bytes, create: bool) -> None:
        import obstore

        # Nothing is heard of a server while it is sent something: only the policy's limits hold then.
        # Made only now, for it takes as long as a small request: it reads the system's certificates.
        writing = self._made(_LONGEST.total_seconds(), policy().timeout)
        try:
            await obstore.put_async(writing, path, data, mode="create" if create else "overwrite")
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
            raise FileExistsError(path) from None

    async def delete(self, path: str) -> None:
        import obstore

        await obstore.delete_async(self._store, path)

    async def list(self, path: str) -> list[str]:
        import obstore

        found = await obstore.list_with_delimiter_async(self._store, path)
        return [*(entry["path"] for entry in found["objects"]), *found["common_prefixes"]]


os.register_at_fork(after_in_child=_after_fork)
