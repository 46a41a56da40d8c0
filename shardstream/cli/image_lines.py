"""What `pack` and `info` say of packed images: their classes, and what is odd about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["image_lines"]

_SHOWN = 10  # classes


def image_lines(record: Mapping[str, Any]) -> list[str]:
    """Lines for people.

    Args:
        record: The provenance of a pack.
    """
    lines = []
    if classes := record.get("classes"):
        counts = record.get("class_counts", [])
        pairs = [f"{name} {count:,}" for name, count in zip(classes, counts, strict=False)] or classes
        more = f", and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
        lines.append(f"{len(classes):,} classes, {record.get('labels')}: {', '.join(pairs[:_SHOWN])}{more}")
    elif "labels" in record:
        lines.append(f"labels {record['labels']}")
    found = record.get("images", {})
    if turned := found.get("turned"):
        lines.append(f"images with an EXIF orientation, which are turned when they are decoded: {turned:,}")
    if misnamed := found.get("misnamed"):
        lines.append(f"images of another kind than their names say, whose content counts: {misnamed:,}")
    return lines
