"""AMZN and AAPL: the daemon on a real Kafka against offline scoring, tick by tick.

Train on the first half of the day, replay the second half. Two daemons read the same topic: one as
shipped, whose events must be those that `tapewatch score` writes; and one whose episodes are told
to publish an update for every tick, so that every score leaves the daemon and can be compared.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow.parquet as pq

from benchmarks.processes import cluster
from benchmarks.real_data.report import table
from benchmarks.real_data.running import Desk, Watched, compare, tapewatch, watch
from detector.readers import PUBLISHER
from detector.ticks import instrument_key, stable_instrument_id

TITLE: Final = "LOBSTER: the daemon gives the offline scores, decisions and events"
NOON: Final = "2012-06-21T16:45:00Z"  # 12:45 in New York, half of 09:30 to 16:00
SYMBOLS: Final = ("AAPL", "AMZN")
TALKATIVE: Final = """
[episodes]
close_ratio = 1e-9
quiet_s = 2592000
update_interval_s = 1e-9
"""


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:
    """Run the scenario; the facts for JSON."""
    files = [data / "lobster" / f"LOBSTER_SampleFile_{s}_2012-06-21_1.zip" for s in SYMBOLS]
    model = folder / "model"
    trained = tapewatch(
        *("train", "--ticks", files[0], "--ticks", files[1], "--until", NOON, "--out", model),
        *("--train-fraction", 0.7, "--calibration-fraction", 0.3, "--overwrite"),
    )
    scores, lines = folder / "scores.parquet", folder / "events.jsonl"
    scored = tapewatch(
        *("score", "--ticks", files[0], "--ticks", files[1], "--from", NOON, "--model", model),
        *("--out", scores, "--events", lines),
    )
    offline = [orjson.loads(line) for line in lines.read_bytes().splitlines()]
    keys = {s: instrument_key(PUBLISHER["lobster"], stable_instrument_id(s)) for s in SYMBOLS}
    with cluster(bootstrap) as kafka:
        desk = Desk(folder, kafka, model, symbols={key: s for s, key in keys.items()})
        shipped = watch(
            desk,
            lambda: tapewatch(
                *("replay", "--ticks", files[0], "--ticks", files[1], "--from", NOON),
                *("-c", desk.config, "--speed", "max"),
            ),
        )
        every = watch(replace(desk, name="every", suffix="-every", more=TALKATIVE), lambda: None)
    return {
        "trained": trained["summary"]["parts"],
        "threshold": trained["manifest"]["thresholds"],
        "offline": {name: fact for name, fact in scored.items() if name != "out"},
        "replayed": shipped.published,
        "exit_codes": [shipped.exit_code, every.exit_code],
        "ticks": shipped.metric("tapewatch_ticks_total"),
        "scored": shipped.metric("tapewatch_ticks_scored_total"),
        "events": asdict(compare(shipped.events, offline)),
        "opens": {
            s: sum(e["phase"] == "open" and e["symbol"] == s for e in offline) for s in SYMBOLS
        },
        "per_tick": _every_tick(every, scores),
    }


def _every_tick(every: Watched, scores: Path) -> dict[str, Any]:
    """Compare the scores that were published with the offline ones of the same ticks."""
    rows = pq.read_table(scores)
    ready = rows["ready"].to_numpy()
    named = ("score", "stage1", "stage2", "threshold")
    columns = {name: rows[name].to_numpy(zero_copy_only=False) for name in named}
    anomaly = rows["anomaly"].to_numpy()
    events = [event for event in every.events if event["phase"] != "close"]
    at = np.array([event["source"]["offset"] for event in events], np.int64)
    greatest, identical = 0.0, np.ones(len(at), np.bool_)
    for name, field in zip(
        named, ("score", "stage1_error", "stage2_error", "threshold"), strict=True
    ):
        got = np.array([event[field] for event in events])
        want = columns[name][at]
        greatest = max(greatest, float(np.max(np.abs(got - want) / np.abs(want))))
        identical &= got == want
    decided = np.array([event["score"] >= event["threshold"] for event in events])
    counted = every.metric("tapewatch_score_count"), every.metric("tapewatch_score_sum")
    total = float(columns["score"][ready].sum())
    return {
        "ready_offline": int(ready.sum()),
        "published": len(np.unique(at)),
        "identical": int(identical.sum()),
        "greatest_relative_difference": greatest,
        "decisions_that_differ": int(np.count_nonzero(decided != anomaly[at])),
        "anomalies_offline": int(anomaly.sum()),
        "anomalies_published": int(decided.sum()),
        "score_count": int(counted[0]),
        "score_sum_relative_difference": abs(counted[1] - total) / total,
    }


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    events, ticks, parts = facts["events"], facts["per_tick"], facts["trained"]
    return f"""
One model of both stocks, trained by `tapewatch train` on 2012-06-21 until 12:45 New York time (70 %
of it, then a gap of 60 s, then the rest for the threshold: {parts["calibration_rows"]:,} ticks,
quantile {facts["threshold"]["quantile"]}). The second half of the day, {facts["offline"]["rows"]:,}
ticks, is replayed at full speed (`tapewatch replay`, one tick a message, one partition) to
`tapewatch run`; `tapewatch events` reads in a process of its own. Windows start cold on both sides.
Against `tapewatch score --events` of the same files and time:

{
        table(
            ("", "daemon on Kafka", "offline"),
            (
                ("ticks", f"{facts['ticks']:,.0f}", f"{facts['offline']['rows']:,}"),
                ("ticks scored", f"{facts['scored']:,.0f}", f"{facts['offline']['ready']:,}"),
                ("events", f"{events['got']:,}", f"{events['wanted']:,}"),
                (
                    "events with the same id and equal in every field but `ts_detected`",
                    f"{events['identical']:,}",
                    "",
                ),
                (
                    "greatest relative difference of score, error, threshold, severity",
                    f"{events['greatest_relative_difference']:.1e}",
                    "",
                ),
            ),
        )
    }

Episodes opened: {", ".join(f"{s} {n}" for s, n in facts["opens"].items())}. A second daemon on the
same topic, with an episode policy that publishes every tick it can tell apart by time, gives the
scores themselves: {ticks["published"]:,} of the {ticks["ready_offline"]:,} scored ticks were
published (the others came before the first alarm of their stock, or share their nanosecond with
another tick). Equal in score, both stages' errors and threshold to the last bit:
{ticks["identical"]:,}; greatest relative difference {ticks["greatest_relative_difference"]:.1e};
decisions that differ: {ticks["decisions_that_differ"]}. The sum of all
{ticks["score_count"]:,} scores in `tapewatch_score_sum` differs from the offline sum by
{ticks["score_sum_relative_difference"]:.1e} of it.
""".strip()
