"""Completion in real shells, as `--show-completion` and `--install-completion` set it up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 shardstream --show-completion bash)"
COMP_WORDS=(shardstream {words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shardstream_completion shardstream
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has the command on the path, and a home that is empty."""
    command = tmp_path / "bin" / "shardstream"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom shardstream.cli.app import main\nmain()\n")
    command.chmod(0o755)
    path = os.pathsep.join(map(str, (command.parent, os.environ["PATH"])))
    package = str(Path(__file__).parents[2])
    # These would lead to the files of the real user.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZDOTDIR"))}
    return env | {"HOME": str(tmp_path), "PATH": path, "PYTHONPATH": package}


def said(shell: list[str], script: str, env: dict[str, str]) -> list[str]:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    done = subprocess.run(
        [*shell, "-c", script], capture_output=True, env=env, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_bash(home) -> None:
    bash = ["bash", "--norc"]
    assert said(bash, ASK.format(words="pack --com"), home) == ["--compression", "--commit"]
    assert said(bash, ASK.format(words="checkpoint url v"), home) == ["verify"]


def test_fish(home) -> None:
    script = """
    set -x _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION 1
    shardstream --show-completion fish | source
    complete -C 'shardstream pack --com'
    """
    assert {line.split("\t")[0] for line in said(["fish"], script, home)} == {"--commit", "--compression"}


def test_zsh(home) -> None:
    script = """
    autoload -Uz compinit && compinit -u
    eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 shardstream --show-completion zsh)"
    _arguments() { print -r -- "$@" }
    words=(shardstream pack --com) CURRENT=3
    _shardstream_completion
    """
    shown = " ".join(said(["zsh", "-f"], script, home))
    assert "--commit" in shown
    assert "--compression" in shown


def test_it_is_installed_for_the_shell_that_asks(home, tmp_path) -> None:
    said(["bash", "--norc"], "shardstream --install-completion; true", home)
    script = (tmp_path / ".bash_completions" / "shardstream.sh").read_text()
    assert "_shardstream_completion" in script
    assert "shardstream.sh" in (tmp_path / ".bashrc").read_text()
