"""DaliLoader: samples that are damaged or lack a field, and fields beside that are transformed."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shardstream as ss
from shardstream.decode.dali import audio, imagenet_train
from shardstream.errors import OptionError, SourceError
from tests.decode.tars import tar

dali = pytest.importorskip("nvidia.dali", reason="nvidia-dali is an extra of several hundred MB")
from nvidia.dali import fn  # noqa: E402

from shardstream.dali.graph import Graph  # noqa: E402


def picture(number: int, kind: str = "jpeg", **options: Any) -> bytes:
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((80 + number, 64)).save(file, kind, **options)
    return file.getvalue()


def sound(number: int, length: int = 1000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes((np.sin(np.arange(length) / (number + 5)) * 2**14).astype("<i2").tobytes())
    return file.getvalue()


def loader(url: str, pipeline: Any, batch_size: int = 8, **options: Any) -> ss.DaliLoader:
    ds = ss.StreamingDataset(url, **options.pop("ds", {}))
    return ss.DaliLoader(ds, pipeline, batch_size, "cpu", last="short", threads=1, **options)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the pipelines that are built."""
    found: list[int] = []
    build = Graph.build

    def counted(self: Graph, *given: Any, **options: Any) -> Any:
        found.append(1)
        return build(self, *given, **options)

    monkeypatch.setattr(Graph, "build", counted)
    return found


BROKEN = {
    3: b"not a jpeg",
    9: picture(9)[:-300],
    12: b"",
    17: picture(17)[:20],
    21: picture(21, "png")[:-40],
    26: picture(26, "webp")[:-40],
    30: b"\x89PNG\r\n\x1a\n",
}


@pytest.fixture
def broken(tmp_path: Path) -> str:
    return tar(
        tmp_path,
        {
            f"{n:03d}": {"jpg": BROKEN.get(n, picture(n)), "cls": b"%d" % n, "json": b'{"n": %d}' % n}
            for n in range(40)
        },
    )


def whole(tmp_path: Path) -> str:
    (tmp_path / "whole").mkdir()
    return tar(tmp_path / "whole", {f"{n:03d}": {"jpg": picture(n)} for n in range(40)})


def test_masked_batches_have_the_asked_size_and_one_pipeline_makes_them(broken, built, tmp_path, caplog):
    ours = loader(broken, "image-text", on_error="mask")
    sound = {
        key: image for batch in loader(whole(tmp_path), "image-text")
        for key, image in zip(batch["__key__"], batch["image"], strict=True)
    }  # fmt: skip
    built.clear()
    for _ in range(2):
        batches = list(ours)
        assert [len(batch["image"]) for batch in batches] == [8] * 5
        ours.set_epoch(0)
    assert len(built) == 1
    damaged = torch.cat([batch["__damaged__"] for batch in batches]).tolist()
    assert [row for row, bad in enumerate(damaged) if bad] == sorted(BROKEN)
    for batch in batches:
        for row, key in enumerate(batch["__key__"]):
            # What is beside a damaged image is whole, and what is damaged changes nothing for the others.
            assert batch["cls"][row] == int(key)
            assert batch["json"][row] == {"n": int(key)}
            wanted = torch.zeros(3, 224, 224) if int(key) in BROKEN else sound[key]
            assert torch.equal(batch["image"][row], wanted)
    assert ours.stats()["damaged"] == 2 * len(BROKEN)
    assert ours.stats()["skipped"] == 0
    assert all(f"masked: sample '{number:03d}' of shard-" in caplog.text for number in BROKEN)


def test_skipped_samples_build_no_pipeline(broken, built):
    ours = loader(broken, "image-text", on_error="skip")
    batches = list(ours)
    assert len(built) == 1
    assert [int(key) for batch in batches for key in batch["__key__"]] == sorted(set(range(40)) - set(BROKEN))
    assert all(len(batch["image"]) == len(batch["cls"]) == len(batch["__pad__"]) for batch in batches)
    assert ours.stats()["skipped"] == len(BROKEN)


def test_masks_and_places_are_the_same_after_a_resume(broken):
    first = loader(broken, imagenet_train(32), on_error="mask")
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    rest = list(batches)
    again = loader(broken, imagenet_train(32), on_error="mask")
    again.load_state_dict(state)
    for one, other in zip(again, rest, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["__damaged__"], other["__damaged__"])


def test_all_samples_of_a_batch_may_be_masked(tmp_path):
    url = tar(tmp_path, {f"{n}": {"jpg": picture(n) if n > 3 else b"none"} for n in range(8)})
    batches = list(loader(url, imagenet_train(16), 4, on_error="mask"))
    assert [batch["__damaged__"].tolist() for batch in batches] == [[True] * 4, [False] * 4]
    assert not batches[0]["image"].any()
    with pytest.raises(SourceError, match=r"all samples of a batch are damaged.*sample '0' of shard-"):
        list(loader(url, imagenet_train(16), 4, on_error="skip"))
    with pytest.raises(SourceError, match=r"sample '0' of shard-.*: no image in field jpg"):
        list(loader(url, imagenet_train(16), 4))


def test_what_no_check_finds_costs_a_pipeline_once(tmp_path, built):
    def spoilt(number: int) -> bytes:
        data = bytearray(picture(number, "png"))
        data[len(data) // 2] ^= 255
        return bytes(data)

    bad = set(range(2, 64, 7))
    url = tar(
        tmp_path, {f"{n:03d}": {"png": spoilt(n) if n in bad else picture(n, "png")} for n in range(64)}
    )
    ours = loader(url, imagenet_train(16), 8, on_error="mask")
    batches = list(ours)
    assert len(built) == 2
    assert {
        int(key)
        for batch in batches
        for key, gone in zip(batch["__key__"], batch["__damaged__"], strict=True)
        if gone
    } == bad
    built.clear()
    assert [len(batch["image"]) for batch in ours] == [8] * 8
    assert not built
    assert ours.stats()["damaged"] == 2 * len(bad)


def test_fields_beside_can_be_masked_too(tmp_path):
    samples = {
        f"{n}": {"jpg": picture(n), "json": b"{" if n == 2 else b'{"n": %d}' % n, "bin": bytes([n])}
        for n in range(6)
    }
    url = tar(tmp_path, samples)
    with pytest.raises(SourceError, match=r"sample '2'.*field 'json'"):
        list(loader(url, imagenet_train(16), 6))
    (batch,) = loader(url, imagenet_train(16), 6, on_error="mask")
    assert batch["json"] == [{"n": n} if n != 2 else None for n in range(6)]
    assert batch["__damaged__"].tolist() == [n == 2 for n in range(6)]
    assert list(batch["bin"]) == [bytes([n]) for n in range(6)]
    ours = loader(url, imagenet_train(16), 6, on_error="skip")
    (batch,) = ours
    assert batch["json"] == [{"n": n} for n in range(6) if n != 2]
    assert list(batch["bin"]) == [bytes([n]) for n in range(6) if n != 2]
    assert ours.stats()["skipped"] == 1


def test_the_transform_gets_the_fields_beside(tmp_path):
    samples = {
        f"{n}": {"jpg": picture(n), "txt": b"text %d" % n, "json": b"{" if n == 2 else b'{"n": %d}' % n}
        for n in range(6)
    }
    url = tar(tmp_path, samples)

    def transform(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        assert "jpg" not in sample
        return {"words": sample["txt"].split(), "n": sample["json"]["n"], "drawn": rng.integers(1 << 40)}

    def batch(size: int, **options: Any) -> list[Any]:
        return list(loader(url, imagenet_train(16), size, on_error="skip", ds={"transform": transform}))

    (all_at_once,) = batch(6)
    assert all_at_once["__key__"] == ["0", "1", "3", "4", "5"]
    assert all_at_once["words"][1] == ["text", "1"]
    assert all_at_once["n"].tolist() == [0, 1, 3, 4, 5]
    # What it draws depends on the place of the sample alone.
    assert torch.cat([one["drawn"] for one in batch(2)]).tolist() == all_at_once["drawn"].tolist()
    assert len(set(all_at_once["drawn"].tolist())) == 5
    with pytest.raises(OptionError, match="only place for a dict"):
        list(loader(url, imagenet_train(16), 6, on_error="mask", ds={"transform": lambda sample: 3}))
    # The user's own mistakes are not damage.
    with pytest.raises(ZeroDivisionError):
        list(loader(url, imagenet_train(16), 2, on_error="mask", ds={"transform": lambda sample: 1 / 0}))


def test_samples_that_lack_a_field(tmp_path):
    samples = {
        f"{n}": {"jpg": picture(n)} | ({"txt": b"text", "cls": b"7"} if n % 2 else {}) for n in range(6)
    }
    url = tar(tmp_path, samples)

    def graph(jpg: Any, txt: Any = None, cls: Any = 3, webp: Any = None) -> dict[str, Any]:
        assert webp is None  # which the dataset does not have at all
        return {"size": fn.peek_image_shape(jpg), "txt": txt, "cls": cls}

    (batch,) = loader(url, graph, 6)
    assert [bytes(text.numpy()) for text in batch["txt"]] == [b"", b"text"] * 3
    assert batch["cls"].tolist() == [3, 7] * 3
    assert {name: flags.tolist() for name, flags in batch["__missing__"].items()} == {
        "txt": [True, False] * 3,
        "cls": [True, False] * 3,
    }

    def needs(jpg: Any, txt: Any) -> dict[str, Any]:
        return {"size": fn.peek_image_shape(jpg), "txt": txt}

    with pytest.raises(SourceError, match=r"sample '0' of .* has no field 'txt'"):
        list(loader(url, needs, 6))
    (batch,) = loader(url, needs, 6, on_error="mask")
    assert batch["__damaged__"].tolist() == [True, False] * 3
    assert [bytes(text.numpy()) for text in batch["txt"]] == [bytes(4), b"text"] * 3
    (batch,) = loader(url, needs, 6, on_error="skip")
    assert batch["__key__"] == ["1", "3", "5"]


def test_an_image_may_lie_in_several_fields(tmp_path):
    kinds = {"jpg": "jpeg", "png": "png", "webp": "webp", "gif": "gif", "bmp": "bmp", "tiff": "tiff"}
    names = list(kinds)
    samples = {f"{n}": {names[n % 6]: picture(n, kinds[names[n % 6]])} for n in range(12)}
    url = tar(tmp_path, samples)
    (batch,) = loader(url, lambda image: {"image": fn.decoders.image(image)}, 12)
    cpu = ss.StreamingDataset(url)
    for row, image in enumerate(batch["image"]):
        assert np.array_equal(image, cpu[row][names[row % 6]])
    assert set(batch) == {"__key__", "image", "__pad__"}
    with pytest.warns(DeprecationWarning, match="from the next version"):
        assert batch["webp"] is batch["image"]


def test_sound_that_is_padded_says_how_long_it_is(tmp_path):
    url = tar(tmp_path, {f"{n}": {"wav": sound(n, 1000 + 400 * n)} for n in range(4)})
    (batch,) = loader(url, audio(sample_rate=8000, seconds=0.2), 4)
    assert batch["audio"].shape == (4, 1600)
    assert batch["audio_length"].tolist() == [1000, 1400, 1600, 1600]
    for row, length in enumerate(batch["audio_length"].tolist()):
        assert not batch["audio"][row, length:].any()
        assert batch["audio"][row, length - 20 : length].any()
    (batch,) = loader(url, audio(sample_rate=8000), 4)
    assert [len(one) for one in batch["audio"]] == [1000, 1400, 1800, 2200]


def test_damaged_sounds(tmp_path, built):
    soundfile = pytest.importorskip("soundfile")

    def encoded(number: int, kind: str) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, np.sin(np.arange(4000 + number) / (9 + number)) / 2, 8000, format=kind)
        return file.getvalue()

    samples: dict[str, dict[str, bytes]] = {}
    for n in range(12):
        kind = ("wav", "flac", "ogg")[n % 3]
        data = encoded(n, kind.upper())
        samples[f"{n:02d}"] = {kind: data[: len(data) // 2] if n in (3, 4, 5, 9, 10) else data}
    samples["11"] = {"ogg": b"no sound"}
    url = tar(tmp_path, samples)
    ours = loader(url, audio(sample_rate=8000), 4, on_error="mask")
    batches = list(ours)
    gone = [
        key
        for batch in batches
        for key, bad in zip(batch["__key__"], batch["__damaged__"], strict=True)
        if bad
    ]
    assert gone == ["03", "04", "05", "09", "10", "11"]
    for number, one in enumerate(one for batch in batches for one in batch["audio"]):
        # Where all that is left has one length, so have the zeros.
        assert not one.any() if f"{number:02d}" in gone else len(one) == 4000 + number
    with pytest.raises(SourceError, match=r"sample '03' of shard-.*: no sound in field wav \(the file has"):
        list(loader(url, audio(sample_rate=8000), 4))


def test_a_graph_that_fails_on_a_made_up_image_gets_another_sample(tmp_path, built):
    url = tar(tmp_path, {f"{n}": {"jpg": b"broken" if n == 1 else picture(n)} for n in range(6)})

    def cropped(jpg: Any) -> dict[str, Any]:
        return {"part": fn.crop(fn.decoders.image(jpg), crop=(60, 78))}

    (batch,) = loader(url, cropped, 6, on_error="mask")
    assert batch["part"].shape == (6, 60, 78, 3)
    assert not batch["part"][1].any()
    assert len(built) == 1


def test_one_limit_of_pixels(tmp_path):
    from shardstream.decode import images

    url = tar(tmp_path, {f"{n}": {"jpg": picture(n)} for n in range(6)})
    limit = 82 * 64
    told = r"sample '3' of shard-.*83 x 64 pixels are more than max_pixels=5,248"
    with pytest.raises(SourceError, match=told):
        list(loader(url, imagenet_train(16, max_pixels=limit), 6))
    cpu = ss.StreamingDataset(url, decode=images.Train(16, max_pixels=limit))
    with pytest.raises(SourceError, match=told):
        list(ss.StreamingLoader(cpu, 6))
    (batch,) = loader(url, images.Train(16, max_pixels=limit, on_error="mask"), 6)
    assert batch["__damaged__"].tolist() == [False, False, False, True, True, True]


def test_a_pipeline_serves_many_epochs_but_not_if_it_draws_by_itself(tmp_path, built):
    url = tar(tmp_path, {f"{n}": {"jpg": picture(n)} for n in range(8)})
    ours = loader(url, imagenet_train(16), 4)
    for _ in range(3):
        assert len(list(ours)) == 2
    assert len(built) == 1
    built.clear()
    drawn = loader(url, lambda jpg: {"jpg": fn.resize(fn.decoders.image_random_crop(jpg), size=[9, 9])}, 4)
    for _ in range(3):
        assert len(list(drawn)) == 2
    assert len(built) == 3
