"""The examples, run by the commands of their README as a user would, and what they say."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstream as ss
from tests.watch import ended

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ((?:python|torchrun) .+)$", README, re.MULTILINE)
PROGRAMS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}


def command(line: str, *more: str) -> list[str]:
    """A command of the README, as it is run here: from any folder, by this Python."""
    program, *words = line.split()
    return [
        *PROGRAMS[program],
        *(str(ROOT / word) if word.startswith("examples/") else word for word in words),
        *more,
    ]


def environment(tmp: Path) -> dict[str, str]:
    """What programs write is below `tmp`, so that what stays is seen; nothing of this run reaches them."""
    below = {"HOME": "home", "IPYTHONDIR": "home", "JUPYTER_RUNTIME_DIR": "home", "MPLCONFIGDIR": "home"}
    below |= {"HF_HOME": "home", "TMPDIR": "temporary"}
    for folder in below.values():
        (tmp / folder).mkdir(exist_ok=True)
    more = {name: str(tmp / folder) for name, folder in below.items()}
    more |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    removed = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "SHARDSTREAM_COUNTERS"}
    inherited = os.environ.items()
    kept = {name: each for name, each in inherited if name not in removed and not name.startswith("MASTER_")}
    return kept | more


def run(line: str, tmp: Path, *more: str) -> str:
    """What a command prints; it must succeed, and leave nothing in the temporary folder."""
    done = subprocess.run(
        command(line, *more),
        cwd=tmp,
        env=environment(tmp),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert left_in(tmp) == []
    return done.stdout


def left_in(tmp: Path) -> list[str]:
    """What our examples left behind; torchrun and torch have files of their own there."""
    return [path.name for path in (tmp / "temporary").iterdir() if path.name.startswith("shardstream-")]


def losses(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"loss (\d+\.\d+)", said)]


def the(name: str, number: int = 0) -> str:
    """The command of an example, by its name."""
    return [line for line in COMMANDS if f"examples/{name}" in line][number]


def printed(name: str) -> list[str]:
    """The lines that the README says of an example; `...` stands for what differs from machine to machine."""
    section = next(part for part in README.split("\n## ") if f"    {the(name)}" in part)
    lines = re.findall(r"^    (.+)$", section, re.MULTILINE)
    return [line for line in lines if line not in COMMANDS]


def pattern(lines: list[str]) -> str:
    """A regular expression of lines of the README."""
    return "\n".join(re.escape(line).replace(r"\.\.\.", ".+") for line in lines)


def test_every_example_is_in_the_readme_and_says_how_it_is_run() -> None:
    files = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
    assert files == sorted(re.findall(r"^\| \[([\w.]+)\]", README, re.MULTILINE))
    for path in EXAMPLES.glob("*.py"):
        documented = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        commands = [line for line in COMMANDS if path.name in line]
        assert f"    {commands[0]}\n" in documented, path.name


def test_tokens_train_on_two_ranks(tmp_path: Path) -> None:
    said = run(the("tokens_ddp.py"), tmp_path, "--steps", "12")
    assert re.match(pattern(printed("tokens_ddp.py")[:2]), said)  # tokens, documents, bytes; the first loss
    first, *_, last = losses(said)
    assert last < first / 2
    assert re.search(r"^2 ranks, [\d,]+ tokens/s, waited for data \d+\.\d% of the time$", said, re.MULTILINE)


def test_images_find_their_captions(tmp_path: Path) -> None:
    said = run(the("images_captions.py"), tmp_path)
    first, *_, last = losses(said)
    assert last < first
    found = re.search(r"^(\d+) of 120 pictures find their caption$", said, re.MULTILINE)
    assert found is not None
    assert int(found[1]) > 40  # of 15 captions, by chance 8


def test_masks_leave_out_all_but_the_answers(tmp_path: Path) -> None:
    """Chats of the test's own; it counts by itself what has a label. Some batches have no answer at all."""
    chats = tmp_path / "chats.jsonl"
    told = [
        ("user", "Hi?"),
        ("assistant", "Hello."),
        ("user", "And?"),
        ("assistant", "Bye."),
        ("user", "x" * 9),
    ]
    rows = [
        {"id": f"c{n}", "messages": [{"role": r, "content": c * (n % 4 + 1)} for r, c in told[: 1 + n % 5]]}
        for n in range(37)
    ]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    messages = [message for row in rows for message in row["messages"]]
    answers = [message for message in messages if message["role"] == "assistant"]
    labels = sum(len(message["content"]) + 1 for message in answers)  # and the end of each
    tokens = sum(len(message["content"]) + 2 for message in messages)  # and its role
    more = ["--chats", str(chats), "--epochs", "2", "--seq-len", "128", "--batch-size", "1"]
    said = run(the("finetune_masks.py"), tmp_path, *more)
    for epoch in range(2):
        assert re.search(rf"epoch {epoch}  loss .*, 37 chats, {labels} of {tokens} tokens have a label", said)
    first, last = losses(said)
    assert last < first


def test_a_mixture_has_its_proportions_and_resumes(tmp_path: Path) -> None:
    assert run(the("mixture.py"), tmp_path).splitlines() == printed("mixture.py")


def test_an_evaluation_on_three_ranks_is_that_of_all_samples(tmp_path: Path) -> None:
    assert run(the("evaluate.py"), tmp_path).splitlines() == printed("evaluate.py")
    # The same metric by numpy, in one go and without batches.
    example = runpy.run_path(str(EXAMPLES / "evaluate.py"))
    example["make"](str(tmp_path / "data"))
    samples = [*ss.StreamingDataset(tmp_path / "data")]
    classes = np.array([sample["cls"] for sample in samples])
    logits = np.stack([sample["npy"] for sample in samples]).astype(np.float64) @ example["rule"]()
    right = int((logits.argmax(1) == classes).sum())
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(classes)), classes]
    metric = f"accuracy {right / 1003:.6f} ({right} of 1003), loss {losses.mean():.6f}"
    assert metric == printed("evaluate.py")[-1]


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 4, 7])
def test_an_evaluation_is_the_same_on_any_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    line = f"torchrun --standalone --nproc-per-node {ranks} examples/evaluate.py"
    for each in (the("evaluate.py", 1), line):
        assert run(each, tmp_path).splitlines()[1:] == printed("evaluate.py")[1:]


def test_from_a_dataset_of_hugging_face_to_a_model(tmp_path: Path) -> None:
    said = run(the("hf_dataset.py"), tmp_path)
    assert printed("hf_dataset.py")[0] in said
    first, *_, last = losses(said)
    assert last < first / 2
    found = re.search(r"^(\d+) of 120 texts that were held out are right$", said, re.MULTILINE)
    assert found is not None
    assert int(found[1]) > 100


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "steps.jsonl").read_text().splitlines()]


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    first, second = (the("resume_ranks.py", number) for number in range(2))
    said = run(first, tmp_path) + run(second, tmp_path)
    assert re.fullmatch(pattern(printed("resume_ranks.py")), said.strip()), said
    rows = steps(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["ranks"] for row in rows] == [2] * 10 + [1] * 10
    epoch = [key for row in rows[:12] for key in row["keys"]]
    assert len(set(epoch)) == 12 * 24  # of 300 samples, each at most once in an epoch


@pytest.mark.long
def test_a_run_that_is_done_is_left_alone(tmp_path: Path) -> None:
    line = the("resume_ranks.py", 1)
    run(line, tmp_path)
    rows = steps(tmp_path)
    assert "from step 20 to step 20" in run(line, tmp_path)
    assert "from step 20 to step 20" in run(line, tmp_path, "--stop-at", "3")
    assert steps(tmp_path) == rows


@pytest.mark.long
def test_ranks_may_be_four_and_then_three(tmp_path: Path) -> None:
    line = "torchrun --standalone --nproc-per-node {} examples/resume_ranks.py --out run"
    run(line.format(4), tmp_path, "--stop-at", "7")
    assert "7 on 4, 13 on 3; the samples of all 20 steps are those of one rank" in run(
        line.format(3), tmp_path
    )
    rows = steps(tmp_path)
    run("python examples/resume_ranks.py --out run", tmp_path, "--out", "alone")
    alone = [json.loads(text) for text in (tmp_path / "alone" / "steps.jsonl").read_text().splitlines()]
    assert [row["keys"] for row in rows] == [row["keys"] for row in alone]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone], rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "line",
    ["python examples/tokens_ddp.py", "torchrun --standalone --nproc-per-node 2 examples/tokens_ddp.py"],
)
def test_an_example_that_is_stopped_leaves_nothing(tmp_path: Path, line: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        command(line, "--steps", "100000"), cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for said in process.stdout:
            if said.startswith("step"):
                break
        assert left_in(tmp_path)
        process.send_signal(number)
        process.communicate(timeout=100)
        assert ended(lambda: not left_in(tmp_path))
    finally:
        process.kill()


@pytest.mark.long
def test_two_runs_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    line = the("evaluate.py")
    both = [
        subprocess.Popen(
            command(line), cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=250)[0] for process in both]
    assert said[0].splitlines() == said[1].splitlines() == printed("evaluate.py")


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_help_says_what_the_example_shows(path: Path, tmp_path: Path) -> None:
    said = run(f"python examples/{path.name} --help", tmp_path)
    assert (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0] in said


EXECUTE = """
import sys
import nbclient, nbformat

found = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(found, timeout=200, kernel_name="python3").execute()
nbformat.write(found, sys.argv[2])
"""


def outputs(cell: dict[str, Any], kind: str) -> str:
    """What a cell shows, of a MIME type."""
    found = [output["data"][kind] for output in cell["outputs"] if kind in output.get("data", {})]
    return "".join("".join(one) for one in found)


def test_the_notebook(tmp_path: Path) -> None:
    from PIL import Image

    path = EXAMPLES / "notebook.ipynb"
    assert path.stat().st_size < 20_000
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs")]  # what is committed shows nothing
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), "out.ipynb"], cwd=tmp_path, env=environment(tmp_path),
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert left_in(tmp_path) == []
    shown = {
        "".join(cell["source"]).splitlines()[-1]: cell
        for cell in json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    }
    assert "400 samples" in outputs(shown["manifest"], "text/html")
    table = outputs(shown["dataset"], "text/html")
    assert "400 samples" in table
    assert "colour (" in table
    assert "a &lt;b&gt;" in table  # a caption with a tag in it stays text
    assert table.count("data:image/jpeg;base64,") == 4
    assert "400 samples in 25 batches" in outputs(shown["loader"], "text/html")
    sheet = picture(outputs(shown["ss.observe.contact_sheet(red, n=12, seed=0)"], "image/png"))
    colours = sheet.resize((64, 64), Image.Resampling.BOX).getcolors(4096)
    assert any(red > 150 and green < 80 and blue < 80 for _, (red, green, blue) in colours)
    assert not any(green > red + 60 or blue > red + 60 for _, (red, green, blue) in colours)
    for line in ("ss.observe.plot_stalls(loader)", "ss.observe.plot_stalls(trace)"):
        assert picture(outputs(shown[line], "image/png")).width == 900


def picture(coded: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(coded))).convert("RGB")
