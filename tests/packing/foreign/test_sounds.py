"""Sounds as soundfile writes them, in each container and encoding, with texts beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shardstream as ss
from shardstream.errors import SourceError
from shardstream.format.kinds import SOUNDS
from tests.packing.foreign.accounting import digests, packed

soundfile = pytest.importorskip("soundfile")

CONTAINERS = {
    "wav": "WAV",
    "flac": "FLAC",
    "ogg": "OGG",
    "opus": "OGG",
    "mp3": "MP3",
    "aiff": "AIFF",
    "aif": "AIFF",
}
OTHERS = {"au": "AU", "caf": "CAF", "w64": "W64"}  # packed as they are, and given as bytes


def tones(channels: int) -> np.ndarray:
    time = np.arange(4800)[:, None] / 48_000
    return 0.4 * np.sin(2 * np.pi * time * (220 * np.arange(1, channels + 1))).astype(np.float32)


def write(folder: Path) -> Iterator[str]:
    """Write each kind of sound that soundfile can; gives their names."""
    for extension, container in (CONTAINERS | OTHERS).items():
        for encoding in soundfile.available_subtypes(container):
            # libsndfile reads DWVW from files alone, not from memory.
            if (extension == "opus") != (encoding == "OPUS") or encoding.startswith("DWVW"):
                continue
            for channels in (1, 2):
                name = f"{encoding}-{channels}.{extension}"
                path = folder / extension / name
                path.parent.mkdir(exist_ok=True)
                try:
                    soundfile.write(path, tones(channels), 48_000, encoding, format=container)
                except (soundfile.LibsndfileError, ValueError, TypeError):
                    path.unlink(missing_ok=True)
                    continue
                path.with_suffix(".txt").write_text(f"{container} {encoding}")
                yield f"{extension}/{name}"


def test_each_container_and_encoding_keeps_its_bytes_and_is_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = list(write(folder))
    assert {name.partition("/")[0] for name in names} >= {"wav", "flac", "ogg", "mp3", "aiff", "au"}
    account = packed(folder, tmp_path / "out", folder, format="files")
    assert not account.named
    wanted = {
        str(Path(name).with_suffix("")): {
            name.rpartition(".")[2]: (folder / name).read_bytes(),
            "txt": (folder / name).with_suffix(".txt").read_bytes(),
        }
        for name in names
    }
    assert account.samples == digests(wanted)
    dataset = ss.StreamingDataset(str(tmp_path / "out"))
    for number in range(len(dataset)):
        sample = dataset[number]
        key = sample["__key__"]
        [extension] = set(wanted[key]) - {"txt"}
        value = sample[extension]
        if extension not in SOUNDS:
            assert bytes(value) == wanted[key][extension]
            continue
        found, rate = value
        expected, its_rate = soundfile.read(
            folder / key.partition("/")[0] / f"{key.partition('/')[2]}.{extension}",
            dtype="float32",
            always_2d=True,
        )
        assert rate == its_rate
        np.testing.assert_array_equal(np.asarray(found), expected.T, key)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_a_sound_that_is_cut_off_is_kept_and_an_error_when_it_is_decoded(
    tmp_path: Path, extension: str
) -> None:
    path = tmp_path / "in" / f"a.{extension}"
    path.parent.mkdir()
    soundfile.write(path, np.tile(tones(1), (20, 1)), 48_000, format=CONTAINERS[extension])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    account = packed(path.parent, tmp_path / "out", format="files")
    assert account.samples == digests({"a": {extension: data[: len(data) // 2]}})
    with pytest.raises(SourceError, match=re.escape(f"field '{extension}'")):
        ss.StreamingDataset(str(tmp_path / "out"))[0]
