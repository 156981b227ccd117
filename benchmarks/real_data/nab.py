"""NAB's open series as feature vectors of one column, end to end: it runs, and what it finds."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.processes import cluster
from benchmarks.real_data.report import spread, table
from benchmarks.real_data.running import (
    Desk,
    Expected,
    compare,
    expect,
    read_all,
    tapewatch,
    watch,
)
from detector.readers import PUBLISHER
from detector.ticks import NS_PER_S, instrument_key, stable_instrument_id

TITLE: Final = "NAB: series through the `vector` format"
SEEDS: Final = (0, 1, 2)
PARTITIONS: Final = 4
FORMAT: Final = '[input]\nformat = "vector"\n'


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:
    """Run the scenario; the facts for JSON."""
    source = data / "nab" / "data"
    files = sorted(source.glob("*/*.csv"))
    windows = orjson.loads((data / "nab" / "combined_windows.json").read_bytes())
    truth = {_key(path): _windows(windows[str(path.relative_to(source))]) for path in files}
    halves = {_key(path): _first_half(path, folder / "first") for path in files}
    firsts = [folder / "first" / path.name for path in files]
    models = {seed: folder / f"model{seed}" for seed in SEEDS}
    for seed, model in models.items():
        tapewatch(
            *("train", *_ticks(firsts), "--columns", "value", "--out", model, "--overwrite"),
            *("--train-fraction", 0.7, "--calibration-fraction", 0.3, "--seed", seed),
        )
    runs = []
    with cluster(bootstrap) as kafka:
        names = {_key(path): path.stem for path in files}
        desk = Desk(
            folder, kafka, models[SEEDS[0]], partitions=PARTITIONS, symbols=names, more=FORMAT
        )
        seen = watch(
            desk,
            lambda: tapewatch(
                *("replay", *_ticks(files), "-c", desk.config, "--speed", "max"),
                *("--message-format", "vector", "--columns", "value"),
            ),
        )
        records = read_all(desk, desk.ticks, PARTITIONS)
        for seed, model in models.items():
            offline = expect(
                Desk(folder, kafka, model, partitions=PARTITIONS, symbols=names), "vector", records
            )
            if seed == SEEDS[0]:
                agreement = compare(seen.events, offline.events)
            runs.append({"seed": seed, **_judge(offline, halves, truth)})
    return {
        "series": len(files),
        "windows": sum(len(part) for part in truth.values()),
        "ticks": seen.metric("tapewatch_ticks_total"),
        "scored": seen.metric("tapewatch_ticks_scored_total"),
        "dropped": seen.by("tapewatch_ticks_dropped_total", "reason"),
        "published": seen.published,
        "agreement": asdict(agreement),
        "exit_code": seen.exit_code,
        "runs": runs,
    }


def _key(path: Path) -> int:
    return instrument_key(PUBLISHER["vectors"], stable_instrument_id(path.stem))


def _ticks(files: list[Path]) -> list[object]:
    return [argument for path in files for argument in ("--ticks", path)]


def _windows(pairs: list[list[str]]) -> list[tuple[int, int]]:
    return [(_ns(first), _ns(last)) for first, last in pairs]


def _ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * NS_PER_S


def _first_half(path: Path, folder: Path) -> int:
    """Write the first half of a series' rows under the same name; time at which it ends, in ns."""
    folder.mkdir(exist_ok=True)
    head, *rows = path.read_text().splitlines()
    middle = len(rows) // 2
    (folder / path.name).write_text("\n".join([head, *rows[:middle]]) + "\n")
    return _ns(rows[middle].split(",")[0])


def _judge(
    offline: Expected, halves: dict[int, int], truth: dict[int, list[tuple[int, int]]]
) -> dict[str, Any]:
    """How scores of the second halves rank ticks in windows, and which windows have an alarm."""
    outcomes = [outcome for part in offline.outcomes.values() for outcome in part]
    key, ts, ready = (
        np.concatenate([getattr(o.blocks[0], name) for o in outcomes])
        for name in ("keys", "ts", "ready")
    )
    score = np.concatenate([o.scores[0].score for o in outcomes])
    alarm = np.concatenate([o.scores[0].anomaly for o in outcomes])
    ordinary = 0
    false_alarms = 0
    scores: list[npt.NDArray[np.float64]] = []
    labels: list[npt.NDArray[np.bool_]] = []
    areas: list[float] = []
    found = windows = 0
    for series, middle in halves.items():
        mine = (key == series) & ready & (ts >= middle)
        inside = np.zeros(int(mine.sum()), np.bool_)
        at, hit = ts[mine], alarm[mine]
        for first, last in truth[series]:
            within = (at >= first) & (at <= last)
            inside |= within
            if first >= middle:
                windows += 1
                found += bool(hit[within].any())
        ordinary += int(np.count_nonzero(~inside))
        false_alarms += int(np.count_nonzero(hit & ~inside))
        scores.append(score[mine])
        labels.append(inside)
        if 0 < inside.sum() < len(inside):
            areas.append(float(roc_auc_score(inside, score[mine])))
    every, truths = np.concatenate(scores), np.concatenate(labels)
    return {
        "finite": bool(np.isfinite(score[ready]).all()),
        "test_rows": len(every),
        "rows_in_windows": int(truths.sum()),
        "auroc_pooled": float(roc_auc_score(truths, every)),
        "ap_pooled": float(average_precision_score(truths, every)),
        "auroc_mean_of_series": float(np.mean(areas)),
        "series_with_both": len(areas),
        "windows": windows,
        "windows_found": found,
        "ordinary_rows": ordinary,
        "false_alarm_share": false_alarms / ordinary,
    }


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    runs, agreement = facts["runs"], facts["agreement"]
    one = runs[0]
    base = one["rows_in_windows"] / one["test_rows"]

    def over(name: str, form: str = ".3f") -> str:
        return spread([float(run[name]) for run in runs], form)

    dropped = ", ".join(f"{n} {why}" for why, n in facts["dropped"].items()) or "none"
    return f"""
{facts["series"]} series of one column (NAB without realKnownCause) with {facts["windows"]} labelled
windows. One model of all, trained on the first half of each series as it is, windows included and
labels unseen (70 % of it, the rest for the threshold, quantile 0.999). All series are then replayed
from their beginning, merged by time, as `vector` messages over {PARTITIONS} partitions to the
daemon: {facts["ticks"]:,.0f} ticks, {facts["scored"]:,.0f} scored, dropped: {dropped}; the others
warm up. All scores are finite: {"yes" if all(run["finite"] for run in runs) else "no"}. Events:
{agreement["got"]:,}, of which {agreement["identical"]:,} equal those computed without Kafka from
the same messages. Judged on the second halves ({one["test_rows"]:,} ticks, {100 * base:.1f} % of
them in one of {one["windows"]} windows that begin there), mean ± standard deviation over
{len(runs)} seeds of the model:

{
        table(
            ("figure", "value"),
            (
                ("AUROC of a tick's score, all series together", over("auroc_pooled")),
                (f"average precision, same (chance: {base:.3f})", over("ap_pooled")),
                (
                    f"AUROC within a series, mean of {one['series_with_both']}",
                    over("auroc_mean_of_series"),
                ),
                (
                    "windows with at least one alarm",
                    f"{over('windows_found', '.1f')} of {one['windows']}",
                ),
                ("ticks outside of windows alarmed", over("false_alarm_share", ".4f")),
            ),
        )
    }

NAB's windows are about a tenth of a series wide and mostly ordinary inside, so a tick's AUROC says
little about them; NAB's own score, which rewards early detection, is not computed here.
""".strip()
