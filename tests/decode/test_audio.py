"""Sound of each kind that soundfile reads, whole and cut off."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from shardstream.decode.registry import decode_field
from shardstream.errors import SourceError

FORMATS = {
    "wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16"), "aif": ("AIFF", "PCM_16"),
}  # fmt: skip


def sound(extension: str) -> tuple[np.ndarray, bytes]:
    time = np.arange(16_000) / 16_000
    wave = np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 220 * time)]) / 2
    file = io.BytesIO()
    form, subtype = FORMATS[extension]
    soundfile.write(file, wave.T, 16_000, format=form, subtype=subtype)
    return wave, file.getvalue()


@pytest.mark.parametrize("extension", FORMATS)
def test_each_kind_is_float_of_all_channels_and_its_rate(extension: str) -> None:
    wave, data = sound(extension)
    found, rate = decode_field(extension, data)
    assert (found.dtype, found.shape, rate) == (np.float32, wave.shape, 16_000)
    assert np.sqrt(np.mean((found - wave) ** 2)) < 0.05


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_sound_that_is_cut_off_is_an_error_that_names_the_sample(extension: str, share: float) -> None:
    _, data = sound(extension)
    with pytest.raises(SourceError, match=f"sample 'k7', field '{extension}'") as caught:
        decode_field(extension, data[: int(len(data) * share)], key="k7")
    assert " object at 0x" not in str(caught.value)
