"""Checksums beside weights: recorded, compared, and recorded anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import shardstream as ss
from shardstream.errors import CorruptionError, OptionError
from shardstream.weights.check import verify_weights


@pytest.mark.parametrize("size", [1000, 1001])
def test_weights_that_were_written_anew_are_recorded_anew(tmp_path: Path, size: int) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(1000)}, folder / "model.safetensors")
    verify_weights(str(folder), record=True)
    save_file({"w": torch.zeros(size)}, folder / "model.safetensors")
    message = r"the file was written anew: .*verify --record.* or delete shardstream\.digests\.json"
    with pytest.raises(CorruptionError, match=message):
        verify_weights(str(folder))
    with pytest.raises(CorruptionError, match=message):
        ss.load_weights(folder)
    with pytest.raises(CorruptionError, match=message):
        ss.fetch_weights(folder, tmp_path / "cache")
    assert len(verify_weights(str(folder), record=True).unchecked) == 1
    assert len(verify_weights(str(folder)).checked) == 1
    assert len(ss.load_weights(folder)["w"]) == size


def test_checksums_are_recorded_of_folders(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "m.safetensors")
    with pytest.raises(OptionError, match="of a folder"):
        verify_weights(str(tmp_path / "m.safetensors"), record=True)
