"""What goes to other machines: no secrets, and to no machine that would write other bytes."""

from __future__ import annotations

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.packing.engines import Needs, Submit
from shardstream.packing.engines.batch import Setup, run_batch
from shardstream.packing.engines.nodes import Expected, marked, problems, versions
from shardstream.packing.engines.sealed import Sealer, opened
from shardstream.storage.secrets import url_has_secret
from tests.packing.engines import calls

SECRET = "wJalrXUtnFEMI/K7MDENG"


HARMLESS = {
    "path": "/a/long/path", "pattern": "*.jsonl", "keep_alive": "forever", "bypass": "nothing",
    "proxies": {"https": "http://proxy:3128"}, "account_url": "https://account.host/?comp=list",
    "s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/of-mine"},
}  # fmt: skip


@dataclasses.dataclass
class Source:
    storage_options: dict[str, Any]
    url: str = "s3://bucket/a"


def test_a_secret_is_sent_as_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    options = {"anon": False, "secret": SECRET, "client_kwargs": {"endpoint_url": "http://127.0.0.1:1"}}
    sealer = Sealer(options)
    assert sealer.variables == ("MY_SECRET",)
    data = sealer.seal((options, Source({"inner": [SECRET]})))  # sources keep the options, too
    assert SECRET.encode() not in data
    assert opened(data) == (options, Source({"inner": [SECRET]}))
    monkeypatch.setenv("MY_SECRET", "another")
    assert opened(data)[0]["secret"] == "another"
    monkeypatch.delenv("MY_SECRET")
    with pytest.raises(ss.OptionError, match="MY_SECRET is not set"):
        opened(data)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"secret": SECRET}, "secret"),
        ({"client_kwargs": {"aws_secret_access_key": SECRET}}, "client_kwargs.aws_secret_access_key"),
        ({"headers": {"Authorization": f"Bearer {SECRET}"}}, "headers.Authorization"),
        ({"connection_string": f"AccountKey={SECRET}"}, "connection_string"),
        ({"credential": object()}, "credential"),
        ({"client_kwargs": {"endpoint_url": f"https://u:{SECRET}@h"}}, "client_kwargs.endpoint_url"),
        ({"config_kwargs": {"proxies": {"https": f"http://u:{SECRET}@p:3"}}}, "config_kwargs.proxies.https"),
        ({"account_url": f"https://a/?sig={SECRET}"}, "account_url"),
        ({"s3_additional_kwargs": {"SSECustomerKey": SECRET}}, "s3_additional_kwargs.SSECustomerKey"),
        ({"headers": {"X-Api-Key": SECRET}}, "headers.X-Api-Key"),
        ({"passphrase": SECRET}, "passphrase"),
        ({"accessKey": SECRET}, "accessKey"),
        ({"pat": SECRET}, "pat"),
    ],
)
def test_a_secret_that_no_variable_has_is_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(ss.OptionError, match=f"{where} is a secret") as told:
        Sealer(options)
    assert SECRET not in str(told.value)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ss.OptionError, match="environment variable"):
        Submit(pool).started(Needs(storage_options=options)).__enter__()


def test_a_secret_within_another_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    with pytest.raises(ss.OptionError, match="MY_SECRET") as told:
        Sealer({"secret": SECRET}).seal(Source({}, f"http://host/?s={SECRET}"))
    assert SECRET not in str(told.value)


def test_what_is_no_secret_is_sent(tmp_path: Path) -> None:
    (tmp_path / "key.json").touch()
    options = {"token": str(tmp_path / "key.json"), "key": "", "use_token": True, "account_name": "long-name"}
    for each in (
        options,
        {"token": "anon"},
        {"token": "google_default"},
        {"retry": ss.Retry()},
        HARMLESS,
        None,
    ):
        sealer = Sealer(each)
        assert sealer.variables == ()
        assert opened(sealer.seal(each)) == each


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("s3://bucket/a", False), ("/data/a?b", False), ("postgresql://user@host/db?sslmode=require", False),
        ("postgresql://user:pw@host/db", True), ("https://h/a?X-Amz-Signature=1", True),
        ("https://h/a?sig=1&se=2", True), ("https://h:80/a?version=2", False), ("https://u:p/w@h/a", True),
    ],
)  # fmt: skip
def test_urls_with_secrets_are_known(url: str, secret: bool) -> None:
    assert url_has_secret(url) is secret


def test_other_versions_and_missing_files_are_told(tmp_path: Path) -> None:
    assert {"shardstream", "python", "numpy", "zstandard", "zstd"} <= versions().keys()
    (tmp_path / "in").write_bytes(b"1234")
    mine = {**versions(), "a package that is not here": "1.0"}
    with marked([str(tmp_path / "new")]) as marks:
        good = Expected(mine, marks, ((str(tmp_path / "in"), 4),), ("PATH",))
        assert problems(good) == []
        other = dataclasses.replace(good, versions={**mine, "zstandard": "0.1.0", "numpy": "0.2"})
        assert [text.partition(":")[0] for text in problems(other)] == [
            f"it has zstandard {mine['zstandard']}, and the packing process has 0.1.0",
            f"it has numpy {mine['numpy']}, and the packing process has 0.2",
        ]
        assert "does not see the input" in problems(dataclasses.replace(good, files=((str(tmp_path), 4),)))[0]
        assert "NO_SUCH is not set" in problems(dataclasses.replace(good, variables=("NO_SUCH",)))[0]
        elsewhere = dataclasses.replace(good, marks=((marks[0][0], "another"),))
        assert f"writes to {tmp_path / 'new'}" in problems(elsewhere)[0]
    assert list((tmp_path / "new").iterdir()) == []
    assert "does not see what the packing process writes" in problems(good)[0]


def test_a_machine_that_is_refused_opens_nothing() -> None:
    setup = Setup("pass", Expected({"python": "2.7"}), b"another version's classes")
    answer = run_batch(setup, pickle.dumps([1]), "1", "n1")
    assert (answer.node, answer.results, answer.error) == ("n1", [], None)
    assert "python 3" in answer.problems[0]


def test_a_batch_ends_with_the_pack_that_gave_it(tmp_path: Path) -> None:
    sealer = Sealer(None)
    with marked([str(tmp_path)]) as marks:
        setup = Setup("marked", Expected(versions(), marks), sealer.seal((calls.doubled, 1)))
        assert run_batch(setup, sealer.seal([1, 2]), "1").results == [(1, 3), (2, 5)]
    answer = run_batch(setup, sealer.seal([1, 2]), "2")
    assert (answer.results, type(answer.error)) == ([], ss.StorageError)
