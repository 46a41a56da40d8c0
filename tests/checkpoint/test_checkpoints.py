"""What one process saves is what it loads, nothing that is committed is lost, and every refusal says why."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardstream as ss
from shardstream.cli.app import run
from shardstream.errors import CorruptionError, OptionError, StateError, StorageError
from tests.checkpoint.models import Model, equal, stepped, trained

VALUES: dict[str, Any] = {
    "number": 3, "float": 0.1, "nan": math.nan, "inf": -math.inf, "big": 1 << 100, "none": None, "yes": True,
    "text": "a/b~c é", "bytes": b"\x00\xff", "many bytes": os.urandom(10_000), "tuple": (1, (2.5, "x")),
    "ints": {1: "one", 2: {"deep": [1, 2, [3]]}}, "dollar": {"$": 1}, "set": {1, 2}, "complex": 1 + 2j,
    "counter": Counter({30: 1, 60: 2}), "dtype": torch.bfloat16, "device": torch.device("cpu"),
    "size": torch.Size([1, 2]), "empty": {}, "list": [], "array": np.arange(6.0).reshape(2, 3),
    "0-d": torch.tensor(7.0),
    "dates": np.array(["2026-11-26"], "datetime64[D]"), "scalar": np.float32(0.1), "half": np.float16(2),
    "tensor": torch.arange(5), "complex tensor": torch.rand(3, dtype=torch.complex128),
    "fp8": torch.rand(9).to(torch.float8_e4m3fn), "nothing": torch.empty(0, 4), "bool": torch.tensor([True]),
    "strided": torch.rand(6, 4).t()[::2], "expanded": torch.rand(3, 1).expand(3, 4),
    "conj": torch.rand(3, dtype=torch.complex64).conj(), "ordered": OrderedDict(b=1, a=2),
}  # fmt: skip


@pytest.fixture
def saves(tmp_path: Path) -> ss.Checkpoints:
    return ss.Checkpoints(str(tmp_path / "run"), memory="64MiB")


def same(one: Any, other: Any) -> None:
    if isinstance(one, (dict, list, tuple)):
        assert len(one) == len(other)
        keys = one if isinstance(one, dict) else range(len(one))
        for key in keys:
            same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert bytes(one.contiguous().resolve_conj().reshape(-1).view(torch.uint8).numpy()) == bytes(
            other.contiguous().resolve_conj().reshape(-1).view(torch.uint8).numpy()
        )
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    else:
        assert one == other or (one != one and other != other)
        assert type(one) is type(other)


def test_every_kind_of_value_comes_back(saves: ss.Checkpoints) -> None:
    assert saves.load({}) is None
    assert saves.save(0, {"all": dict(VALUES), "top": 5, "t": torch.arange(3)})
    assert saves.wait()
    state: dict[str, Any] = {"all": {}, "top": None, "t": torch.zeros(3, dtype=torch.int64)}
    tensor = state["t"]
    assert saves.load(state) == 0
    same(dict(VALUES), state["all"])
    assert state["top"] == 5
    assert state["t"] is tensor
    assert tensor.tolist() == [0, 1, 2]


def test_a_job_goes_on_as_if_it_had_not_ended(saves: ss.Checkpoints) -> None:
    model, optim = trained()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optim, [4, 6])
    scaler = torch.amp.GradScaler("cpu")
    everything = {"model": model, "optim": optim, "schedule": schedule, "scaler": scaler}
    saves.save(3, everything)
    stepped(model, optim, 2)  # it changes at once, while threads still write
    saves.wait()
    fresh = Model(5)
    new = torch.optim.AdamW(fresh.parameters(), lr=9.0)  # which has not taken a step
    later = torch.optim.lr_scheduler.MultiStepLR(new, [4, 6])
    loaded: dict[str, Any] = {
        "model": fresh, "optim": new, "schedule": later, "scaler": torch.amp.GradScaler("cpu"),
    }  # fmt: skip
    assert saves.load(loaded) == 3
    assert fresh.head.weight is fresh.embed.weight
    stepped(fresh, new, 2)
    assert equal(model.state_dict(), fresh.state_dict())
    assert equal(optim.state_dict()["state"], new.state_dict()["state"])


def test_an_optimizer_without_a_step_is_saved_as_it_is(saves: ss.Checkpoints) -> None:
    model = Model()
    optim = torch.optim.AdamW(model.parameters(), lr=0.01)
    saves.save(0, {"model": model, "optim": optim})
    saves.wait()
    assert not optim.state
    other, used = trained(1)
    assert saves.load({"model": other, "optim": used}) == 0
    assert not used.state
    assert used.param_groups[0]["lr"] == 0.01


def test_files_are_what_transformers_and_vllm_load(saves: ss.Checkpoints) -> None:
    from safetensors.torch import load_file

    model, optim = trained()
    saves.save(7, {"model": model, "optim": optim})
    saves.wait()
    folder = Path(saves.folder(7))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, torch.Tensor] = {}
    for name in set(index["weight_map"].values()):
        found |= load_file(folder / name)
    mine = model.state_dict()
    del mine["head.weight"]  # tied: it is there once
    assert set(found) == set(index["weight_map"]) == set(mine)
    assert all(torch.equal(found[name], mine[name]) for name in mine)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch.compile uses what torch has deprecated
def test_wrappers_leave_no_mark_in_names(saves: ss.Checkpoints) -> None:
    inner = torch.nn.Sequential(torch.nn.Linear(3, 3))
    model = torch.compile(inner, backend="eager")
    optim = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saves.save(1, {"model": model, "optim": optim})
    saves.wait()
    assert set(saves.manifest(1).tensors) == {"model/0.weight", "model/0.bias"}
    plain = torch.nn.Sequential(torch.nn.Linear(3, 3))
    assert saves.load({"model": plain}) == 1
    assert equal(plain.state_dict(), inner.state_dict())


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"a": {"b": object()}}, "x/a/b"), ({"a": [1, lambda: 0]}, "x/a/1"), ({(1, 2): 3, b"k": 1}, "x"),
        (np.array([object()]), "x"), (np.zeros(2, [("a", "i4")]), "x"), (torch.eye(3).to_sparse(), "x"),
        (torch.empty(3, device="meta"), "x"), ({1: torch.zeros(1), "1": torch.zeros(1)}, "x/1"),
    ],
)  # fmt: skip
def test_what_would_need_pickle_is_refused_by_name(saves: ss.Checkpoints, value: Any, key: str) -> None:
    with pytest.raises(StateError, match=f"^{key}"):
        saves.save(1, {"x": value})
    assert saves.steps() == []
    assert saves.save(1, {"x": 1})  # the handle is as good as before


def test_a_committed_step_is_never_overwritten(saves: ss.Checkpoints, tmp_path: Path) -> None:
    saves.save(5, {"x": 1})
    saves.wait()
    with pytest.raises(StateError, match="step 5 is committed already"):
        saves.save(5, {"x": 2})
    with pytest.raises(StateError, match="step 5 is committed already"):
        ss.Checkpoints(str(tmp_path / "run")).save(5, {"x": 2})
    state = {"x": 0}
    saves.load(state)
    assert state == {"x": 1}


def committed(job: ss.Checkpoints) -> bool:
    """Whether a job has committed its step, and not another one."""
    try:
        return job.wait()
    except StateError:
        return False


def test_two_jobs_in_one_folder_commit_a_step_once(tmp_path: Path) -> None:
    one, other = (ss.Checkpoints(str(tmp_path / "run")) for _ in range(2))
    one.save(0, {"x": "one"})
    other.save(1, {"x": "other"})
    assert one.wait()
    assert other.wait()
    results = []
    for step in range(2, 8):
        one.save(step, {"x": "one"})
        other.save(step, {"x": "other"})
        outcome = [committed(job) for job in (one, other)]
        assert sorted(outcome) == [False, True]
        results.append({"x": None})
        assert one.load(results[-1], step=step) == step
        assert results[-1]["x"] == ("one" if outcome[0] else "other")


def test_what_does_not_fit_is_said_before_anything_changes(saves: ss.Checkpoints) -> None:
    model, optim = trained()
    saves.save(1, {"model": model, "optim": optim, "x": 1})
    saves.wait()
    other = Model(3)
    other.extra = torch.nn.Parameter(torch.zeros(2))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(StateError, match=r"not in the checkpoint: extra"):
        saves.load({"model": other})
    wide = Model(3)
    wide.scale = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(StateError, match=r"model/scale is F32\[2\], in the checkpoint F32\[\]"):
        saves.load({"model": wide})
    with pytest.raises(StateError, match="has no 'ema'; it has model, optim, x"):
        saves.load({"ema": other})
    with pytest.raises(StateError, match=r"step 9 is not committed; there are \[1\]"):
        saves.load({"x": 0}, step=9)
    assert equal(before, other.state_dict())


def test_the_newest_sound_one_is_loaded_and_what_was_skipped_is_said(saves: ss.Checkpoints) -> None:
    for step in (10, 20, 30, 40):
        saves.save(step, {"w": torch.full((1000,), step), "big": torch.rand(3000)})
        saves.wait()
    for step, name, change in ((40, "state", "flip"), (30, "state", "delete"), (20, "state", "cut")):
        path = next(Path(saves.folder(step)).glob(f"{name}*.safetensors"))
        data = bytearray(path.read_bytes())
        if change == "flip":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        elif change == "cut":
            path.write_bytes(data[:-1])
        else:
            path.unlink()
    state = {"w": torch.zeros(1000, dtype=torch.int64), "big": torch.zeros(3000)}
    with pytest.warns(RuntimeWarning, match="is skipped"):
        assert saves.load(state) == 10
    assert state["w"].eq(10).all()
    assert [each.step for each in saves.skipped] == [40, 30, 20]
    assert all("state-00000-00001.safetensors" in each.reason for each in saves.skipped)
    manifest = Path(saves.folder(10)).parent / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"F32", b"F64", 1))
    with pytest.warns(RuntimeWarning), pytest.raises(CorruptionError, match="no checkpoint is sound"):
        saves.load(state)


def test_an_error_of_the_background_is_raised_by_the_next_call(tmp_path: Path) -> None:
    run = tmp_path / "run"
    saves = ss.Checkpoints(str(run))
    saves.save(1, {"x": torch.rand(10)})
    saves.wait()
    (run / "step-2").write_text("a file where a folder should be")
    for call in ("wait", "save"):
        assert saves.save(2, {"x": torch.rand(10)})
        saves._saver.flight.writer.wait()
        with pytest.raises(StorageError, match="step 2"):
            saves.wait() if call == "wait" else saves.save(3, {"x": torch.rand(10)})
    (run / "step-2").unlink()
    assert saves.save(2, {"x": torch.rand(10)})
    saves.wait()
    assert saves.steps() == [1, 2]
    assert saves.failures == 2


def test_errors_may_be_warnings(tmp_path: Path) -> None:
    run = tmp_path / "run"
    saves = ss.Checkpoints(str(run), errors="warn")
    run.mkdir()
    (run / "step-2").write_text("a file where a folder should be")
    saves.save(2, {"x": 1})
    with pytest.warns(RuntimeWarning, match="step 2"):
        saves.wait()
    saves.save(2, {"x": 1})
    saves._saver.flight.writer.wait()
    with pytest.warns(RuntimeWarning, match="step 2"):
        assert saves.save(3, {"x": 1})
    assert saves.wait()
    assert saves.failures == 2


def test_old_checkpoints_are_deleted_and_attempts_after_a_day(saves: ss.Checkpoints, tmp_path: Path) -> None:
    from shardstream.checkpoint.retention import Run, prune, sweep

    kept = ss.Checkpoints(str(tmp_path / "run"), keep=2)
    for step in (1, 2, 3, 4):
        kept.save(step, {"x": torch.rand(4)})
        kept.wait()
    assert kept.steps() == [3, 4]
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-3", "step-4"]
    dead = tmp_path / "run" / "step-9" / ("dead" * 4)
    dead.mkdir(parents=True)
    (dead / "state-00000-00001.safetensors").write_bytes(b"x")
    (tmp_path / "run" / "step-3" / ("cafe" * 4)).mkdir()
    (tmp_path / "run" / "step-3" / ("cafe" * 4) / "rank-00001.json").write_bytes(b"x")
    run = Run(str(tmp_path / "run"))
    day = 24 * 3600
    assert sweep(run, now=0.0) == []
    assert sweep(run, now=day - 1.0) == []
    (dead / "state-00000-00002.safetensors").write_bytes(b"x")  # it is alive
    assert sweep(run, now=day + 1.0) == ["step-3/cafecafecafecafe"]
    assert sweep(run, now=day + 2.0) == []
    assert sweep(run, now=2 * day + 2.0) == ["step-9/deaddeaddeaddead"]
    assert not dead.parent.exists()
    assert kept.steps() == [3, 4]
    # The newest sound ones stay.
    assert prune(run, 1, unsound={4}) == []
    assert kept.load({"x": torch.zeros(4)}, step=3) == 3


def test_a_local_disk_is_written_first_and_read_first(tmp_path: Path) -> None:
    local = tmp_path / "local"
    saves = ss.Checkpoints(str(tmp_path / "run"), local=str(local), keep=2)
    for step in (1, 2, 3):
        saves.save(step, {"x": torch.full((100,), step)})
        saves.wait()
    (mine,) = local.iterdir()
    assert sorted(path.name for path in mine.iterdir()) == ["step-2", "step-3"]
    remote = next(Path(saves.folder(3)).glob("state*.safetensors"))
    data = remote.read_bytes()
    remote.write_bytes(bytes(len(data)))  # as if the store had lost it: the disk has it
    state = {"x": torch.zeros(100, dtype=torch.int64)}
    assert saves.load(state) == 3
    assert state["x"].eq(3).all()
    remote.write_bytes(data)
    mine = next(local.glob("*/step-3/*/state*.safetensors"))
    mine.write_bytes(bytes(len(data)))  # as if the disk had lost it: the store has it
    state["x"].zero_()
    assert saves.load(state) == 3
    assert state["x"].eq(3).all()
    assert saves.skipped == []


def test_memory_is_bounded_and_kept(tmp_path: Path) -> None:
    saves = ss.Checkpoints(str(tmp_path / "run"), memory="32MiB")
    state = {"x": torch.rand(30 << 18), "y": torch.rand(25 << 18)}  # 55 MiB
    for step in range(3):
        saves.save(step, state, busy="wait")
    saves.wait()
    assert saves._saver.pool.held <= 32 << 20
    loaded = {"x": torch.zeros(30 << 18), "y": torch.zeros(25 << 18)}
    assert saves.load(loaded) == 2
    assert equal(state, loaded)
    assert all(file.bytes <= 17 << 20 for file in saves.manifest(2).files)


def test_options_are_checked() -> None:
    for options in ({"busy": "no"}, {"errors": "no"}, {"keep": 0}, {"memory": "x"}, {"local": "s3://b/x"}):
        with pytest.raises(OptionError):
            ss.Checkpoints("somewhere", **options)  # type: ignore[arg-type]
    with pytest.raises(StateError, match="rank-0"):
        ss.Checkpoints("somewhere").save(1, {"rank-0": 1})


def test_what_a_rank_has_of_its_own(saves: ss.Checkpoints) -> None:
    generator = torch.Generator().manual_seed(3)
    saves.save(1, {"x": 1}, per_rank={"rng": generator.get_state(), "seen": [1, 2]})
    saves.wait()
    own = {"rng": torch.zeros_like(generator.get_state()), "seen": None}
    assert saves.load({"x": 0}, per_rank=own) == 1
    assert torch.equal(own["rng"], generator.get_state())
    assert own["seen"] == [1, 2]


def test_the_place_in_the_data_is_of_the_same_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": f"k{n}", "text": f"line {n} " * 20}) + "\n" for n in range(60))
    )
    ss.pack(corpus, tmp_path / "packed", tokenizer="bytes", eos=256, workers=1)

    def loader(batch: int) -> ss.StreamingLoader[Any]:
        ds = ss.TokenDataset(str(tmp_path / "packed"), seq_len=16, shuffle=ss.Shuffle(seed=0))
        return ss.StreamingLoader(ds, batch)

    first = loader(4)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    url = str(tmp_path / "run")
    saves = ss.Checkpoints(url)
    saves.save(5, {"data": first, "w": torch.ones(1)})
    rest = torch.cat([next(batches)["tokens"] for _ in range(4)])
    saves.wait()
    manifest = saves.manifest(5)
    assert manifest.data["data"]["position"] == 20
    assert manifest.data["data"]["fingerprint"]
    other = loader(8)
    assert saves.load({"data": other}) == 5
    again = iter(other)
    assert torch.equal(torch.cat([next(again)["tokens"] for _ in range(2)]), rest)
    assert run(["checkpoint", f"{url}-other"]) == 0
    assert f"no checkpoint at {url}-other: a step-N/manifest.json was looked" in capsys.readouterr().out
    assert run(["checkpoint", url, "show"]) == 0
    assert "data: epoch 0, position 20" in capsys.readouterr().out


def test_a_fork_has_none_of_the_threads(saves: ss.Checkpoints, tmp_path: Path) -> None:
    saves.save(1, {"x": torch.rand(1000)})
    child = os.fork()
    if not child:
        try:
            saves.save(2, {"x": torch.rand(1000)}, busy="wait")
            os._exit(0 if saves.wait(30) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    saves.wait()
    assert saves.steps() == [1, 2]


def test_a_save_that_fails_half_way_leaves_the_handle_as_it_was(saves: ss.Checkpoints) -> None:
    class Broken(torch.Tensor):
        """A tensor whose bytes cannot be copied."""

        def contiguous(self) -> torch.Tensor:  # type: ignore[override]
            raise RuntimeError("the device is gone")

    saves.save(1, {"x": 1})
    saves.wait()
    state = {"a": torch.rand(3 << 20), "b": torch.rand(1 << 20).as_subclass(Broken)}
    with pytest.raises(RuntimeError, match="the device is gone"):
        saves.save(2, state)
    assert threading.active_count() < 20
    assert saves.save(2, {"x": 2})
    saves.wait()
    assert saves.steps() == [1, 2]


@pytest.mark.parametrize("where", ["threading.Thread.start", "shardstream.checkpoint.writing.Senders"])
def test_a_save_that_cannot_begin_tells_the_other_ranks(
    saves: ss.Checkpoints, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def no_thread(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    assert saves.save(1, {"x": torch.rand(9)})
    assert saves.wait()
    with monkeypatch.context() as patched:
        patched.setattr(where, no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            saves.save(2, {"x": torch.rand(9)})
    assert len(list(Path(saves.url).glob("step-2/*/failed-00000.json"))) == 1
    assert saves.save(2, {"x": torch.rand(9)})
    assert saves.wait()


def test_a_module_whose_parameters_are_cut_up_elsewhere_is_refused(saves: ss.Checkpoints) -> None:
    model = torch.nn.Linear(4, 4)
    weight: Any = model.weight  # as DeepSpeed's ZeRO-3 leaves it
    weight.ds_id, weight.ds_tensor = 0, weight.data.clone()
    weight.data = torch.empty(0)
    for state in ({"model": model}, {"all": {"model": model}}):
        with pytest.raises(StateError, match=r"ZeRO-3.*engine\.save_checkpoint"):
            saves.save(1, state)
    assert saves.steps() == []


def test_threads_may_save_at_once(saves: ss.Checkpoints) -> None:
    threads = [
        threading.Thread(
            target=saves.save, args=(step, {"x": torch.full((10,), step)}), kwargs={"busy": "wait"}
        )
        for step in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    saves.wait()
    assert saves.steps() == list(range(8))


def test_an_untied_checkpoint_is_not_read_into_tied_weights(saves: ss.Checkpoints) -> None:
    made = [torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)) for _ in range(2)]
    saves.save(1, {"model": made[0]})
    saves.wait()
    made[1][1].weight = made[1][0].weight
    with pytest.raises(StateError, match=r"model/1.weight and model/0.weight are one tensor here"):
        saves.load({"model": made[1]})


def test_tied_weights_within_lists_are_stored_once(saves: ss.Checkpoints) -> None:
    model = Model()
    saves.save(1, {"m": [model]})
    saves.wait()
    assert set(saves.manifest(1).tensors) == {f"m/0/{name}" for name in model.state_dict()} - {
        "m/0/head.weight"
    }
    again = Model(5)
    assert saves.load({"m": [again]}) == 1
    assert equal(model.state_dict(), again.state_dict())


def test_a_parameter_that_is_cut_up_elsewhere_is_refused_by_name(saves: ss.Checkpoints) -> None:
    weight: Any = torch.nn.Linear(4, 4).weight
    weight.ds_id = 0
    with pytest.raises(StateError, match=r"^w: the parameter is cut up by DeepSpeed's ZeRO-3"):
        saves.save(1, {"w": weight})
