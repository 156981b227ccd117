"""Gold against the dollar: two natural bursts that a model of an ordinary day has to see at once.

Train on 2014-05-01, thresholds from its last part alone; 05-02 and 05-07 go through Kafka.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.processes import cluster
from benchmarks.real_data.report import spread, table
from benchmarks.real_data.running import Desk, Event, compare, tapewatch, watch
from detector.readers import PUBLISHER
from detector.ticks import NS_PER_S, instrument_key, stable_instrument_id

TITLE: Final = "XAUUSD: two natural bursts"
SEEDS: Final = (0, 1, 2)
BURSTS: Final = (datetime(2014, 5, 2, 12, 30, tzinfo=UTC), datetime(2014, 5, 7, 14, tzinfo=UTC))
DAYS: Final = ("20140502", "20140507")
AROUND_H: Final = 1
"""Hours after a burst's hour began that count as the burst's own, not as quiet."""

HOUR_NS: Final = 3600 * NS_PER_S


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:
    """Run the scenario; the facts for JSON."""
    train = data / "lean" / "xauusd" / "20140501_quote.zip"
    days = [data / "lean" / "xauusd" / f"{day}_quote.zip" for day in DAYS]
    ticks = [argument for day in days for argument in ("--ticks", day)]
    models = {seed: folder / f"model{seed}" for seed in SEEDS}
    runs: list[dict[str, Any]] = []
    offline: dict[int, list[Event]] = {}
    for seed, model in models.items():
        trained = tapewatch(
            *("train", "--ticks", train, "--out", model, "--seed", seed, "--overwrite"),
            *("--train-fraction", 0.7, "--calibration-fraction", 0.3),
        )
        lines, scores = folder / f"events{seed}.jsonl", folder / "scores.parquet"
        scored = tapewatch(
            *("score", *ticks, "--model", model, "--out", scores),
            *("--events", lines),
        )
        offline[seed] = [orjson.loads(line) for line in lines.read_bytes().splitlines()]
        runs.append(
            {
                "seed": seed,
                "threshold": trained["manifest"]["thresholds"],
                "alarm_share": scored["anomalies"] / scored["ready"],
                "rows": scored["rows"],
                "highest_in_minute": _highest(scores),
                **judge(offline[seed]),
            }
        )
    key = instrument_key(PUBLISHER["lean_forex"], stable_instrument_id("XAUUSD"))
    with cluster(bootstrap) as kafka:
        desk = Desk(folder, kafka, models[SEEDS[0]], symbols={key: "XAUUSD"})
        seen = watch(desk, lambda: tapewatch("replay", *ticks, "-c", desk.config, "--speed", "max"))
    return {
        "runs": runs,
        "kafka": {
            "ticks": seen.metric("tapewatch_ticks_total"),
            "exit_code": seen.exit_code,
            "agreement": asdict(compare(seen.events, offline[SEEDS[0]])),
            **judge(seen.events),
        },
    }


def judge(events: list[Event]) -> dict[str, Any]:
    """When the bursts were seen, and how many episodes the quiet hours had."""
    opens = np.array(sorted(e["ts_event"] for e in events if e["phase"] == "open"), np.int64)
    closes = {e["episode_id"]: e["summary"]["ts_end"] for e in events if e["phase"] == "close"}
    bursts = []
    for at in BURSTS:
        start = int(at.timestamp()) * NS_PER_S
        later = opens[opens >= start]
        running = [
            e
            for e in events
            if e["phase"] == "open"
            and e["ts_event"] < start <= closes.get(e["episode_id"], 2**63 - 1)
        ]
        bursts.append(
            {
                "delay_s": float(later[0] - start) / NS_PER_S if len(later) else None,
                "open_before": len(running),
                "opens_in_hour": int(np.count_nonzero(later < start + HOUR_NS)),
                "peak_severity": max(
                    (
                        e["severity_value"]
                        for e in events
                        if start <= e["ts_event"] < start + 60 * NS_PER_S
                    ),
                    default=0.0,
                ),
            }
        )
    hourly = {
        f"{day[:4]}-{day[4:6]}-{day[6:]}": [
            int(np.count_nonzero((opens >= start) & (opens < start + HOUR_NS)))
            for start in _hours(day)
        ]
        for day in DAYS
    }
    quiet = [
        n
        for at, counts in zip(BURSTS, hourly.values(), strict=True)
        for hour, n in enumerate(counts)
        if not at.hour <= hour <= at.hour + AROUND_H
    ]
    return {
        "bursts": bursts,
        "opens": len(opens),
        "opens_by_hour": hourly,
        "quiet_opens_per_hour": float(np.mean(quiet)),
        "quiet_median_per_hour": float(np.median(quiet)),
        "quiet_hours": len(quiet),
    }


def _highest(path: Path) -> list[float]:
    """Highest score within a minute of each burst, as a share of the threshold."""
    rows = pq.read_table(path)
    ts = rows["ts_event"].cast(pa.int64()).to_numpy()
    share = rows["score"].to_numpy() / rows["threshold"].to_numpy()
    starts = [int(at.timestamp()) * NS_PER_S for at in BURSTS]
    return [
        float(np.nanmax(share[(ts >= start) & (ts < start + 60 * NS_PER_S)])) for start in starts
    ]


def _hours(day: str) -> list[int]:
    midnight = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
    return [int(midnight.timestamp()) * NS_PER_S + hour * HOUR_NS for hour in range(24)]


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    runs, kafka = facts["runs"], facts["kafka"]
    rows = [
        (
            str(run["seed"]),
            f"{run['threshold']['pooled']:.1f}",
            *(
                f"{_delay(burst)}; {highest:.2f}"
                for burst, highest in zip(run["bursts"], run["highest_in_minute"], strict=True)
            ),
            f"{run['quiet_opens_per_hour']:.2f}",
            f"{run['quiet_median_per_hour']:.0f}",
            f"{100 * run['alarm_share']:.2f} %",
        )
        for run in runs
    ]
    quiet = [run["quiet_opens_per_hour"] for run in runs]
    hourly = "\n".join(
        f"- {day}: {' '.join(map(str, counts))}" for day, counts in kafka["opens_by_hour"].items()
    )
    return f"""
Trained on 2014-05-01 (70 %), threshold at quantile {
        runs[0]["threshold"]["quantile"]
    } of the rest of
that day ({runs[0]["threshold"]["calibration_rows"]:,} quotes). Replayed: 05-02 and 05-07,
{runs[0]["rows"]:,} quotes. On the 2nd at 12:30 and on the 7th at 14:00 (UTC) something happened.
Quiet hours are the {runs[0]["quiet_hours"]} others: without the hour of a burst and the one after.
Stated for each burst: when the next episode opened, and the highest score within a minute as a
multiple of the threshold.

{
        table(
            (
                "seed",
                "threshold",
                "opens after 12:30 on the 2nd",
                "after 14:00 on the 7th",
                "episodes per quiet hour",
                "median",
                "ticks above the threshold",
            ),
            rows,
        )
    }

Episodes per quiet hour over the seeds: {spread(quiet, ".2f")}. Seed {runs[0]["seed"]} went through
Kafka and the daemon: {kafka["ticks"]:,.0f} ticks, {kafka["agreement"]["got"]} events,
{kafka["agreement"]["identical"]} of them equal to the offline ones in every field, opened
{_delay(kafka["bursts"][0])} and {_delay(kafka["bursts"][1])} after the times above. Episodes opened
in each hour from 00:00:

{hourly}

These days are not held out: an early score, of both reconstruction errors only, opened two to four
minutes after 12:30 on the 2nd, because a burst lies along what the autoencoders rebuild well, and
clipping hides the rest. The tails of the score are there for that. A burst on another day is yet to
be tried.
""".strip()


def _delay(burst: dict[str, Any]) -> str:
    if burst["delay_s"] is None:
        return "never"
    before = ", another was open" if burst["open_before"] else ""
    return f"{burst['delay_s']:.1f} s{before}"
