"""shardstream probe"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import say, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardstream.observe.probe_profile import Latency, Profile, Sweep

_MANY = 100  # requests, from which on a p99 means something

Batch = Annotated[int, typer.Option(min=1, help="Samples of a batch of a rank.")]
SeqLen = Annotated[int | None, typer.Option(min=1, help="Of a dataset of tokens; 2048 by default.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Crop images to this size; whole by default.")]
Decode = Annotated[bool, typer.Option("--decode/--no-decode", help="Whether fields are decoded.")]
Seed = Annotated[int, typer.Option(min=0, help="The seed of the job's Shuffle.")]
Natural = Annotated[bool, typer.Option("--natural", help="The job reads in natural order.")]
Lanes = Annotated[int | None, typer.Option(min=1, help="The lanes of the job's Shuffle, if given.")]
Window = Annotated[int | None, typer.Option(min=1, help="The window of the job's Shuffle, if given.")]


def probe(
    url: Annotated[str, typer.Argument(help="URL of a dataset, or of a folder with any objects.")],
    cache: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder of a cache: its disk is measured, too.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the profile, for `shardstream advise`.")
    ] = None,
    batch: Batch = 32,
    seq_len: SeqLen = None,
    image_size: ImageSize = None,
    decode: Decode = True,
    seed: Seed = 0,
    natural: Natural = False,
    lanes: Lanes = None,
    window: Window = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long it takes.")] = 60.0,
    most: Annotated[str, typer.Option(help="Bytes that it reads and writes at most.")] = "1GiB",
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Measure what a store, the disk of a cache and the cores of this machine can do, in a minute."""
    from shardstream.observe.probe import probe as run
    from shardstream.observe.signals import ended_by_signal

    with ended_by_signal():
        profile = run(
            url,
            cache,
            batch=batch,
            seq_len=seq_len,
            image_size=image_size,
            decode=decode,
            seed=None if natural else seed,
            lanes=lanes,
            window=window,
            seconds=seconds,
            most=most,
            storage_options=options.storage_options(storage_option),
        )
    if out is not None:
        profile.save(out)
    if json:
        options.print_json(profile.as_dict())
    else:
        _show(profile)


def _show(profile: Profile) -> None:
    from shardstream.format.sizes import human_size

    store, rates, disk = profile.store, profile.rates, profile.disk
    say(f"{profile.url}: {store.objects:,} objects, {human_size(store.object_bytes)}, by {store.backend}")
    say(
        f"{profile.seconds:.0f} s, {human_size(profile.read_bytes)} read; "
        f"{profile.cores} cores, of which {profile.free_cores:.1f} were free; while all are busy, each does "
        f"{profile.shared_work:.0%} of what one does alone"
    )
    say("\none request at a time")
    _show_latencies(store.latencies)
    say(f"  without bytes {store.base_ms:.2f} ms, then {human_size(store.stream_bytes_per_second)}/s")
    _show_sweep(store.throughput)
    _show_sweep(store.small)
    for loop in store.open_loops:
        say(
            f"\nopen loop, {loop.per_second:,.0f} arrivals/s ({loop.share:.0%} of the knee), "
            f"{human_size(loop.bytes)}: p50 {loop.p50_ms:.2f} ms, p95 {loop.p95_ms:.2f} ms, "
            f"p99 {loop.p99_ms:.2f} ms"
        )
    if disk is not None:
        say(
            f"\ndisk of the cache: writes {human_size(disk.write_bytes_per_second)}/s with fsync; cold reads:"
        )
        _show_latencies(disk.latencies)
        _show_sweep(disk.throughput)
    if rates is not None:
        rate = rates.decompress_bytes_per_second
        unit = f"{human_size(rate)}/s" if rate else "-"
        say(
            f"\none core: decompresses {unit} ({rates.codec}); "
            f"makes {1 / rates.seconds_per_sample:,.0f} samples/s"
        )
        say(
            f"  from memory, {1 / rates.cold_seconds_per_sample:,.0f} from the store; one process at most "
            f"{1 / rates.serial_seconds_per_sample:,.0f}; a request has {human_size(rates.range_bytes)}"
        )
    for text in profile.cut:
        say(f"cut: {text}")


def _show_sweep(sweep: Sweep | None) -> None:
    from shardstream.format.sizes import human_size

    if sweep is None:
        return
    say(f"\nclosed loop, {human_size(sweep.bytes)}: concurrency {sweep.knee} is the knee")
    rows = (
        (
            f"{level.concurrency}{' <' if level.concurrency == sweep.knee else '  '}",
            f"{level.per_second:,.0f}",
            f"{human_size(level.bytes_per_second)}/s",
            f"{level.p50_ms:.2f} ms",
            f"{level.p99_ms:.2f} ms",
        )
        for level in sweep.levels
    )
    table(("at a time  ", "requests/s", "bytes", "p50", "p99"), rows, ">>>>>", indent="  ")


def _show_latencies(latencies: Iterable[Latency]) -> None:
    from shardstream.format.sizes import human_size

    rows = (
        (
            human_size(one.bytes),
            *(f"{value:,.2f} ms" for value in (one.p50_ms, one.p95_ms, one.p99_ms)),
            "" if one.requests >= _MANY else f"{one.requests}",
        )
        for one in latencies
    )
    table(("bytes", "p50", "p95", "p99", "requests if few"), rows, "<>>>>", indent="  ")
