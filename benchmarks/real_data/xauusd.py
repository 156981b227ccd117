"""Gold against the dollar: two natural bursts that a model of an ordinary day has to see at once.

Train on 2014-05-01, thresholds from its last part alone, once for a quantile and once for a budget
of alarms; 05-02 and 05-07 go through Kafka.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.processes import cluster
from benchmarks.real_data.report import spread, table
from benchmarks.real_data.running import Desk, Event, compare, tapewatch, watch
from detector.readers import PUBLISHER, read_ticks
from detector.ticks import NS_PER_S, instrument_key, stable_instrument_id

TITLE: Final = "XAUUSD: two natural bursts"
SEEDS: Final = (0, 1, 2)
BURSTS: Final = (datetime(2014, 5, 2, 12, 30, tzinfo=UTC), datetime(2014, 5, 7, 14, tzinfo=UTC))
DAYS: Final = ("20140502", "20140507")
POLICIES: Final[dict[str, tuple[object, ...]]] = {"quantile": (), "budget": ("--budget", 6)}
"""What the thresholds are asked for; without anything `train` takes its quantile."""
ONSET_BPS: Final = 5.0
MINUTE_NS: Final = 60 * NS_PER_S
PROMPT_S: Final = 10.0
"""An episode has to open within so long of the onset."""
AROUND_H: Final = 1
"""Hours after a burst's hour began that count as the burst's own, not as quiet."""

HOUR_NS: Final = 3600 * NS_PER_S


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:
    """Run the scenario; the facts for JSON."""
    train = data / "lean" / "xauusd" / "20140501_quote.zip"
    days = [data / "lean" / "xauusd" / f"{day}_quote.zip" for day in DAYS]
    ticks = [argument for day in days for argument in ("--ticks", day)]
    onsets = [onset(day, at) for day, at in zip(days, BURSTS, strict=True)]
    runs: list[dict[str, Any]] = []
    offline: dict[str, list[Event]] = {}
    for policy, asked in POLICIES.items():
        for seed in SEEDS:
            name = f"{policy}{seed}"
            trained = tapewatch(
                *("train", "--ticks", train, "--out", folder / name, "--seed", seed, "--overwrite"),
                *("--train-fraction", 0.7, "--calibration-fraction", 0.3, *asked),
            )
            lines, scores = folder / f"{name}.jsonl", folder / "scores.parquet"
            scored = tapewatch(
                *("score", *ticks, "--model", folder / name, "--out", scores, "--events", lines)
            )
            offline[name] = [orjson.loads(line) for line in lines.read_bytes().splitlines()]
            runs.append(
                {
                    "policy": policy,
                    "seed": seed,
                    "threshold": trained["manifest"]["thresholds"],
                    "alarm_share": scored["anomalies"] / scored["ready"],
                    "rows": scored["rows"],
                    "highest_in_minute": _highest(scores, onsets),
                    **judge(offline[name], onsets),
                }
            )
    first = f"quantile{SEEDS[0]}"
    key = instrument_key(PUBLISHER["lean_forex"], stable_instrument_id("XAUUSD"))
    with cluster(bootstrap) as kafka:
        desk = Desk(folder, kafka, folder / first, symbols={key: "XAUUSD"})
        seen = watch(desk, lambda: tapewatch("replay", *ticks, "-c", desk.config, "--speed", "max"))
    return {
        "onsets": onsets,
        "runs": runs,
        "kafka": {
            "ticks": seen.metric("tapewatch_ticks_total"),
            "exit_code": seen.exit_code,
            "agreement": asdict(compare(seen.events, offline[first])),
            **judge(seen.events, onsets),
        },
    }


def onset(day: Path, at: datetime) -> int:
    """Return the time (epoch ns) of a burst's onset.

    It is the first quote from `at` on whose mid lies more than `ONSET_BPS` from the last mid at
    least one minute earlier.
    """
    ticks = np.concatenate([batch.ticks for batch in read_ticks(day)])
    mid = (ticks["bid_px"].astype(np.float64) + ticks["ask_px"]) / 2
    return first_move(ticks["ts_event"].astype(np.int64), mid, _ns(at))


def first_move(ts: npt.NDArray[np.int64], mid: npt.NDArray[np.float64], start: int) -> int:
    """Return the time of the first mid from `start` on that moved so far in a minute.

    Parameters
    ----------
    ts, mid
        `(n,)` epoch ns in order, and prices above 0.
    start
        Epoch ns.
    """
    before = np.searchsorted(ts, ts - MINUTE_NS, side="right") - 1
    known = (before >= 0) & (ts >= start)
    moved = np.abs(mid / mid[np.maximum(before, 0)] - 1.0) * 1e4 > ONSET_BPS
    return int(ts[np.flatnonzero(known & moved)[0]])


def judge(events: list[Event], onsets: Sequence[int]) -> dict[str, Any]:
    """When the bursts were seen, and how many episodes the quiet hours had."""
    opens = np.array(sorted(e["ts_event"] for e in events if e["phase"] == "open"), np.int64)
    closes = {e["episode_id"]: e["summary"]["ts_end"] for e in events if e["phase"] == "close"}
    bursts = []
    for at in onsets:
        later = opens[opens >= at]
        running = [
            float(at - e["ts_event"]) / NS_PER_S
            for e in events
            if e["phase"] == "open" and e["ts_event"] < at <= closes.get(e["episode_id"], 2**63 - 1)
        ]
        bursts.append(
            {
                "delay_s": float(later[0] - at) / NS_PER_S if len(later) else None,
                "open_since_s": max(running, default=None),
                "opens_in_hour": int(np.count_nonzero(later < at + HOUR_NS)),
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


def _highest(path: Path, onsets: Sequence[int]) -> list[float]:
    """Highest score within a minute of each onset, as a share of the threshold."""
    rows = pq.read_table(path)
    ts = rows["ts_event"].cast(pa.int64()).to_numpy()
    share = rows["score"].to_numpy() / rows["threshold"].to_numpy()
    return [float(np.nanmax(share[(ts >= at) & (ts < at + MINUTE_NS)])) for at in onsets]


def _ns(at: datetime) -> int:
    return int(at.timestamp()) * NS_PER_S


def _hours(day: str) -> list[int]:
    midnight = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
    return [int(midnight.timestamp()) * NS_PER_S + hour * HOUR_NS for hour in range(24)]


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    runs, kafka = facts["runs"], facts["kafka"]
    rows = [
        (
            _asked(run),
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
    hourly = "\n".join(
        f"- {day}: {' '.join(map(str, counts))}" for day, counts in kafka["opens_by_hour"].items()
    )
    onsets = [f"{_clock(at)} ({day})" for at, day in zip(facts["onsets"], DAYS, strict=True)]
    quiet = "; ".join(
        f"{policy} {spread([r['quiet_opens_per_hour'] for r in runs if r['policy'] == policy])}"
        for policy in POLICIES
    )
    return f"""
Trained on 2014-05-01 (70 %), thresholds from the rest of that day
({runs[0]["threshold"]["calibration_rows"]:,} quotes). Replayed: 05-02 and 05-07,
{runs[0]["rows"]:,} quotes. Onset of a burst: the first mid more than {
        ONSET_BPS:g} bps from that one minute
earlier, {" and ".join(onsets)} UTC. Quiet hours are the {
        runs[0]["quiet_hours"]
    } others: without the hour of a
burst and the one after. Stated for each burst: when the next episode opened after the onset, and
the highest score within a minute of it as a multiple of the threshold.

{
        table(
            (
                "asked",
                "seed",
                "threshold",
                "opens after onset on the 2nd",
                "on the 7th",
                "episodes per quiet hour",
                "median",
                "ticks above the threshold",
            ),
            rows,
        )
    }

Episodes per quiet hour over the seeds: {quiet}. Seed {SEEDS[0]} of the quantile went through
Kafka and the daemon: {kafka["ticks"]:,.0f} ticks, {kafka["agreement"]["got"]} events,
{kafka["agreement"]["identical"]} of them equal to the offline ones in every field, opened
{_delay(kafka["bursts"][0])} and {_delay(kafka["bursts"][1])} after the onsets. Episodes opened
in each hour from 00:00:

{hourly}

These days are not held out: an early score, of both reconstruction errors only, opened two to four
minutes after 12:30 on the 2nd, because a burst lies along what the autoencoders rebuild well, and
clipping hides the rest. The tails of the score are there for that. A burst on another day is yet to
be tried.
""".strip()


def _asked(run: dict[str, Any]) -> str:
    options = POLICIES[run["policy"]]
    return f"{run['policy']} {options[1] if options else run['threshold']['quantile']}"


def _clock(at: int) -> str:
    seconds = at // NS_PER_S % 86_400
    return (
        f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60 + at % NS_PER_S / 1e9:04.1f}"
    )


def _delay(burst: dict[str, Any]) -> str:
    since = burst["open_since_s"]
    before = "" if since is None else f", another open since {since:.1f} s before"
    return "never" + before if burst["delay_s"] is None else f"{burst['delay_s']:.1f} s{before}"
