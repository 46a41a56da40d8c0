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
    classes, counts, found = (record.get(name) for name in ("classes", "class_counts", "images"))
    if isinstance(classes, list) and classes:  # other programs may have written anything
        pairs = [f"{name} {count:,}" for name, count in zip(classes, _whole(counts), strict=False)]
        pairs = pairs or [*map(str, classes)]
        more = f", and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
        lines.append(f"{len(classes):,} classes, {record.get('labels')}: {', '.join(pairs[:_SHOWN])}{more}")
    elif "labels" in record:
        lines.append(f"labels {record['labels']}")
    turned, misnamed = (
        _whole([found.get("turned"), found.get("misnamed")]) if isinstance(found, dict) else (0, 0)
    )
    if turned:
        lines.append(f"images with an EXIF orientation, which are turned when they are decoded: {turned:,}")
    if misnamed:
        lines.append(f"images of another kind than their names say, whose content counts: {misnamed:,}")
    return lines


def _whole(values: Any) -> list[int]:
    """The values as numbers; 0 for what is none."""
    return [value if isinstance(value, int) else 0 for value in values] if isinstance(values, list) else []
