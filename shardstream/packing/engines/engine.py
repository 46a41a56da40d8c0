"""What an engine is: it starts workers, and gives them tasks until all are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Counts", "Engine", "Needs", "Workers"]


@dataclass
class Counts:
    """What happened to the workers, for the progress of a pack; and whether they may do a task twice at once.

    Args:
        nodes: The machines that can take tasks now. 0: the engine does not know.
        retried: How often a task was given to a worker again, second attempts at slow ones among them.
        lost: How many workers died with tasks, those of lost machines among them.
        copies: Whether workers that have nothing to do may make a second attempt at a task that is slow. The
            pack sets it before each `Workers.run`: it is true only where two attempts at once do no harm. An
            engine need not make any.
    """

    nodes: int = 0
    retried: int = 0
    lost: int = 0
    copies: bool = False


@dataclass(frozen=True)
class Needs:
    """What a pack needs of the workers.

    Args:
        workers: How many tasks run at a time. None: as many as there is room for.
        memory: The bytes that a task takes, about.
        storage_options: The options of all stores. Secrets among them are not sent.
        folders: Local folders that every worker must see, since results are written there.
        files: Local files that every worker must see, with their sizes.
    """

    workers: int | None = None
    memory: int = 0
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    folders: tuple[str, ...] = ()
    files: tuple[tuple[str, int], ...] = ()


class Workers(Protocol):
    """Workers that have been started."""

    @property
    def counts(self) -> Counts:
        """What happened to them so far."""
        ...

    def run(
        self,
        function: Callable[[Any, Any], Any],
        job: object,
        tasks: Sequence[Any],
        inherited: Sequence[int] = (),
    ) -> Iterator[Any]:
        """Yield function(job, task) for every task, in the order in which they end.

        A task may be run again after a run that failed or was lost, and its runs may be cut off at any point.
        It may be run twice at the same time only if `counts.copies` is true. There is one result of each
        task. When the iterator is closed, no task is begun any more.

        Args:
            function: A function in a module that workers can import.
            job: The first argument of each call.
            tasks: The second argument of each call.
            inherited: File descriptors that workers inherit, if they are children of this process.

        Yields:
            What the function returned for each task.

        Raises:
            OptionError: An argument cannot be sent, or a worker's machine cannot do the job.
            StorageError: Workers died, or a store failed, and trying again did not help.
            Exception: The first other error of a call.
        """
        ...


class Engine(Protocol):
    """Where the tasks of a pack run.

    `shared` says whether tasks may run on other machines than this one.
    """

    @property
    def shared(self) -> bool:
        """Whether tasks may run on other machines, which have to see local files and the destination."""
        ...

    def started(self, needs: Needs) -> AbstractContextManager[Workers]:
        """Workers, which end with the context.

        Args:
            needs: What the pack needs.

        Returns:
            A context whose value is the workers.

        Raises:
            OptionError: A machine cannot do the job.
            StorageError: Workers cannot be started.
            MissingExtraError: The package of the engine is not installed.
        """
        ...
