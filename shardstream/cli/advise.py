"""shardstream advise"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from shardstream.cli import options
from shardstream.cli.probe import Batch, Decode, ImageSize, Lanes, Natural, Seed, SeqLen, Window
from shardstream.cli.screen import room, say, wrapped

if TYPE_CHECKING:
    from shardstream.observe.advise_lines import Line

_NAME, _VALUE, _ORIGIN = 44, 18, 9  # columns of the names of lines, of their values, and of their origins
_HOW = 40  # columns at least for the arithmetic beside them


def advise(
    url: Annotated[str, typer.Argument(help="URL of the dataset.")],
    profile: Annotated[
        str | None, typer.Option(metavar="FILE", help="What `shardstream probe --out FILE` has measured.")
    ] = None,
    batch: Batch = 32,
    world: Annotated[int, typer.Option(min=1, help="How many ranks the job has.")] = 1,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks of a machine; 8, or all if they are fewer.")
    ] = None,
    share: Annotated[
        int, typer.Option(min=1, help="Ranks that get the same batches, since they split the model.")
    ] = 1,
    step_ms: Annotated[float | None, typer.Option(help="Milliseconds of a step without data.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How many epochs the job reads.")] = 1,
    seq_len: SeqLen = None,
    image_size: ImageSize = None,
    decode: Decode = True,
    seed: Seed = 0,
    natural: Natural = False,
    lanes: Lanes = None,
    window: Window = None,
    prefetch: Annotated[str | None, typer.Option(help="The job's bytes of look-ahead.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores of a machine.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of a machine, such as 1TiB.")] = None,
    disk: Annotated[str | None, typer.Option(help="Disk of a machine for a cache, such as 2TB.")] = None,
    link: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes/s to a machine, all ranks: 12.5GB for 100 Gbit/s."),
    ] = None,
    model_bytes: Annotated[str | None, typer.Option(help="Bytes of the weights, such as 14GB.")] = None,
    dataset_bytes: Annotated[
        str | None, typer.Option("--dataset", help="What if the dataset had so many bytes, such as 100TB.")
    ] = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Say which settings a job needs and what it will wait, with the arithmetic. Nothing is changed.

    Each number is measured (by the profile), given (by you, or the dataset) or assumed.
    """
    from shardstream.observe.advise import advise as run

    found = run(
        url,
        profile,
        batch=batch,
        world=world,
        ranks_per_node=ranks_per_node,
        share=share,
        step_ms=step_ms,
        epochs=epochs,
        seq_len=seq_len,
        image_size=image_size,
        decode=decode,
        seed=None if natural else seed,
        lanes=lanes,
        window=window,
        prefetch=prefetch,
        cores=cores,
        memory=memory,
        disk=disk,
        link=link,
        model_bytes=model_bytes,
        dataset_bytes=dataset_bytes,
        storage_options=options.storage_options(storage_option),
    )
    if json:
        options.print_json(found.as_dict())
        return
    say(found.verdict)
    for topic, lines in groupby(found.lines, key=lambda line: line.topic):
        say(f"\n{topic}")
        _show(list(lines))
    say("\nsettings (nothing was changed)")
    for name, value in found.settings.items():
        say(f"  {name} = {value}", "      ")


def _show(lines: list[Line]) -> None:
    """The lines of a topic: in columns, or with the arithmetic below if it has no room beside them."""
    width = room()
    for line in lines:
        columns = f"  {line.name:<{_NAME}}{line.shown:>{_VALUE}}  {line.origin:<{_ORIGIN}} "
        if width is None or width - len(columns) >= _HOW:
            print("\n".join(wrapped(line.how, width, " " * len(columns), columns)))
            continue
        say(f"  {line.name}: {line.shown} ({line.origin})", "    ")
        say(f"      {line.how}", "      ")
