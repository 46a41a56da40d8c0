"""Horovod's torch optimizer over gloo, its ranks started by horovodrun."""

from __future__ import annotations

import sys

from tests.frameworks.contract import SharedData


class TestHorovod(SharedData):
    script = "horovod_loop"
    processes = False

    @staticmethod
    def launcher(ranks: int) -> list[str]:
        run = [sys.executable, "-m", "horovod.runner.launch"]  # horovodrun
        # The first start of torch takes longer than the 30 s that Horovod grants on a busy machine.
        return [*run, "-np", str(ranks), "--gloo", "--gloo-timeout-seconds", "300", "--disable-cache"]
