"""Frames are decompressed to the same bytes, and damage is found, whichever library does it."""

from __future__ import annotations

import ctypes
import random
import threading

import pytest
import zstandard

from shardstream.errors import CorruptionError
from shardstream.format.frames import compressor
from shardstream.format.frames import decompress as decompress_alone
from shardstream.read import decompress, system_zstd
from shardstream.read.buffers import BufferPool
from shardstream.read.decompress import Decompressor

TEXT = b"".join(b"line %d of a frame that compresses\n" % number for number in range(20_000))


@pytest.fixture(params=["system", "zstandard"], autouse=True)
def which(request, monkeypatch):
    if request.param == "zstandard":
        monkeypatch.setattr(decompress, "library", lambda: None)
    elif system_zstd.library() is None:
        pytest.skip("this system has no zstd library of 1.5.2 or later")
    return request.param


def frame(stored, size, room=0):
    return Decompressor(BufferPool()).frame(stored, size, "shard 0, frame 0", room)


@pytest.mark.parametrize("raw", [TEXT, TEXT[:1], random.Random(1).randbytes(1 << 20), bytes(1 << 20), b""])
def test_content(raw):
    found = frame(compressor("zstd")(raw), len(raw), 100)
    assert len(found) >= len(raw) + 100
    assert found[: len(raw)].tobytes() == raw


def test_stored_bytes_may_be_a_view_that_is_read_only():
    stored = b"before" + compressor("zstd")(TEXT) + b"behind"
    view = memoryview(stored).toreadonly()[6:-6]
    assert frame(view, len(TEXT))[: len(TEXT)].tobytes() == TEXT


def test_several_frames_and_what_is_skipped():
    skipped = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"notes"
    one = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    stored = compressor("zstd")(TEXT) + skipped + one.compress(TEXT) + one.flush()
    assert frame(stored, 2 * len(TEXT))[: 2 * len(TEXT)].tobytes() == 2 * TEXT


def test_a_window_that_takes_too_much_memory_is_refused():
    for log in (27, 28):
        settings = zstandard.ZstdCompressionParameters(window_log=log, write_content_size=False)
        one = zstandard.ZstdCompressor(compression_params=settings).compressobj()
        stored = one.compress(TEXT) + one.flush()
        assert zstandard.get_frame_parameters(stored).window_size == 1 << log
        if log == 27:
            assert frame(stored, len(TEXT))[: len(TEXT)].tobytes() == TEXT
            continue
        with pytest.raises(CorruptionError, match=f"a window of {1 << log} bytes"):
            frame(stored, len(TEXT))
        with pytest.raises(CorruptionError, match=f"a window of {1 << log} bytes"):
            decompress_alone("zstd", stored, len(TEXT), "shard 0, frame 0")


def test_a_frame_that_names_its_size_may_have_any_window():
    stored = compressor("zstd")(TEXT)
    header, size = zstandard.frame_header_size(stored), len(TEXT).to_bytes(4, "little")
    # Checksum, size in 4 bytes, no single segment; then the window.
    stored = stored[:4] + bytes([0b1000_0100, (28 - 10) << 3]) + size + stored[header:]
    assert zstandard.get_frame_parameters(stored).window_size == 1 << 28
    assert frame(stored, len(TEXT))[: len(TEXT)].tobytes() == TEXT


@pytest.mark.parametrize("behind", [b"garbage", compressor("zstd")(TEXT), compressor("zstd")(TEXT)[:-1]])
def test_what_lies_behind_a_frame_of_all_content_is_ignored(behind):
    stored = compressor("zstd")(TEXT) + behind
    assert frame(stored, len(TEXT))[: len(TEXT)].tobytes() == TEXT


def test_damage_is_found_in_front_of_garbage_too():
    stored = bytearray(compressor("zstd")(random.Random(2).randbytes(5000)) + b"garbage")
    stored[2000] ^= 1
    with pytest.raises(CorruptionError, match=r"the zstd frame is damaged \("):
        frame(bytes(stored), 5000)


def test_a_changed_byte_of_the_content_is_found():
    stored = bytearray(compressor("zstd")(random.Random(2).randbytes(5000)))  # stored as it is
    stored[2000] ^= 1
    with pytest.raises(CorruptionError, match=r"shard 0, frame 0: the zstd frame is damaged \("):
        frame(bytes(stored), 5000)


def test_random_damage_never_gives_other_bytes(which):
    if which == "zstandard":
        pytest.skip("its streams may end before the checksum; but stored bytes are verified before")
    raw, passed = TEXT[:50_000], 0
    for seed in range(200):
        rng, stored = random.Random(seed), bytearray(compressor("zstd")(raw))
        for _ in range(rng.randint(1, 4)):
            stored[rng.randrange(len(stored))] = rng.randrange(256)
        damaged = bytes(stored[: rng.choice((len(stored), rng.randrange(20, len(stored))))])
        try:
            assert frame(damaged, len(raw))[: len(raw)].tobytes() == raw
            passed += 1
        except CorruptionError:
            pass
    assert passed < 20  # those in which a byte was written over by the same byte


@pytest.mark.parametrize("size", [len(TEXT) - 1, len(TEXT) + 1])
def test_another_size_than_expected(size):
    with pytest.raises(CorruptionError, match="the index"):
        frame(compressor("zstd")(TEXT), size)


def test_too_little_content_in_frames_that_name_no_size():
    one = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    stored = one.compress(TEXT) + one.flush()
    with pytest.raises(CorruptionError, match=f"{len(TEXT)} bytes decompressed, {len(TEXT) + 1} expected"):
        frame(stored, len(TEXT) + 1)


def test_a_buffer_goes_back_if_its_frame_is_damaged():
    pool = BufferPool()
    stored = bytearray(compressor("zstd")(random.Random(2).randbytes(100_000)))
    stored[2000] ^= 1
    with pytest.raises(CorruptionError):
        Decompressor(pool).frame(bytes(stored), 100_000, "it")
    assert pool.idle >= 100_000


def test_many_threads():
    decompressor, stored, wrong = Decompressor(BufferPool()), compressor("zstd")(TEXT), []

    def work():
        found = [decompressor.frame(stored, len(TEXT), "it")[: len(TEXT)].tobytes() for _ in range(10)]
        wrong.extend(each for each in found if each != TEXT)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def missing(name):
    raise OSError(name)


@pytest.mark.parametrize("version", [None, 10501])
def test_an_old_library_or_none_is_not_used(monkeypatch, version):
    class Old:
        def ZSTD_versionNumber(self):  # noqa: N802
            return version

    monkeypatch.setattr(ctypes, "CDLL", missing if version is None else lambda name: Old())
    assert system_zstd.library.__wrapped__() is None
