"""The options of obstore, translated from those of fsspec's packages and from the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from shardstream.errors import OptionError
from shardstream.storage.secrets import redact
from shardstream.storage.transport.credentials import (
    AwsCredentials,
    AwsSettings,
    aws_settings,
    has_aws_config,
)

__all__ = ["check_bucket", "check_endpoint", "translated"]

Config = dict[str, Any]
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def translated(kind: str, options: Mapping[str, Any]) -> tuple[Config, AwsCredentials | None] | None:
    """(config, credentials) for a class of obstore.store; None if something cannot be translated."""
    given = {name: value for name, value in options.items() if value is not None}
    if kind == "S3Store":
        return _s3(given)
    config = _gcs(given) if kind == "GCSStore" else _azure(given)
    return None if config is None else (config, None)


def check_endpoint(options: Mapping[str, Any]) -> None:
    """Refuse an endpoint of S3 without a scheme: obstore would panic, and botocore not say where it is from.

    Raises:
        OptionError: It does not begin with http:// or https://.
    """
    client = options.get("client_kwargs") or {}
    told = {"endpoint_url in storage_options": options.get("endpoint_url") or client.get("endpoint_url")}
    told |= {name: os.environ.get(name) for name in _ENDPOINTS}
    name, endpoint = next(((name, value) for name, value in told.items() if value), ("", ""))
    if isinstance(endpoint, str) and endpoint and not endpoint.lower().startswith(("http://", "https://")):
        shown = endpoint.rpartition("@")[2]  # a password may stand before it
        raise OptionError(
            f"{name} is {shown!r}: it has to begin with https:// or http://, such as http://{shown}"
        )


def check_bucket(url: str) -> None:
    """Refuse a URL of S3 with credentials, a server or a query where the name of the bucket belongs.

    Raises:
        OptionError: It has one of them. The store's package would name the wrong parameter alone.
    """
    bucket = url.partition("://")[2].partition("/")[0]
    if set(bucket) & set("@?#") or (":" in bucket and not bucket.startswith("arn:")):
        raise OptionError(
            f"{redact(url)}: a URL of S3 begins with the name of the bucket alone. Keys belong into the "
            'environment, a profile, or storage_options={"key": ..., "secret": ...}, and the address of a '
            "server into AWS_ENDPOINT_URL"
        )


def _first(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _s3(options: dict[str, Any]) -> tuple[Config, AwsCredentials | None] | None:
    """(config, credentials): with keys that were given, with those that botocore finds, or with none."""
    client = dict(options.pop("client_kwargs", {}))
    profile = options.pop("profile", None)
    endpoint = options.pop("endpoint_url", None) or client.pop("endpoint_url", None)
    endpoint = endpoint or _first(*_ENDPOINTS)
    region = client.pop("region_name", None) or _first("AWS_REGION", "AWS_DEFAULT_REGION")
    anonymous = options.pop("anon", False)
    key, secret = options.pop("key", None), options.pop("secret", None)
    token = options.pop("token", None)
    if options or client or bool(key) != bool(secret):
        return None
    if not (key or anonymous or profile):
        key, secret = _first("AWS_ACCESS_KEY_ID"), _first("AWS_SECRET_ACCESS_KEY")
        token = token or _first("AWS_SESSION_TOKEN")
    found: AwsSettings | None = None
    if not anonymous and not (key and secret):
        found = aws_settings(profile, credentials=True)
        if found is None:
            return None
    elif not endpoint and has_aws_config():
        found = aws_settings(profile, credentials=False)
        if found is None:
            return None
    if found is not None:
        endpoint, region = endpoint or found.endpoint, region or found.region
    # Without region or endpoint botocore asks in which region the bucket is; obstore does not.
    if not (endpoint or region) or (endpoint and urlsplit(endpoint).username):
        return None
    config: Config = {"region": region or "us-east-1"} | ({"endpoint": endpoint} if endpoint else {})
    if anonymous:
        return {**config, "skip_signature": True}, None
    if found is not None and found.credentials is not None:
        return config, found.credentials
    if not token and os.environ.get("AWS_SESSION_TOKEN"):
        return None  # the token belongs to other keys, and obstore would send it nevertheless
    config |= {"access_key_id": key, "secret_access_key": secret}
    return ({**config, "session_token": token} if token else config), None


def _gcs(options: dict[str, Any]) -> Config | None:
    token = options.pop("token", None)
    options.pop("project", None)
    if options or _first("STORAGE_EMULATOR_HOST"):
        return None
    if token == "anon":  # noqa: S105 - what gcsfs calls it
        return {"service_account_key": _UNSIGNED}
    path = token or _first("GOOGLE_APPLICATION_CREDENTIALS")
    return _account(path) if isinstance(path, str) and os.path.isfile(path) else None


def _account(path: str) -> Config | None:
    """The credentials in a file, if they are of a kind that obstore knows."""
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
        kind, endpoint = told.get("type"), told.get("gcs_base_url")
    except (OSError, ValueError, AttributeError):
        return None
    names = {"service_account": "service_account", "authorized_user": "application_credentials"}
    if kind not in names:
        return None
    return {names[kind]: path} | ({"base_url": endpoint} if endpoint else {})


# No signature at all. With skip_signature alone, a write asks the machine for a token first.
_UNSIGNED = json.dumps({"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""})


def _azure(options: dict[str, Any]) -> Config | None:
    """Account and key or SAS, given as such or in a connection string."""
    account = options.pop("account_name", None) or _first("AZURE_STORAGE_ACCOUNT_NAME")
    key = options.pop("account_key", None) or _first("AZURE_STORAGE_ACCOUNT_KEY")
    sas = options.pop("sas_token", None) or _first("AZURE_STORAGE_SAS_TOKEN")
    anonymous = options.pop("anon", False)
    told = options.pop("connection_string", None) or _first("AZURE_STORAGE_CONNECTION_STRING")
    if options:
        return None
    if told:
        return _connection(told)
    if not account:
        return None
    if key:
        return {"account_name": account, "account_key": key}
    if sas:
        return {"account_name": account, "sas_key": sas.lstrip("?")}
    return {"account_name": account, "skip_signature": True} if anonymous is True else None


def _connection(told: str) -> Config | None:
    """What a connection string holds, or None where adlfs has to understand it.

    https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string
    """
    pairs = (part.partition("=") for part in told.split(";") if part.strip())
    found = {name.strip().lower(): value for name, _, value in pairs}
    account, key, sas = (found.get(name) for name in ("accountname", "accountkey", "sharedaccesssignature"))
    protocol, suffix = found.get("defaultendpointsprotocol", "https"), found.get("endpointsuffix")
    endpoint = found.get("blobendpoint", "").rstrip("/")
    if not endpoint and (suffix or protocol != "https"):
        endpoint = f"{protocol}://{account}.blob.{suffix or 'core.windows.net'}"
    if not account or not (key or sas) or urlsplit(endpoint).query:
        return None
    config = {"account_name": account} | ({"endpoint": endpoint} if endpoint else {})
    return config | ({"account_key": key} if key else {"sas_key": str(sas).lstrip("?")})
