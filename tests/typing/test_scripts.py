"""What a type checker says of a user's scripts: nothing of a sound one, each mistake of a wrong one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = ("user_script.py", "wrong_script.py")


def test_mypy_passes_the_sound_script_and_finds_each_mistake_of_the_wrong_one() -> None:
    # With the options and the cache of the project's own check, which runs before the tests: else mypy
    # would read torch anew for half a minute.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", *(str(HERE / name) for name in SCRIPTS)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, set[int]] = {name: set() for name in SCRIPTS}
    for path, line in re.findall(r"^(\S+?):(\d+): error: ", done.stdout, re.MULTILINE):
        found[Path(path).name].add(int(line))
    wrong = (HERE / "wrong_script.py").read_text("utf-8").splitlines()
    marked = {number for number, line in enumerate(wrong, start=1) if line.endswith("# wrong")}
    assert found == {"user_script.py": set(), "wrong_script.py": marked}, done.stdout
