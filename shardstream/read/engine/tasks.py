"""Threads of one iterator: tasks in, results out. The consumer may be interrupted at any point.

Signals interrupt the consumer, and the garbage collector may end it at any moment. So it never takes a lock
that a thread needs: if it were interrupted while it had the lock, the thread would wait forever.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from shardstream.storage.cancellation import Cancelled, CancelScope, work_for

__all__ = ["News", "Pool", "Task"]

T = TypeVar("T")


class News:
    """Wakes the consumer when a task has ended."""

    def __init__(self) -> None:
        self._at = time.monotonic()  # when a task ended last
        self._quiet = threading.Lock()  # locked while there is nothing new
        self._quiet.acquire()

    def tell(self) -> None:
        """Say that a task has ended."""
        self._at = time.monotonic()
        with contextlib.suppress(RuntimeError):  # unlocked already: the consumer was told, and will wake
            self._quiet.release()

    def wait(self, seconds: float) -> None:
        """Wait until a task has ended since the last wait, or the time is over."""
        self._quiet.acquire(timeout=seconds)

    def quiet(self, since: float) -> float:
        """For how many seconds no task has ended, counted from the time `since` at the earliest."""
        return time.monotonic() - max(since, self._at)


class Task(Generic[T]):
    """A call that a thread makes, and its result.

    Attributes:
        done: Whether the call has ended, or was given up.
        error: What the call raised, or None. It is set when `done` is.
    """

    __slots__ = ("_call", "_gate", "_value", "done", "error")

    def __init__(self, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._gate = threading.Lock()  # locked until it is done
        self._gate.acquire()
        self.done = False
        self.error: BaseException | None = None
        self._value: Any = None

    def run(self) -> None:
        """Make the call."""
        call, self._call = self._call, None
        assert call is not None
        try:
            self._value = call()
        except BaseException as error:  # noqa: BLE001 - raised by who asks for the result
            self.error = error
        self._end()
        del call, self  # the traceback of an error refers to this frame, and so to its variables

    def give_up(self) -> None:
        """End the task without making the call."""
        self._call, self.error = None, Cancelled()
        self._end()

    def _end(self) -> None:
        self.done = True
        self._gate.release()

    def wait(self, seconds: float = -1) -> bool:
        """Wait until the task is done, for at most `seconds`; returns whether it is.

        Only for threads, which are not interrupted. -1 is no limit.
        """
        if self._gate.acquire(timeout=seconds):
            self._gate.release()
        return self.done

    def result(self) -> T:
        """What the call returned; raises what it raised. Only for a task that is done."""
        if self.error is not None:
            raise self.error
        value: T = self._value
        return value


class Pool:
    """Threads for the tasks of one iterator. Tasks begin in the order in which they were submitted.

    Args:
        name: The name of the threads.
        most: How many threads there are at most.
        scope: Ends the work of the threads.
        news: Is told when a task ends.
        owner: The threads also end when this object is dropped. An interrupt may keep its owner from `end`.
    """

    def __init__(self, name: str, most: int, scope: CancelScope, news: News, owner: object) -> None:
        self._name, self._scope, self._news = name, scope, news
        self._tasks: Tasks = queue.SimpleQueue()
        # The callback is in C: an interrupt cannot come within it. It takes effect as long as someone has the
        # reference: the threads.
        self._dropped: weakref.ref[object] = weakref.ref(owner, self._tasks.put)
        # One entry for each thread that has no task, and for each that may still be started. To append and to
        # pop are atomic.
        self._idle: deque[None] = deque()
        self._unborn: deque[None] = deque([None] * most)
        self._process = os.getpid()

    def submit(self, call: Callable[[], T]) -> Task[T]:
        """Let a thread make a call."""
        task = Task(call)
        self._tasks.put(task)
        self._find_thread()
        return task

    def offer(self, call: Callable[[], object]) -> bool:
        """Let a thread make a call, if a thread seems to have nothing to do; returns whether it will."""
        if self._scope.over or not (self._idle or self._unborn):
            return False
        self.submit(call)
        return True

    def _find_thread(self) -> None:
        """Start a thread, if all threads have a task and another one may be started."""
        with contextlib.suppress(IndexError):
            self._idle.pop()
            return
        # Not inside of an `except`: an interrupt would come with a second traceback, of the IndexError.
        with contextlib.suppress(IndexError):
            self._unborn.pop()
            # The thread gets no reference to this object, which would otherwise never be freed.
            shared = self._tasks, self._idle, self._scope, self._news, self._dropped
            threading.Thread(target=_work, args=shared, name=self._name, daemon=True).start()

    def end(self) -> None:
        """Give up the tasks that have not begun, and let each thread end after its task."""
        if self._process != os.getpid():  # in a fork the threads belong to the parent
            return
        with contextlib.suppress(queue.Empty):
            while True:
                task = self._tasks.get_nowait()
                if isinstance(task, Task):
                    task.give_up()
        self._tasks.put(None)


# None, or the reference to an owner that is gone, ends the threads.
Tasks = queue.SimpleQueue[Task[Any] | weakref.ref[object] | None]
_running: dict[threading.Thread, tuple[CancelScope, Tasks]] = {}


def _work(
    tasks: Tasks, idle: deque[None], scope: CancelScope, news: News, dropped: weakref.ref[object]
) -> None:
    """The loop of each thread."""
    me = threading.current_thread()
    _running[me] = scope, tasks
    try:
        work_for(scope)
        while True:
            try:
                task = tasks.get_nowait()
            except queue.Empty:
                idle.append(None)
                task = tasks.get()
            if not isinstance(task, Task):
                scope.end()
                tasks.put(task)  # for the next thread
                return
            if scope.over:
                task.give_up()
            else:
                task.run()
            del task  # while the thread waits, the result must not stay in memory
            news.tell()
    finally:
        _running.pop(me, None)


def _leave() -> None:
    """End all threads when the interpreter ends. A thread that then still runs in C code could crash it."""
    for scope, tasks in list(_running.values()):
        scope.end()
        tasks.put(None)
    for thread in list(_running):
        thread.join()


atexit.register(_leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)
