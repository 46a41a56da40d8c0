"""shardstream probe"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardstream.cli import options

if TYPE_CHECKING:
    from shardstream.observe.probe_profile import Profile, Sweep

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
    print(f"{profile.url}: {store.objects:,} objects, {human_size(store.object_bytes)}, by {store.backend}")
    print(
        f"{profile.seconds:.0f} s, {human_size(profile.read_bytes)} read; "
        f"{profile.cores} cores, of which {profile.free_cores:.1f} were free; while all are busy, each does "
        f"{profile.shared_work:.0%} of what one does alone"
    )
    print("\none request at a time                p50        p95        p99")
    for one in store.latencies:
        few = "" if one.requests >= 100 else f"   of {one.requests} requests"
        times = "".join(f"{value:>8.2f} ms" for value in (one.p50_ms, one.p95_ms, one.p99_ms))
        print(f"  {human_size(one.bytes):<22}{times}{few}")
    print(f"  without bytes {store.base_ms:.2f} ms, then {human_size(store.stream_bytes_per_second)}/s")
    _show_sweep(store.throughput)
    _show_sweep(store.small)
    for loop in store.open_loops:
        print(
            f"\nopen loop, {loop.per_second:,.0f} arrivals/s ({loop.share:.0%} of the knee), "
            f"{human_size(loop.bytes)}: p50 {loop.p50_ms:.2f} ms, p95 {loop.p95_ms:.2f} ms, "
            f"p99 {loop.p99_ms:.2f} ms"
        )
    if disk is not None:
        print(
            f"\ndisk of the cache: writes {human_size(disk.write_bytes_per_second)}/s with fsync; cold reads:"
        )
        for one in disk.latencies:
            print(
                f"  {human_size(one.bytes):<22}{one.p50_ms:>8.2f} ms{one.p95_ms:>8.2f} ms"
                f"{one.p99_ms:>8.2f} ms"
            )
        _show_sweep(disk.throughput)
    if rates is not None:
        unit = (
            f"{rates.decompress_bytes_per_second / 1e6:,.0f} MB/s"
            if rates.decompress_bytes_per_second
            else "-"
        )
        print(
            f"\none core: decompresses {unit} ({rates.codec}); "
            f"makes {1 / rates.seconds_per_sample:,.0f} samples/s"
        )
        print(
            f"  from memory, {1 / rates.cold_seconds_per_sample:,.0f} from the store; one process at most "
            f"{1 / rates.serial_seconds_per_sample:,.0f}; a request has {human_size(rates.range_bytes)}"
        )
    for text in profile.cut:
        print(f"cut: {text}")


def _show_sweep(sweep: Sweep | None) -> None:
    from shardstream.format.sizes import human_size

    if sweep is None:
        return
    print(f"\nclosed loop, {human_size(sweep.bytes)}: concurrency {sweep.knee} is the knee")
    for level in sweep.levels:
        mark = "  <" if level.concurrency == sweep.knee else ""
        print(
            f"  {level.concurrency:>4}  {level.per_second:>10,.0f} requests/s"
            f"  {human_size(level.bytes_per_second):>11}/s"
            f"  p50 {level.p50_ms:>8.2f} ms  p99 {level.p99_ms:>8.2f} ms{mark}"
        )
