"""Credentials that botocore finds reach obstore, and are renewed; what cannot be translated is fsspec's."""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.utils import ContainerMetadataFetcher

import shardstream as ss
from shardstream.errors import StorageError
from shardstream.storage.store import Store
from tests.servers import KEY, SECRET

QUICK = {"retry": {"attempts": 2, "span": 0, "pause": 0.01}}


class Home:
    """The files of profiles, and nothing of AWS in the environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.credentials = folder / "config", folder / "credentials"
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(self.config))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(self.credentials))
        # A role that cannot be fetched is asked for three times: without pauses here.
        monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0)

    def keys(self, profile: str, key: str = KEY, secret: str = SECRET) -> None:
        """Write a profile with keys, and only this one."""
        self.credentials.write_text(f"[{profile}]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
        # A new time even if the clock of files is coarse.
        os.utime(self.credentials, ns=(time.time_ns(), time.time_ns()))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, monkeypatch)


def unused(weed: Any, region: str) -> dict[str, Any]:
    """Options that no other test has: fsspec shares file systems, and their keys, by options."""
    return {"endpoint_url": weed.url, "client_kwargs": {"region_name": region}}


def works(url: str, options: dict[str, Any], backend: str = "obstore-s3") -> Store:
    store = Store.open(url, options)
    assert store.backend == backend
    store.write("a", b"data")
    assert store.read("a") == b"data"
    return store


@pytest.mark.parametrize("more", [{}, {"config_kwargs": {}}], ids=["obstore", "fsspec"])
@pytest.mark.parametrize("named", ["by option", "by environment", "not"])
def test_a_profile(
    weed: Any, home: Home, monkeypatch: pytest.MonkeyPatch, named: str, more: dict[str, Any]
) -> None:
    home.keys("default" if named == "not" else "work")
    if named == "by environment":
        monkeypatch.setenv("AWS_PROFILE", "work")
    options = {"endpoint_url": weed.url} | more | ({"profile": "work"} if named == "by option" else {})
    works(weed.bucket(), options, "fsspec-s3" if more else "obstore-s3")


@pytest.mark.parametrize("services", [False, True])
def test_the_endpoint_and_region_of_a_profile(weed: Any, home: Home, services: bool) -> None:
    home.keys("work")
    where = f"services = local\n[services local]\ns3 =\n  endpoint_url = {weed.url}\n"
    home.config.write_text(
        "[profile work]\nregion = eu-west-1\n" + (where if services else f"endpoint_url = {weed.url}\n")
    )
    works(weed.bucket(), {"profile": "work"})
    # Keys that are given do not hide where the store is.
    works(weed.bucket(), {"key": KEY, "secret": SECRET, "profile": "work"})


def test_keys_of_the_environment_come_before_a_profile_that_it_names(
    weed: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.keys("work", secret="wrong")
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    works(weed.bucket(), {"endpoint_url": weed.url})
    for more in ({}, {"config_kwargs": {}}):
        options = {"endpoint_url": weed.url, "profile": "work"} | more | QUICK
        with pytest.raises(StorageError, match="credentials are refused"):
            works(weed.bucket(), options, "fsspec-s3" if more else "obstore-s3")


def test_a_profile_whose_keys_are_changed(weed: Any, home: Home) -> None:
    options = {"endpoint_url": weed.url, "profile": "work"} | QUICK
    home.keys("work", secret="wrong")
    with pytest.raises(StorageError, match="credentials are refused"):
        Store.open(weed.bucket(), options).read("a")
    home.keys("work")
    works(weed.bucket(), options)


def test_a_program_that_gives_credentials(weed: Any, home: Home, tmp_path: Path) -> None:
    told = {"Version": 1, "AccessKeyId": KEY, "SecretAccessKey": SECRET}
    (tmp_path / "told").write_text(json.dumps(told))
    home.config.write_text(
        f"[profile work]\ncredential_process = cat {shlex.quote(str(tmp_path / 'told'))}\n"
    )
    works(weed.bucket(), {"endpoint_url": weed.url, "profile": "work"})


@pytest.mark.parametrize(
    ("setting", "backend"),
    [
        ("s3 =\n  addressing_style = path\n", "fsspec-s3"),
        ("use_fips_endpoint = true\n", "fsspec-s3"),
        ("s3 =\n  max_concurrent_requests = 20\n", "obstore-s3"),
    ],
)
def test_settings_that_are_not_translated_are_left_to_fsspec(
    weed: Any, home: Home, setting: str, backend: str
) -> None:
    home.keys("work")
    home.config.write_text(f"[profile work]\n{setting}")
    options = {"endpoint_url": weed.url, "profile": "work"}
    assert Store.open(weed.bucket(), options).backend == backend


def test_what_is_wrong_is_said(weed: Any, home: Home) -> None:
    for options, said in [({"profile": "nobody"}, "no such profile"), ({}, "no credentials were found")]:
        with pytest.raises(StorageError, match=said):
            Store.open(weed.bucket(), unused(weed, "eu-north-1") | options).read("a")


def test_the_role_of_a_container(
    weed: Any, home: Home, roles: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", roles.url)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "token-of-the-container")
    store = works(weed.bucket(), {"endpoint_url": weed.url})
    for _ in range(3):
        assert store.read("a") == b"data"
    assert works(weed.bucket(), {"endpoint_url": weed.url}).exists("a")
    assert roles.requests == ["token-of-the-container"]  # once for all
    for secret in (SECRET, "token-of-the-container"):
        assert secret not in caplog.text


def test_credentials_that_expire_are_renewed(
    weed: Any, home: Home, roles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", roles.url)
    roles.seconds = 30.0
    store = works(weed.bucket(), {"endpoint_url": weed.url} | QUICK)
    before = len(roles.requests)
    time.sleep(1.1)
    assert store.read("a") == b"data"
    assert len(roles.requests) > before
    # The new ones are used: these are refused.
    roles.keys = (KEY, "rotated")
    time.sleep(1.1)
    with pytest.raises(StorageError, match="credentials are refused"):
        store.read("a")
    # And if there are no new ones, that is said.
    roles.status = 404
    time.sleep(1.1)
    with pytest.raises(StorageError, match=r"cannot be fetched \(CredentialRetrievalError\)") as caught:
        store.read("a")
    assert "rotated" not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
    roles.keys, roles.status = (KEY, SECRET), 200
    time.sleep(1.1)
    assert store.read("a") == b"data"


def test_a_role_that_cannot_be_fetched_is_said(
    weed: Any, home: Home, roles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", roles.url)
    roles.status = 404
    with pytest.raises(StorageError, match=r"cannot be fetched \(CredentialRetrievalError\)"):
        Store.open(weed.bucket(), unused(weed, "eu-south-1") | QUICK).read("a")


def test_a_job_with_a_role(
    weed: Any, home: Home, roles: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Packed by processes, and read: each of them finds the role by itself."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", roles.url)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "text": f"row {n} " * 50}) + "\n" for n in range(100)))
    url, options = weed.bucket(), {"endpoint_url": weed.url, "retry": ss.Retry(attempts=3)}
    ss.pack(str(rows), url, workers=2, shard_size="16KiB", frame_size="4KiB", storage_options=options)
    loader = ss.StreamingLoader(ss.StreamingDataset(url, storage_options=options), 10)
    assert sum(batch.size for batch in loader) == 100
    assert loader.stats()["backend"] == "obstore-s3"
