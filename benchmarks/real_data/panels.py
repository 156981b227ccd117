"""What the detection scenarios share: parts kept on disk, and tables of detectors over seeds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import orjson
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.real_data.report import COMMIT, table
from training.evaluation.baselines import BASELINES, HALF_SPACE
from training.evaluation.half_space import river_available
from training.evaluation.tables import Runs, Table
from training.evaluation.two_stage import TWO_STAGE

WORKERS: Final = 2
FROZEN, ADAPTIVE = "6 an hour, frozen", "6 an hour, adaptive"
SHOWN: Final = (FROZEN, ADAPTIVE)
"""Operating points that tables are made of."""


def names() -> tuple[str, ...]:
    """Baselines that can be run here: all of them, but for river's where it is not installed."""
    return tuple(name for name in BASELINES if name != HALF_SPACE or river_available())


def kept(folder: Path, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a part of a scenario, or take what it gave at this commit in a run that was cut off.

    Only with `--keep` is the folder there for the next run. Parts measured with changes beside the
    commit are never taken again.
    """
    path = folder / COMMIT / f"{name}.json"
    if path.is_file() and not COMMIT.endswith("-dirty"):
        found: dict[str, Any] = orjson.loads(path.read_bytes())
        return found
    facts = run()
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".part")
    staged.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    staged.replace(path)
    print(f"{name} done", flush=True)
    return facts


def at_once(jobs: Sequence[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Run jobs that can be pickled in processes of their own, two at a time, one thread each.

    The longest should come first. Two, because that many fit into the memory of a small machine.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(WORKERS, len(jobs)), context) as workers:
        return list(workers.map(_alone, jobs))


def _alone(job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with threadpool_limits(1):
        return job()


def markdown(found: Table, *, title: bool = True) -> str:
    """Return a table of `training.evaluation.tables` as Markdown."""
    name, head, rows = found
    return (f"{name}:\n\n" if title else "") + table(head, rows)


def slim(runs: Runs) -> list[dict[str, Any]]:
    """Leave out of runs what no page shows, and digits that mean nothing.

    What each instrument's episodes were; budgets of other detectors; types at the rates that no
    table is made of.
    """
    slimmed = []
    for run in runs:
        one = dict(run)
        if "episodes" in one:
            one["episodes"] = {
                point: {
                    key: value
                    for key, value in facts.items()
                    if key != "instruments"
                    and (key != "budget" or run["detector"] == TWO_STAGE)
                    and (key != "types" or point in SHOWN)
                }
                for point, facts in one["episodes"].items()
                if facts
            }
        slimmed.append(_rounded(one))
    return slimmed


def _rounded(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value
