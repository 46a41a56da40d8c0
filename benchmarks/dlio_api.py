"""DLIO's parts that these benchmarks use, imported as they need it.

DLIO imports TensorFlow for its profiler, whatever the framework of a workload is. TensorFlow gets an empty
stand-in: a PyTorch workload uses nothing of it.

DLIO traces each call by default. Its own loader makes more of these calls than ours: it runs without traces.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types

os.environ["DFTRACER_ENABLE"] = "0"
if importlib.util.find_spec("tensorflow") is None:
    sys.modules["tensorflow"] = types.ModuleType("tensorflow")

from dlio_benchmark.main import DLIOBenchmark
from dlio_benchmark.utils.utility import DLIOMPI
from omegaconf import OmegaConf

__all__ = ["DLIOMPI", "DLIOBenchmark", "OmegaConf"]
