"""Rounds of random use with faults; with --long, half an hour: nothing lost, wrong or hung, memory flat."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.soak import Soak, held, pack_all, served

# Warm allocators, modules and pools of clients are not what grows.
_ALLOWED = 48 << 20


@pytest.mark.filterwarnings("ignore:.* an epoch has no batch")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # a machine may have few cores
@pytest.mark.parametrize(
    ("first", "then", "seed"),
    [
        ({"rounds": 3}, {"rounds": 9}, 1),  # the same rounds on any machine
        pytest.param(
            {"seconds": 300}, {"seconds": 1500}, 2, marks=[pytest.mark.long, pytest.mark.timeout(2400)]
        ),
    ],
    ids=["rounds", "half an hour"],
)
def test_nothing_is_lost_or_wrong_and_memory_is_flat(
    nginx: Any,
    proxy_to: Callable[..., Any],
    tmp_path: Path,
    first: dict[str, float],
    then: dict[str, float],
    seed: int,
) -> None:
    local = tmp_path / "datasets"
    pack_all(local)
    with served(nginx, local, f"soak-{seed}") as name:
        proxy = proxy_to(nginx)
        soak = Soak(tmp_path, local, proxy, f"{proxy.url}/{name}", seed)

        def count() -> tuple[int, int]:
            proxy.down()  # idle connections of the stores' clients, and the proxy's own, are no leak
            proxy.up()
            time.sleep(1)
            return held()

        # Whatever is made once, at the first use, is made before counting begins.
        soak.run(**first)
        before = count()
        report = soak.run(**then)
        print(report)
        after = count()
    assert report.rounds >= 12
    assert report.given_up <= 1 + report.segments // 20
    assert [late <= early + 16 for late, early in zip(after, before, strict=True)] == [True, True], (
        before,
        after,
    )
    third = len(report.memory) // 3
    grown = statistics.median(report.memory[-third:]) - statistics.median(report.memory[third : 2 * third])
    assert grown < _ALLOWED, f"{grown >> 20} MiB more"
