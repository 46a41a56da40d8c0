"""The memory that one large image takes, beside the process and the pixels that Pillow holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CODE = """
import sys
import numpy as np
from shardstream.decode import images, pixels

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) >> 10

def work(data):
    if sys.argv[1] == "stored":
        return pixels.stored(data)
    how = images.Train(224) if sys.argv[1] == "train" else images.Evaluate(224)
    return how.decode({"png": [data]}, ["k"], ["s"], how.random(0, np.arange(1)))

small, large = (open(name, "rb").read() for name in sys.argv[2:])
work(small)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
kept = work(large)
print(status("VmHWM") - before, status("VmRSS") - before)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("large")
    found = {}
    for mode in ("RGB", "L"):
        for name, size in (("small", (90, 60)), ("large", (9000, 6700))):
            found[mode + name] = folder / f"{mode}-{name}.png"
            Image.new(mode, size, 7 if mode == "L" else (9, 8, 7)).save(found[mode + name], compress_level=1)
    return found


@pytest.mark.parametrize(
    ("how", "mode", "peak", "after"),
    [("train", "RGB", 275, 40), ("evaluate", "RGB", 275, 40), ("stored", "L", 160, 100)],
)
def test_sixty_megapixels(files, how, mode, peak, after):
    """MiB: the pixels of Pillow are 230 in colour and 58 in grey, and the array of stored values 58."""
    args = [how, str(files[mode + "small"]), str(files[mode + "large"])]
    done = subprocess.run([sys.executable, "-c", CODE, *args], capture_output=True, text=True, check=True)
    most, left = map(int, done.stdout.split())
    assert most < peak
    assert left < after
