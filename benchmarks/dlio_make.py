"""The data of one workload: DLIO generates its files, then the same samples are packed.

python -m benchmarks.dlio_make '{"model": ...}'
"""

from __future__ import annotations

import json
import sys

from benchmarks.dlio_api import DLIOMPI, DLIOBenchmark, OmegaConf
from benchmarks.dlio_loader import pack
from benchmarks.page_cache import files_below


def main() -> None:
    config = json.loads(sys.argv[1])
    DLIOMPI.get_instance().initialize()
    benchmark = DLIOBenchmark(OmegaConf.create(config))
    benchmark.data_generator.generate()
    folder = config["dataset"]["data_folder"]
    pack(sorted(files_below(f"{folder}/train")), f"{folder}/shards")
    DLIOMPI.get_instance().finalize()


if __name__ == "__main__":
    main()
