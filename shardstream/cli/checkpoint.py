"""shardstream checkpoint"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shardstream.cli import options
from shardstream.cli.screen import say, table
from shardstream.errors import OptionError, StateError
from shardstream.progress import shown

if TYPE_CHECKING:
    from shardstream.checkpoint.retention import Run


_TAKES = {
    "list": set[str](), "show": {"--step"}, "verify": {"--step", "--all"}, "prune": {"--keep"},
    "export": {"DEST", "--step", "--module", "--file-size"}, "upload": {"--local"},
}  # fmt: skip


def checkpoint(
    url: Annotated[str, typer.Argument(help="The folder of the checkpoints, as ss.Checkpoints has it.")],
    action: Annotated[
        Literal["list", "show", "verify", "export", "prune", "upload"], typer.Argument(help="What to do.")
    ] = "list",
    dest: Annotated[
        str | None, typer.Argument(metavar="[DEST]", help="export: the folder or URL to write to.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Which step; the newest by default.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="verify: all steps.")] = False,
    module: Annotated[
        str | None, typer.Option(help="export: the name of the module in the state; model by default.")
    ] = None,
    file_size: Annotated[str | None, typer.Option(help="export: bytes of a file; 2GiB by default.")] = None,
    keep: Annotated[int | None, typer.Option(help="prune: how many checkpoints stay.")] = None,
    local: Annotated[str | None, typer.Option(help="upload: the folder that was given as local=.")] = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """List checkpoints, show what is in one, verify or export it, or delete old ones. Torch is not needed.

    verify reads every byte; exit code 1: damaged, with a list of files and tensors. export writes a module as
    safetensors files with an index, as transformers and vLLM load them; shards are joined. prune also deletes
    attempts that were never committed and have had no new object for 24 hours. upload sends what a job that
    was killed has left whole on the local disk of this machine, and commits it once the parts of all machines
    are there; exit code 1: some are missing.
    """
    from shardstream.checkpoint.retention import Run

    given = {
        "DEST": dest, "--step": step, "--all": everything or None, "--module": module,
        "--file-size": file_size, "--keep": keep, "--local": local,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and name not in _TAKES[action]:
            takers = " or ".join(each for each, names in _TAKES.items() if name in names)
            raise OptionError(f"{name} is for {takers}, and not for {action}")
    run = Run(url, options.storage_options(storage_option))
    if action == "list":
        _list(run, json)
    elif action == "show":
        _show(run, step, json)
    elif action == "verify":
        if step is not None and everything:
            raise OptionError("--step and --all exclude each other")
        _verify(run, step, everything, json)
    elif action == "export":
        if dest is None:
            raise OptionError("DEST is missing: shardstream checkpoint URL export DEST")
        _export(run, step, dest, module or "model", file_size or "2GiB", json)
    elif action == "upload":
        if local is None:
            raise OptionError("--local is missing: shardstream checkpoint URL upload --local /nvme/ckpt")
        _upload(run, local, json)
    else:
        if keep is None:
            raise OptionError("--keep is missing: shardstream checkpoint URL prune --keep 3")
        _prune(run, keep, json)


def _list(run: Run, json: bool) -> None:
    from shardstream.checkpoint.inspection import listed
    from shardstream.checkpoint.layout import MANIFEST
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size

    found = listed(run)
    if json:
        options.print_json([each._asdict() for each in found])
        return
    rows = []
    for each in found:
        numbers = (each.created, human_size(each.bytes), f"{each.tensors:,}", f"{each.world:,}")
        known = ("", "", "", "") if each.damage else numbers
        rows.append((str(each.step), *known, each.folder, each.damage))
    if not found:
        say(f"no checkpoint at {run.open().url}: a step-N/{MANIFEST} was looked for, which commits one")
        return
    head = ("step", "created", "bytes", "tensors", "ranks", "folder", "damage")
    wide = len(head) if any(each.damage for each in found) else len(head) - 1
    table(head[:wide], [row[:wide] for row in rows], "><>>><<"[:wide])
    say(counted(len(found), "checkpoint"))


def _show(run: Run, step: int | None, json: bool) -> None:
    from shardstream.checkpoint.inspection import described, manifest_at
    from shardstream.checkpoint.values import shown as shortened
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size

    found = described(manifest_at(run, step))
    if json:
        options.print_json(found)
        return
    ranks = counted(found["world"], "rank")
    say(f"step {found['step']}, committed {found['created']} by {found['tool']}, {ranks}")
    say(f"  {human_size(found['bytes'])} in {counted(found['files'], 'file')}, attempt {found['attempt']}")
    for name, counts in found["tensors"].items():
        rest = {key: value for key, value in counts.items() if key not in ("tensors", "bytes", "sharded")}
        kinds = ", ".join(f"{value:,} {key}" for key, value in rest.items())
        sharded = f", {counts['sharded']:,} of them sharded" if counts["sharded"] else ""
        what = f"{counted(counts['tensors'], 'tensor')}, {human_size(counts['bytes'])}"
        say(f"  {name}: {what} ({kinds}){sharded}")
    for name, place in found["data"].items():
        told = ", ".join(
            f"{key} {place[key]}" for key in ("epoch", "position", "fingerprint") if key in place
        )
        say(f"  {name}: {told or shortened(place)}")
    for name, value in found["values"].items():
        if name not in found["data"]:
            text = shortened(value)
            say(f"  {name}: {text if len(text) <= 100 else text[:97] + '...'}")


def _verify(run: Run, step: int | None, everything: bool, json: bool) -> None:
    from shardstream.checkpoint.commit import committed_steps
    from shardstream.checkpoint.inspection import manifest_at, problems
    from shardstream.format.shown import counted

    steps = (
        committed_steps(run.open()) if everything else [manifest_at(run, None).step if step is None else step]
    )
    if not steps:
        raise StateError(f"{run.open().url}: no checkpoint is committed here")
    found = {}
    for each in steps:
        with shown(f"verifying step {each}", quiet=json) as progress:
            found[each] = problems(run, each, progress)
    damaged = [text for texts in found.values() for text in texts]
    if json:
        options.print_json({"sound": not damaged, "steps": found})
    else:
        for text in damaged:
            say(text)
        for each, texts in found.items():
            say(f"step {each}: {counted(len(texts), 'problem') if texts else 'sound'}")
    if damaged:
        raise typer.Exit(1)


def _export(run: Run, step: int | None, dest: str, module: str, file_size: str, json: bool) -> None:
    from shardstream.checkpoint.export import export
    from shardstream.checkpoint.files import Files
    from shardstream.checkpoint.inspection import manifest_at
    from shardstream.checkpoint.layout import step_folder
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size, parse_size
    from shardstream.storage.store import Store

    manifest = manifest_at(run, step)
    files = Files(run.open(step_folder(manifest.step)), manifest)
    target = Store.open(dest, run.options)
    with shown("exporting", quiet=json) as progress:
        done = export(files, target, module, parse_size(file_size, "--file-size"), progress)
    if json:
        options.print_json({"step": manifest.step, **done._asdict()})
        return
    what = (
        f"{counted(done.tensors, 'tensor')}, {human_size(done.bytes)}, in {counted(len(done.files), 'file')}"
    )
    say(f"step {manifest.step}: {what} at {target.url}")


def _prune(run: Run, keep: int, json: bool) -> None:
    from shardstream.checkpoint.retention import prune, sweep
    from shardstream.format.shown import counted

    if keep < 1:
        raise OptionError(f"--keep {keep} must be 1 or more")
    found: dict[str, Any] = {"steps": prune(run, keep), "attempts": sweep(run)}
    if json:
        options.print_json(found)
        return
    say(f"deleted {counted(len(found['steps']), 'checkpoint')} {found['steps'] or ''}".rstrip())
    for attempt in found["attempts"]:
        say(f"deleted {attempt}, which was never committed")


def _upload(run: Run, local: str, json: bool) -> None:
    from shardstream.checkpoint.commit import conditional_put
    from shardstream.checkpoint.ranks import Ranks
    from shardstream.checkpoint.recovery import recover
    from shardstream.checkpoint.retention import Run, local_run
    from shardstream.storage.store import absolute

    run = Run(absolute(run.url), run.options)
    found = recover(run, local_run(local, run), Ranks(), lambda: conditional_put(run.open()), partly=True)
    if json:
        options.print_json([each._asdict() for each in found])
    else:
        for each in found:
            say(f"step {each.step}{' is committed' if each.committed else f': {each.reason}'}")
        if not found:
            say("nothing is left to upload")
    if not all(each.committed for each in found):
        raise typer.Exit(1)
