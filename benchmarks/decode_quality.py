"""How far our pixels are from Pillow's: python -m benchmarks.decode_quality FOLDER

Pillow decodes each JPEG below FOLDER whole, and resizes the same crop with its antialiased filter.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from shardstream.decode import images, pixels


def main(folder: str, count: int = 300) -> None:
    """Print the PSNR in dB by the scale at which JPEGs were decoded."""
    paths = sorted(Path(folder).glob("**/*.jpg"))
    data = [path.read_bytes() for path in paths[:: max(1, len(paths) // count)]]
    transform = images.Train(224, dtype="uint8", layout="NHWC", flip=0)
    random = transform.random(0, np.arange(len(data)))
    made = transform.decode({"jpg": data}, ["-"] * len(data), ["-"] * len(data), random)["image"].numpy()
    sizes = np.array([pixels.header(one)[:2] for one in data], np.int64)
    found: dict[int, list[float]] = {}
    for one, how, (height, width), ours in zip(
        data, transform.cuts(sizes, random)[0], sizes.tolist(), made, strict=True
    ):
        left, top, right, bottom = (edge * how.scale for edge in (how.left, how.top, how.right, how.bottom))
        box = (left, top, min(right, width), min(bottom, height))
        theirs = Image.open(io.BytesIO(one)).convert("RGB")
        wanted = np.asarray(theirs.resize((224, 224), Image.Resampling.BILINEAR, box=box), np.float64)
        error = max(1e-4, float(np.mean((wanted - ours) ** 2)))
        found.setdefault(how.scale, []).append(10 * np.log10(255**2 / error))
    print("| decoded at | images | PSNR: median | 5 % are below | least |\n| --- | --- | --- | --- | --- |")
    everything = [value for values in found.values() for value in values]
    table = {f"1/{scale}": found[scale] for scale in sorted(found)} | {"all": everything}
    for name, rows in table.items():
        low = np.percentile(rows, 5)
        print(f"| {name} | {len(rows)} | {np.median(rows):.1f} | {low:.1f} | {min(rows):.1f} |")


if __name__ == "__main__":
    main(sys.argv[1])
