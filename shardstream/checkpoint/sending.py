"""Sends the files of a part to the store, several at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from shardstream.checkpoint.layout import sums_name
from shardstream.checkpoint.outgoing import Outgoing, mapped
from shardstream.storage.store import Store

__all__ = ["Senders"]

_SENDERS = 4  # uploads at a time; each is one request of up to 256 MiB


class Senders:
    """The threads that send. They are no daemons: the program waits for them at its end.

    Args:
        store: The folder of the checkpoint.
        attempt: The folder of the files in it.
        stopped: Set once the attempt has failed: nothing more is sent.
        failed: Called with what a thread meets.
        sent: Called with each file, whether it was sent or not.
    """

    def __init__(
        self, store: Store, attempt: str, stopped: threading.Event, failed: Callable[[BaseException], None],
        sent: Callable[[Outgoing], None],
    ) -> None:  # fmt: skip
        self._store, self._attempt = store, attempt
        self._stopped, self._failed, self._sent = stopped, failed, sent
        self._files: queue.SimpleQueue[Outgoing | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        for _ in range(_SENDERS):
            thread = threading.Thread(target=self._run, name=f"upload-{self._attempt}", daemon=False)
            thread.start()
            self._threads.append(thread)

    def put(self, file: Outgoing) -> None:
        """Send a file, which lies on this machine's disk, or whose blocks are all there."""
        self._files.put(file)

    def finish(self) -> None:
        """Wait until all files are sent, or the attempt has failed."""
        for _ in self._threads:
            self._files.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (file := self._files.get()) is not None:
            try:
                if not self._stopped.is_set():
                    self._send(file)
            except BaseException as error:  # noqa: BLE001 - raised by the caller's next call
                self._failed(error)
            self._sent(file)

    def _send(self, file: Outgoing) -> None:
        path = f"{self._attempt}/{file.plan.name}"
        if file.path is not None:
            with mapped(file.path, file.plan.size) as data:
                self._store.write(path, data)
        else:
            for block in file.blocks:
                file.digest(block.parts)
            self._store.write(path, *(part for block in file.blocks for part in block.parts))
        self._store.write(sums_name(path), file.sums)
