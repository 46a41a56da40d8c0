"""Sound that soundfile does not read: of each kind, whole and cut off; made by the encoders of FFmpeg."""

from __future__ import annotations

import io
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.decode import audio
from shardstream.decode.registry import decode_field
from shardstream.errors import MissingExtraError, SourceError

RATE = 16_000
# The extension, what FFmpeg calls the container and the codec, and options of the container.
KINDS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "m4a": ("m4a", "ipod", "aac", {}),
    "faststart": ("m4a", "ipod", "aac", {"movflags": "+faststart"}),
    "fragments": ("m4a", "mp4", "aac", {"movflags": "+frag_keyframe+empty_moov"}),
    "alac": ("m4a", "ipod", "alac", {}),
    "aac": ("aac", "adts", "aac", {}),
    "wma": ("wma", "asf", "wmav2", {}),
}
_WAVE = (np.sin(2 * np.pi * np.array([[440], [220]]) * np.arange(RATE) / RATE) / 2).astype(np.float32)


def encoded(kind: str, wave: np.ndarray = _WAVE) -> bytes:
    _, form, codec, options = KINDS[kind]
    # A real file, since some containers write their sizes at the end, and read what they have written.
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed below
    with av.open(file.name, "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=RATE, layout="stereo" if len(wave) == 2 else "mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        resampler = av.AudioResampler(stream.format, stream.layout, RATE, stream.frame_size or 4096)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    with file:
        return file.read()


def test_a_short_aac() -> None:
    for seed in range(12):  # FFmpeg recognises some of them
        noise = np.random.default_rng(seed).uniform(-1, 1, (1, 500)).astype(np.float32)
        found, rate = decode_field("aac", encoded("aac", noise))
        assert (found.shape, rate) == ((1, 2048), RATE)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_float_of_all_channels_and_its_rate(kind: str) -> None:
    found, rate = decode_field(KINDS[kind][0], encoded(kind))
    assert (found.dtype, len(found), rate, found.flags.c_contiguous) == (np.float32, 2, RATE, True)
    # The others do not say how much of their first and last block is padding, and WMA may lose the last.
    exact = kind in ("m4a", "faststart", "alac")
    assert found.shape[1] == RATE if exact else RATE - 2048 <= found.shape[1] < RATE + 4096
    # Both channels are what they were, wherever they begin.
    for channel, wave in zip(found, _WAVE, strict=True):
        best = max(float(channel[begin : begin + 8000] @ wave[:8000]) for begin in range(4096))
        assert best / float(wave[:8000] @ wave[:8000]) > 0.9
    if kind == "alac":
        assert np.abs(found - _WAVE).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.98])
def test_sound_that_is_cut_off_is_an_error_that_names_the_sample(kind: str, share: float) -> None:
    data, extension = encoded(kind), KINDS[kind][0]
    with pytest.raises(SourceError, match=f"sample 'k7', field '{extension}'") as caught:
        decode_field(extension, data[: int(len(data) * share)], key="k7")
    assert " object at 0x" not in str(caught.value)


@given(st.sampled_from(["m4a", "faststart", "aac", "wma"]), st.data())
@settings(max_examples=60)
def test_no_cut_and_no_damage_is_another_error(kind: str, draw: st.DataObject) -> None:
    data = bytearray(_ENCODED.setdefault(kind, encoded(kind)))
    del data[draw.draw(st.integers(0, len(data))) :]
    for _ in range(draw.draw(st.integers(0, 3)) if data else 0):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        found, rate = audio.decode(bytes(data))
    except SourceError:
        return
    assert found.ndim == 2
    assert rate > 0


_ENCODED: dict[str, bytes] = {}


def test_the_content_decides_and_not_the_name() -> None:
    found, rate = decode_field("mp3", encoded("m4a"))
    assert (found.shape, rate) == (_WAVE.shape, RATE)


@pytest.mark.parametrize("footer", [False, True])
def test_aac_with_tags(footer: bool) -> None:
    body = bytes(200)
    tag = b"ID3\4\0" + bytes([0x10 if footer else 0, 0, 0, 1, 72]) + body
    plain = encoded("aac")
    tagged = tag + (b"3DI" + tag[3:10] if footer else b"") + plain + b"TAG" + bytes(125)
    found, _ = audio.decode(tagged)
    assert found.shape == audio.decode(plain)[0].shape


def test_one_channel_and_a_film_without_sound() -> None:
    assert audio.decode(encoded("m4a", _WAVE[:1]))[0].shape == (1, RATE)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match="there is no sound in it"):
        audio.decode(file.getvalue())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'shardstream\[av\]'"):
        decode_field("m4a", encoded_before)


encoded_before = encoded("m4a")


def test_files_become_batches(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, kind in enumerate(("m4a", "alac", "fragments")):
        (tmp_path / "in" / f"{number}.m4a").write_bytes(encoded(kind))
        (tmp_path / "in" / f"{number}.txt").write_text(f"sound {number}")
    manifest = ss.pack(tmp_path / "in", tmp_path / "out", format="files")
    assert manifest.samples == 3
    found = [sample["m4a"][0].shape[0] for sample in ss.StreamingDataset(str(tmp_path / "out"))]
    assert found == [2, 2, 2]
