"""Credentials for obstore that botocore finds, as s3fs would: profiles, SSO, web identities, roles.

botocore also renews those that expire: obstore asks again for them, before each is a minute old.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import os
from typing import Any, NamedTuple

from shardstream.storage.secrets import guard_secrets
from shardstream.storage.transport.failures import failure_of

__all__ = ["AwsCredentials", "AwsSettings", "aws_settings", "has_aws_config"]

# Seconds. botocore renews credentials ten minutes before they expire: what it gives is valid for longer.
_LIFETIME = 60.0
_SHORT_LIFETIME = 1.0  # of those that expire within a minute although botocore has just renewed them
_CONFIG_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
# Settings of a profile for which obstore has no equal here: fsspec has to do it.
_NOT_TRANSLATED = ("ca_bundle", "use_fips_endpoint", "use_dualstack_endpoint")
_NOT_TRANSLATED_S3 = (
    "addressing_style", "payload_signing_enabled", "use_accelerate_endpoint", "use_dualstack_endpoint",
)  # fmt: skip


class AwsCredentials:
    """A credential provider of obstore over credentials of botocore. Many threads may use it.

    https://developmentseed.org/obstore/latest/authentication
    """

    # How long before `expires_at` obstore asks again.
    refresh_threshold = datetime.timedelta(0)

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        """The keys of now, which takes a request if botocore has to renew them."""
        try:
            keys = self._credentials.get_frozen_credentials()
            guard_secrets(keys.secret_key, keys.token)
            renewed = hasattr(self._credentials, "refresh_needed")
            short = renewed and self._credentials.refresh_needed(refresh_in=_LIFETIME)
        except Exception as error:  # noqa: BLE001 - obstore repeats its text, which may hold secrets
            failed = error
        else:
            lifetime = datetime.timedelta(seconds=_SHORT_LIFETIME if short else _LIFETIME)
            now = datetime.datetime.now(datetime.timezone.utc)
            return {
                "access_key_id": keys.access_key,
                "secret_access_key": keys.secret_key,
                "token": keys.token or None,
                "expires_at": now + lifetime if renewed else None,
            }
        # obstore repeats this text, in which failures.py finds the name.
        transient = "transient" if failure_of(failed).transient else "permanent"
        raise RuntimeError(f"{type(failed).__name__} {transient}")


class AwsSettings(NamedTuple):
    """What botocore knows of a profile, for S3."""

    credentials: AwsCredentials | None
    region: str
    endpoint: str


def has_aws_config() -> bool:
    """Whether there are files that may name a region or an endpoint, and botocore to read them."""
    return any(changed for _, changed in _files()) and importlib.util.find_spec("botocore") is not None


def aws_settings(profile: str | None, credentials: bool) -> AwsSettings | None:
    """The settings of a profile, by default that of the environment; None if fsspec has to do it.

    credentials: whether they are needed. To find those of a machine's role takes requests to its metadata
    service.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    try:
        return _settings(profile, credentials, environment, _files())
    except Exception:  # noqa: BLE001 - botocore is missing, or something is wrong, of which fsspec tells
        return None


def _files() -> tuple[tuple[str, int], ...]:
    """The files that hold profiles, and when they were changed in nanoseconds, or 0 if there are none."""
    found = []
    for name, default in _CONFIG_FILES.items():
        path = os.path.expanduser(os.environ.get(name) or default)
        try:
            found.append((path, os.stat(path).st_mtime_ns))
        except OSError:
            found.append((path, 0))
    return tuple(found)


@functools.lru_cache(16)
def _settings(profile: str | None, credentials: bool, *_: object) -> AwsSettings:
    """By all that they may depend on: a change of it gives other ones. What is not found is not stored."""
    import botocore.session  # type: ignore[import-untyped]

    session = botocore.session.Session(profile=profile)
    scoped: dict[str, Any] = session.get_scoped_config()
    of_s3 = scoped.get("s3", {})
    if any(map(session.get_config_variable, _NOT_TRANSLATED)) or any(map(of_s3.get, _NOT_TRANSLATED_S3)):
        raise LookupError
    found = None
    if credentials:
        loaded = session.get_credentials()
        if loaded is None:
            raise LookupError
        found = AwsCredentials(loaded)
    endpoint = ""
    if not session.get_config_variable("ignore_configured_endpoint_urls"):
        services = session.full_config.get("services", {}).get(scoped.get("services"), {})
        endpoint = services.get("s3", {}).get("endpoint_url") or scoped.get("endpoint_url") or ""
    return AwsSettings(found, session.get_config_variable("region") or "", endpoint)
