"""A simulation of jobs of up to 8,192 ranks, which plan by the package's own code.

    python -m benchmarks.simulate validate [--rounds 2] [--from 0] [--to 14]
    python -m benchmarks.simulate scale [NAME]...
    python -m benchmarks.simulate again | report

`validate` compares it with real processes behind a proxy; 14 settings take 12 minutes on a quiet machine of 2
cores. `scale` runs the cases of `simulate_scale`, by default all of them; those of 8,192 ranks take some
minutes and 10 GB each. Both add to the JSON files in DIR (--out). `again` simulates the settings anew, from
what `validate` has probed. `report` makes a Markdown file and a picture of what is there.

What a rank does is decided by the package's own code: `AccessPlan`, `FramesAhead`, `Planner`, `MemoryTier`,
`FramesInMemory`, the room that the read engine gives to units (`_Flow`), `HedgePolicy`, `AdaptiveLimit` and
`pause_after`. Threads, the network, the store and the cores are simulated: see the modules `simulate_*`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["main"]


def _load(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}


def _save(path: Path, found: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("validate", "again", "scale", "report"))
    parser.add_argument("names", nargs="*", help="of cases of scale")
    parser.add_argument("--rounds", type=int, default=2, help="of real processes")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each probe")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first setting")
    parser.add_argument("--to", dest="last", type=int, default=None, help="the setting before which to end")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "simulate")
    chosen = parser.parse_args()
    if chosen.what == "validate":
        from benchmarks.simulate_validate import SETTINGS, validate

        path, key = chosen.out / "validation.json", f"from {chosen.first}"
        for found in validate(chosen.rounds, chosen.seconds, SETTINGS[chosen.first : chosen.last]):
            _save(path, _load(path) | {key: found})
    elif chosen.what == "again":
        from benchmarks.simulate_validate import again

        path = chosen.out / "validation.json"
        _save(path, again(_load(path)))
    elif chosen.what == "scale":
        from benchmarks.simulate_scale import cases, run

        path = chosen.out / "scale.json"
        for name in chosen.names or cases():
            row = run(name)
            print(name, json.dumps(row), flush=True)
            _save(path, _load(path) | {name: row})
    else:
        from benchmarks.simulate_report import report

        report(chosen.out, _load(chosen.out / "validation.json"), _load(chosen.out / "scale.json"))


if __name__ == "__main__":
    main()
