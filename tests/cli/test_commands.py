"""The commands, in this process: what they print and with which code they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardstream.cli import app as application
from shardstream.cli.app import app
from shardstream.packing.engines import processes

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path, run: Run) -> str:
    code, _, errors = run(
        "pack", corpus, tmp_path / "dataset", "--shard-size", "16KiB", "--frame-size", "4KiB", "--workers", 1
    )
    assert (code, errors) == (0, "")
    return str(tmp_path / "dataset")


def _damage(dataset: str) -> None:
    shard = Path(dataset) / "shard-000000.tar.zst"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("pack", "index", "info", "ls", "cat", "verify", "export"):
        assert f"  {command} " in result.stdout
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("shardstream ")


def test_pack_summary(corpus: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("pack", corpus, tmp_path / "out", "--workers", 1)
    assert code == 0
    for part in ("100 samples", "1 shard:", "read", "stored", "ratio", "/s"):
        assert part in out


def test_pack_json_is_one_object_and_nothing_else(corpus: Path, tmp_path: Path, run: Run) -> None:
    code, out, errors = run("pack", corpus, tmp_path / "out", "--workers", 1, "--json")
    facts = json.loads(out)
    assert (code, errors) == (0, "")
    assert (facts["samples"], facts["shards"], facts["rejected"], facts["rejects"]) == (100, 1, 0, None)
    assert facts["ratio"] == round(facts["sample_bytes"] / facts["bytes"], 4)


def test_pack_dry_run_writes_nothing(corpus: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("pack", corpus, tmp_path / "out", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert (plan["format"], plan["files"], plan["tasks"]) == ("jsonl", 1, 1)
    assert plan["input_bytes"] == corpus.stat().st_size
    assert not (tmp_path / "out").exists()


def test_pack_names_the_rejects_file(corpus: Path, tmp_path: Path, run: Run) -> None:
    with corpus.open("a") as file:
        file.write("{broken\n")
    code, _, errors = run("pack", corpus, tmp_path / "strict", "--workers", 1)
    assert code == 1
    assert errors.startswith("error: ")
    assert "corpus.jsonl:101" in errors
    code, out, _ = run("pack", corpus, tmp_path / "out", "--workers", 1, "--on-error", "skip")
    assert code == 0
    assert f"1 rejected: see {tmp_path}/out/rejects.jsonl" in out
    assert "corpus.jsonl:101" in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_keep_is_repeatable(corpus: Path, tmp_path: Path, run: Run) -> None:
    code, *_ = run("pack", corpus, tmp_path / "out", "--workers", 1, "--keep", "id", "--keep", "number")
    assert code == 0
    assert json.loads(run("cat", tmp_path / "out", 3, "--field", "json")[1]) == {"id": "doc-003", "number": 3}


def test_index_adopts_what_export_wrote(dataset: str, tmp_path: Path, run: Run) -> None:
    assert run("export", dataset, tmp_path / "tars")[0] == 0
    tars = sorted((tmp_path / "tars").iterdir())
    code, out, _ = run("index", *tars, tmp_path / "adopted", "--workers", 1, "--json")
    assert code == 0
    assert json.loads(out)["samples"] == 100
    assert run("verify", tmp_path / "adopted", "--deep")[0] == 0
    assert run("cat", tmp_path / "adopted", 9) == run("cat", dataset, 9)


def test_info(dataset: str, run: Run) -> None:
    facts = json.loads(run("info", dataset, "--json")[1])
    assert (facts["kind"], facts["samples"]) == ("samples", 100)
    assert {field["name"] for field in facts["fields"]} == {"txt", "json"}
    assert facts["shard_bytes"]["min"] <= facts["shard_bytes"]["mean"] <= facts["shard_bytes"]["max"]
    text = run("info", dataset)[1]
    for part in ("samples      100", facts["fingerprint"], "ratio", "created by", "txt"):
        assert part in text


def test_ls(dataset: str, run: Run) -> None:
    assert len(run("ls", dataset)[1].splitlines()) == 100
    code, out, _ = run("ls", dataset, "--limit", 2, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["number"], row["key"], row["frame"]) for row in rows] == [
        (0, "doc-000", 0),
        (1, "doc-001", 0),
    ]
    assert set(rows[0]["fields"]) == {"txt", "json"}


def test_cat_by_number_and_by_key(dataset: str, corpus: Path, run: Run) -> None:
    text = json.loads(corpus.read_text(encoding="utf-8").splitlines()[42])["text"]
    assert run("cat", dataset, 42, "--field", "txt") == (0, text, "")
    assert run("cat", dataset, "doc-042", "--field", "txt") == (0, text, "")
    whole = json.loads(run("cat", dataset, 42)[1])
    assert (whole["__key__"], whole["txt"]) == ("doc-042", text)


def test_cat_takes_the_users_own_key(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.jsonl").write_text('{"id":"a.b/c.d","text":"hello"}\n')
    run("pack", tmp_path / "in.jsonl", tmp_path / "out", "--workers", 1)
    assert run("cat", tmp_path / "out", "a.b/c.d", "--field", "txt") == (0, "hello", "")


def test_cat_shows_tokens(corpus: Path, tmp_path: Path, run: Run) -> None:
    run("pack", corpus, tmp_path / "out", "--tokenizer", "bytes", "--workers", 1)
    numbers = run("cat", tmp_path / "out", "doc-000")[1].split()
    assert bytes(map(int, numbers)).decode().startswith("document 0")


def test_cat_of_what_is_not_there(dataset: str, run: Run) -> None:
    for arguments in (("nobody",), ("doc-001", "--field", "jpg")):
        code, out, errors = run("cat", dataset, *arguments)
        assert (code, out) == (2, "")
        assert errors.startswith("error: ")


def test_verify_sound(dataset: str, run: Run) -> None:
    code, out, _ = run("verify", dataset, "--deep")
    assert code == 0
    assert out.startswith("sound: ")


def test_verify_names_the_damage(dataset: str, run: Run) -> None:
    _damage(dataset)
    assert run("verify", dataset)[0] == 1
    code, out, _ = run("verify", dataset, "--deep")
    assert code == 1
    [line] = [line for line in out.splitlines() if ", frame " in line]
    assert "shard-000000.tar.zst" in line
    assert "sample 'doc-" in line
    code, out, _ = run("verify", dataset, "--deep", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["sound"] is False
    assert any(problem["frame"] is not None for problem in report["problems"])


def test_verify_code_without_main(dataset: str) -> None:
    assert CliRunner().invoke(app, ["verify", dataset]).exit_code == 0
    _damage(dataset)
    assert CliRunner().invoke(app, ["verify", dataset]).exit_code == 1


def test_verify_without_access_is_2(tmp_path: Path, run: Run) -> None:
    code, out, errors = run("verify", tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert errors.startswith("error: ")


def test_export(dataset: str, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("export", dataset, tmp_path / "out", "--format", "jsonl", "--json")
    assert code == 0
    assert json.loads(out) == {"samples": 100}
    assert run("export", dataset, tmp_path / "out")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], 2),
        (["pack", "only-one"], 2),
        (["info"], 2),
        (["info", "{missing}"], 1),
        (["pack", "{missing}", "{target}"], 1),
        (["pack", "{corpus}", "{target}", "--level", "99"], 2),
        (["pack", "{corpus}", "{target}", "--frame-size", "huge"], 2),
        (["pack", "{corpus}", "{target}", "--limit", "0"], 2),
        (["pack", "{corpus}", "{target}", "--compression", "rar"], 2),
        (["pack", "{corpus}", "{target}", "--on-error", "pray"], 2),
    ],
)
def test_exit_codes(arguments: list[str], expected: int, corpus: Path, tmp_path: Path, run: Run) -> None:
    names = {"missing": tmp_path / "missing", "target": tmp_path / "target", "corpus": corpus}
    code, out, errors = run(*(argument.format(**names) for argument in arguments))
    assert (code, out) == (expected, "")
    assert errors.startswith("error: ")
    assert "Traceback" not in errors


def test_storage_options_are_never_echoed(tmp_path: Path, run: Run) -> None:
    for option in ("hunter2", "=hunter2", "password=hunter2"):
        _, out, errors = run("info", tmp_path / "missing", "--storage-option", option)
        assert "hunter2" not in out + errors


def test_credentials_in_urls_are_never_echoed(dataset: str, run: Run) -> None:
    _, out, errors = run("export", dataset, "memory://user:hunter2@host/exported")
    assert "100 samples" in out
    assert "hunter2" not in out + errors


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no dataset here"):
        application.run(["--debug", "info", str(tmp_path)])


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, dataset: str, run: Run) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shardstream.read.reader.DatasetReader.open", interrupted)
    code, _, errors = run("info", dataset)
    assert code == 130
    assert errors.strip() == "interrupted"


def test_an_interrupted_pack_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, run: Run
) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "run_tasks", interrupt)
    code, _, errors = run("pack", corpus, tmp_path / "out")
    assert (code, errors.strip()) == (130, "interrupted; the same command with --resume continues")


def test_a_wrong_command_line_names_the_help_to_ask(corpus: Path, run: Run) -> None:
    for arguments in (["pack", corpus], ["pack", corpus, "out", "--nope"]):
        code, _, errors = run(*arguments)
        assert code == 2
        assert "pack --help' shows the options" in errors
