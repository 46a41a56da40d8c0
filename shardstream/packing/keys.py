"""Default keys: what names a sample if the user does not say it.

Ids of rows often begin again in each file. So with several files the path of the file is a part of each key.
Whether it is depends on the input alone, never on a shuffle or on workers, and nobody has to remember keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from shardstream.errors import OptionError
from shardstream.format.manifest import Manifest
from shardstream.packing.sources import Source, Task, source_class

# id: a row's own name. path/id: the path of its file before it. field: the value of --key. number: its place.
Rule = Literal["id", "path/id", "field", "number"]
_ITS_NAME = "__key__, key or id; without these the file and the place of the row"


def key_rule(source: Source, key: str | None, files: int, before: Manifest | None) -> Rule | None:
    """What becomes the keys; None if the source itself says it.

    Args:
        source: The source.
        key: The option `key` of `pack`.
        files: How many files there are.
        before: The manifest of the dataset that is appended to, or None. Its rule goes on.
    """
    if "key" not in source.takes or (key is None and getattr(source, "names_samples", False)):
        return None
    if key is not None:
        return "number" if key == "none" else "field"
    provenance = {} if before is None else before.provenance
    for record in (provenance, *provenance.get("appended", [])):
        rule: Rule | None = record.get("keys")
        if rule is None and record.get("options", {}).get("format") in ("jsonl", "webdataset"):
            return "id"  # version 0.1 had no other rule, and did not record it
        if rule in ("id", "path/id"):
            return rule
    return "path/id" if files > 1 else "id"


def with_prefixes(tasks: Iterable[Task], rule: Rule | None) -> Iterable[Task]:
    """The tasks, whose parts of files say what stands before a row's own name."""
    if rule != "path/id":
        return tasks
    return (
        Task(task.number, tuple(span._replace(prefix=f"{span.key_base}/") for span in task.files))
        for task in tasks
    )


def described(record: Mapping[str, Any]) -> str:
    """What is taken for the keys, for people; "" if the format does not say it.

    Args:
        record: The provenance of a pack.
    """
    try:
        own = str(getattr(source_class(record["options"]["format"]), "keys", ""))
    except OptionError:  # a Source of the user, or functions of Python
        own = ""
    match record.get("keys"):
        case "id":
            return own or _ITS_NAME
        case "path/id":
            return f"the path of the file without extensions / {own or _ITS_NAME}"
        case "field":
            return f"the value of {record['options']['key']}, as it is"
        case "number":
            return "the path of the file without extensions, and the place of the row"
    return own
