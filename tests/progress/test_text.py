"""The progress in words, in any room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardstream.progress import Progress
from shardstream.progress.text import amount, in_words, percent

PACKING = Progress(
    done_bytes=1 << 20, total_bytes=4 << 20, samples=10, rejected=1, done_tasks=1, total_tasks=4, seconds=2.0
)
WARMING = Progress(done_bytes=3 << 20, total_bytes=4 << 20, found_bytes=1 << 20, seconds=2.0)
numbers = st.integers(0, 1 << 50)


def test_all_that_is_known() -> None:
    assert in_words(PACKING) == "1.0 MiB of 4.0 MiB, 512.0 KiB/s, 10 samples, 1 rejected, 6.0 s left"
    assert in_words(WARMING) == "3.0 MiB of 4.0 MiB, 1.0 MiB/s, 1.0 s left"
    assert in_words(Progress(samples=1, total_samples=2)) == "1 of 2 samples"
    assert in_words(Progress(done_bytes=1024, samples=1, seconds=1.0)) == "1.0 KiB, 1.0 KiB/s, 1 sample"
    full = Progress(done_bytes=4 << 20, total_bytes=4 << 20, nodes=3, lost=1, retried=2, seconds=300.0)
    assert in_words(full) == ("4.0 MiB of 4.0 MiB, 13.7 KiB/s, 3 nodes, 1 worker lost, 2 retried, in 5 min")


def test_in_a_narrow_terminal_the_most_useful_stays() -> None:
    assert in_words(PACKING, 26) == "25 %, 1 rejected"
    assert in_words(PACKING, 28) == "25 %, 1 rejected, 6.0 s left"
    assert in_words(PACKING, 3) == "25 %"
    assert percent(Progress(samples=5)) == ""
    assert amount(Progress(samples=1, total_samples=2)) == (1, 2)


@given(
    st.builds(
        Progress,
        done_bytes=numbers, total_bytes=numbers, samples=numbers, total_samples=numbers, rejected=numbers,
        nodes=numbers, retried=numbers, lost=numbers, seconds=st.floats(0, 1e7),
    ),
    st.integers(30, 200),
)  # fmt: skip
def test_it_fits_its_room(now: Progress, room: int) -> None:
    assert len(in_words(now, room)) <= room
    assert "\n" not in in_words(now)
