"""The parts of the benchmark of DLIO that need no DLIO."""

from __future__ import annotations

from benchmarks import page_cache
from benchmarks.dlio import OURS, THEIRS, WORKLOADS
from benchmarks.dlio_report import markdown, met


def row(cache, ours, theirs):
    def runs(au):
        return [
            {"au": [one], "rate": [10.0], "cpu": [2.0], "cached": [cache == "warm", 1.0], "load": 0.5}
            for one in au
        ]

    workload = vars(WORKLOADS["unet3d"])
    rounds = {OURS: runs(ours), THEIRS: runs(theirs)}
    return {"workload": workload, "cache": cache, "tried": {2: 60.0, 4: 50.0}, "rounds": rounds}


def test_pages_of_files_are_counted(tmp_path):
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.write_bytes(b"x" * 100_001)
    (tmp_path / "empty").touch()
    files = page_cache.files_below(tmp_path)
    assert sorted(files) == [str(tmp_path / "empty"), str(file)]
    assert page_cache.resident(files) == 1
    page_cache.drop(files)
    assert page_cache.resident(files) in (0, 1)  # a file system in memory has no other place for them
    page_cache.read(files)
    assert page_cache.resident(files) == 1
    assert page_cache.resident([]) == 0


def test_a_bar_is_met_by_medians():
    assert met(row("warm", [90, 91, 10], [90, 90, 99]), OURS, THEIRS)
    assert not met(row("warm", [88, 89, 99], [90, 90, 10]), OURS, THEIRS)


def test_without_steps_the_rate_counts():
    found = row("warm", [0], [0]) | {"workload": vars(WORKLOADS["unet3d-no-step"])}
    assert not met(found, OURS, THEIRS)
    found["rounds"][OURS][0]["rate"] = [12.1]
    assert met(found, OURS, THEIRS)
    assert "| met, 1.21 x |" in markdown({"unet3d-no-step warm": found}, OURS, THEIRS, "two cores")


def test_the_report_hides_nothing():
    rows = {"unet3d cold": row("cold", [50, 60, 70], [80, 81, 82])}
    text = markdown(rows, OURS, THEIRS, "two cores")
    assert (
        "| unet3d | cold | ours | 60 [50 .. 70] | 10 [10 .. 10] | 12.5 [12.5 .. 12.5] | **not met** |" in text
    )
    assert "0.0 % before, 100.0 % after" in text
    assert WORKLOADS["unet3d"].scaled in text


def test_both_loaders_have_the_same_workload(tmp_path):
    for one in WORKLOADS.values():
        ours, theirs = one.config(tmp_path, True, 3), one.config(tmp_path, False, 3)
        own = ours["reader"].pop("data_loader_classname")
        assert own == "benchmarks.dlio_loader.ShardstreamDataLoader"
        del ours["reader"]["data_loader_sampler"]
        assert ours == theirs
