"""shardstream bench"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardstream.cli import options
from shardstream.cli.probe import Decode, ImageSize, SeqLen
from shardstream.cli.screen import say, table

if TYPE_CHECKING:
    from shardstream.observe.bench import Bench


def bench(
    url: Annotated[str, typer.Argument(help="URL of the dataset.")],
    batch: Annotated[int, typer.Option(min=1, help="Samples of a batch of a rank.")],
    ranks: Annotated[
        str, typer.Option(help="Data-parallel ranks of this machine, a process each: 0-7 or 0,2.")
    ] = "0",
    world: Annotated[int | None, typer.Option(min=1, help="How many data-parallel ranks there are.")] = None,
    step_ms: Annotated[float, typer.Option(min=0, help="Milliseconds of a step without data.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long a phase takes at most.")] = 20.0,
    seq_len: SeqLen = None,
    image_size: ImageSize = None,
    decode: Decode = True,
    prefetch: Annotated[str | None, typer.Option(help="Bytes of look-ahead, such as 256MiB.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the loader.")] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where the temporary cache is made, and removed at the end."),
    ] = None,
    plot: Annotated[str | None, typer.Option(metavar="PNG", help="Draw the phases (extra: plot).")] = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Run the loader without a model in three phases: replayed batches, a full cache, an empty one."""
    from shardstream.cli.warm import numbers
    from shardstream.errors import require
    from shardstream.format.sizes import parse_size
    from shardstream.observe.bench import bench as run
    from shardstream.observe.signals import ended_by_signal

    if plot is not None:
        require("matplotlib", "plot")  # said before a minute is spent
    with ended_by_signal():
        found = run(
            url,
            batch,
            ranks=numbers(ranks),
            world=world,
            step_ms=step_ms,
            seconds=seconds,
            seq_len=seq_len,
            image_size=image_size,
            decode=decode,
            cache=cache,
            prefetch=None if prefetch is None else parse_size(prefetch, "prefetch"),
            threads=threads,
            storage_options=options.storage_options(storage_option),
        )
    if plot is not None:
        from shardstream.observe.bench_plot import plot as draw

        draw(found, plot)
    if json:
        options.print_json(found.as_dict())
    else:
        _show(found)


def _show(found: Bench) -> None:
    from shardstream.format.sizes import human_size

    say(f"{found.url}: ranks {', '.join(map(str, found.ranks))} of {found.world}, batches of {found.batch}")
    table(
        ("phase", "samples/s", "first batch", "waiting", "CPU s", "from the store"),
        (
            (
                phase.name, f"{phase.per_second:,.0f}", f"{phase.first_batch_seconds:.2f} s",
                f"{phase.wait_share:.1%}", f"{phase.cpu_seconds:.1f}", human_size(phase.store_bytes),
            )
            for phase in (found.replayed, found.cached, found.cold)
        ),
        "<>>>>>",
    )  # fmt: skip
    preparation = found.preparation_stall
    if preparation is None:
        say("preparation costs: give --step-ms; without a step there is no ceiling")
    else:
        say(f"preparation costs {preparation:.1%} of the time (1 - cached / replayed)")
        rate = found.replayed.per_second / max(found.cold.per_second, 1e-9)
        say(f"with free data the job would be {rate:.2f} times as fast as with an empty cache (Amdahl)")
    say(f"the store costs {found.fetch_stall:.1%} of the time while the cache is empty (1 - cold / cached)")
