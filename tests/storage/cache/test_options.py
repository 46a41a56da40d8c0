"""The options of a cache."""

from __future__ import annotations

import pytest

from shardstream.errors import OptionError
from shardstream.storage.cache.options import Cache


def test_options_are_checked() -> None:
    for bad in ({"disk": "1GB"}, {"dir": "x", "disk": "much"}, {"ram": 0}, {"dir": "x", "disk_format": "zip"},
                {"always": True}, {"disk_format": "raw"}):  # fmt: skip
        with pytest.raises(OptionError):
            Cache(**bad)


def test_the_halves_of_ram_are_for_a_running_epoch_and_for_all_else() -> None:
    cache = Cache(ram="2GiB")
    tiers = cache.tiers()
    assert tiers.memory is not None
    assert (cache.ram_for_frames, tiers.budget.limit, tiers.memory.limit) == (1 << 30,) * 3
    assert tiers.budget.by_name() == {"RAM tier": 0, "write-behind": 0}
    assert cache.budget() is not tiers.budget
