"""Write the sample tape of deploy/compose.yaml: a clean part to train on, one with anomalies.

The demo's synthetic market of twenty instruments, in two Parquet files: `train.parquet` and
`live.parquet`, which goes on where the other ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from detector.readers import write_parquet
from detector.ticks import TickBatch
from training.demo.scenario import LEAST_LIVE_S, Scenario


def named(batches: Iterator[TickBatch], scenario: Scenario) -> Iterator[TickBatch]:
    """Give batches the names of the market's instruments."""
    for batch in batches:
        yield TickBatch.from_ticks(batch.ticks, symbols=scenario.market.symbols)


def main() -> None:
    """Write both files and say what they hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for both files")
    parser.add_argument("--live-seconds", type=int, default=3600, help="length of the live part")
    parser.add_argument("--seed", type=int, default=7, help="makes the market repeatable")
    given = parser.parse_args()
    if given.live_seconds < LEAST_LIVE_S:
        parser.error(f"--live-seconds {given.live_seconds}: at least {LEAST_LIVE_S} are needed")
    scenario = Scenario(seed=given.seed, live_s=given.live_seconds)
    given.out.mkdir(parents=True, exist_ok=True)
    parts = {"train": scenario.training_ticks(), "live": scenario.live_ticks()}
    for name, batches in parts.items():
        path = given.out / f"{name}.parquet"
        write_parquet(path, named(batches, scenario))
        print(f"{path}: {path.stat().st_size:,} bytes")
    print(f"{len(scenario.plants)} anomalies in the live part")


if __name__ == "__main__":
    main()
