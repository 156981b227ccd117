"""Alarms realised against alarms asked for: later the same day, and on the days that follow.

Every threshold comes from the calibration part of `tapewatch train`. What follows it is scored by
`tapewatch score` in one run, as a daemon would see it: thresholds begin at their prior and follow
their own alarms. No label, no injected tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import poisson

from benchmarks.real_data.report import table
from benchmarks.real_data.running import tapewatch
from detector import kernels_thresholds as k
from detector.events import EpisodePolicy
from detector.thresholds import GAP_S
from detector.ticks import NS_PER_S

TITLE: Final = "Alarms realised against alarms asked for"
NOON: Final = "2012-06-21T16:45:00Z"
ASKS: Final[Mapping[str, tuple[str, float]]] = {
    "budget 1": ("budget", 1.0),
    "budget 6": ("budget", 6.0),
    "risk 0.01": ("risk", 0.01),
    "quantile 0.99": ("quantile", 0.99),
}
LEAST_HOURS: Final = 0.5
"""Trading time below which a day is none: files of one day end a few ticks after midnight."""

MANY: Final = 100
"""Expected alarms from which on the factor is judged; below, the 95 % Poisson interval is."""


@dataclass(frozen=True, slots=True)
class Market:
    """What one model is trained on, and what it then scores."""

    train: tuple[Path, ...]
    score: tuple[Path, ...]
    options: tuple[object, ...] = ()


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Run the scenario; the facts for JSON."""
    rows: list[dict[str, Any]] = []
    for name, market in _markets(data).items():
        for ask, (asked, value) in ASKS.items():
            trained, scores = _run(folder / f"{name}-{asked}-{value:g}", market, asked, value)
            rows += _judge(ask, asked, value, trained, scores)
    order = list(ASKS)
    return {"rows": sorted(rows, key=lambda row: order.index(row["ask"]))}


def _markets(data: Path) -> dict[str, Market]:
    lobster = tuple(
        data / "lobster" / f"LOBSTER_SampleFile_{s}_2012-06-21_1.zip" for s in ("AAPL", "AMZN")
    )
    gold = tuple(
        data / "lean" / "xauusd" / f"201405{day}_quote.zip"
        for day in ("01", "02", "05", "06", "07")
    )
    stocks = [
        tuple(
            data / "lean" / "equity" / s / f"201310{day}_{kind}.zip"
            for s in ("bac", "ibm")
            for kind in ("quote", "trade")
        )
        for day in ("07", "08", "09")
    ]
    morning = ("--until", NOON, "--train-fraction", 0.7, "--calibration-fraction", 0.3)
    return {
        "lobster": Market(lobster, lobster, morning),
        "xauusd": Market(gold[:1], gold),
        "stocks": Market(stocks[0], tuple(file for day in stocks for file in day)),
    }


def _run(model: Path, market: Market, asked: str, value: float) -> tuple[dict[str, Any], Path]:
    """Train, then score what follows the calibration part."""
    trained = tapewatch(
        *("train", "--ticks", *market.train, "--out", model, "--overwrite", f"--{asked}", value),
        *market.options,
    )
    after = trained["summary"]["parts"]["boundaries"]["all"]["calibration_end"]
    scores = model.with_name(f"{model.name}.parquet")
    tapewatch(
        *("score", "--ticks", *market.score, "--model", model, "--from", after, "--out", scores)
    )
    return trained, scores


def _judge(
    ask: str, asked: str, value: float, trained: dict[str, Any], scores: Path
) -> list[dict[str, Any]]:
    """Count alarms by instrument and day, at the threshold applied and at the frozen one."""
    found = pq.read_table(scores, columns=["ts_event", "symbol", "score", "threshold", "ready"])
    found = found.filter(found["ready"])
    ts = found["ts_event"].cast(pa.int64()).to_numpy()
    symbols = np.array(found["symbol"].cast(pa.string()).to_pylist())
    score, threshold = (
        found[name].to_numpy(zero_copy_only=False) for name in ("score", "threshold")
    )
    day = ts // (86_400 * NS_PER_S)
    frozen = trained["summary"]["thresholds"]["instruments"]
    rows = []
    for symbol in sorted(frozen):
        for number in np.unique(day[symbols == symbol]).tolist():
            mine = (symbols == symbol) & (day == number)
            hours = float(k.hours_of(ts[mine], round(GAP_S * NS_PER_S)))
            if hours < LEAST_HOURS:
                continue
            prior = float(frozen[symbol]["threshold"])
            ticks = float(np.count_nonzero(mine))
            expected = value * hours if asked == "budget" else value * ticks
            if asked == "quantile":
                expected = (1.0 - value) * ticks
            rows.append(
                {
                    "ask": ask,
                    "instrument": symbol,
                    "day": f"{datetime.fromtimestamp(number * 86_400, UTC):%Y-%m-%d}",
                    "hours": hours,
                    "asked": expected,
                    "adaptive": _alarms(asked, ts[mine], score[mine] / threshold[mine]),
                    "frozen": _alarms(asked, ts[mine], score[mine] / prior),
                    "moved": np.quantile(threshold[mine] / prior, (0.0, 0.5, 1.0)).tolist(),
                }
            )
    return rows


def _alarms(asked: str, ts: npt.NDArray[np.int64], relative: npt.NDArray[np.float64]) -> int:
    """Episodes (budget) or ticks (else) at or above the threshold that scores are relative to."""
    if asked != "budget":
        return int(np.count_nonzero(relative >= 1.0))
    policy, room = EpisodePolicy(), np.empty(len(ts))
    quiet = round(policy.quiet_s * NS_PER_S)
    relative = np.ascontiguousarray(relative)
    return int(k.episodes_above(ts, relative, 1.0, policy.close_ratio, quiet, room))


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    rows: list[dict[str, Any]] = facts["rows"]
    lines = [
        (
            row["ask"],
            row["instrument"],
            row["day"],
            f"{row['hours']:.1f}",
            f"{row['asked']:,.1f}",
            _interval(row),
            ""
            if row["ask"].startswith("quantile")
            else f"{row['adaptive']:,} ({row['adaptive'] / row['asked']:.2f})",
            f"{row['frozen']:,} ({row['frozen'] / row['asked']:.2f})",
            " / ".join(f"{m:.2f}" for m in row["moved"]),
        )
        for row in rows
    ]
    return f"""
Models of AAPL and AMZN (2012-06-21 until 12:45 New York time), of XAUUSD (2014-05-01) and of BAC
and IBM (2013-10-07), each trained by `tapewatch train` with `--budget`, `--risk` or `--quantile`;
thresholds from their calibration parts alone. Everything after it, later the same day and on the
days that follow, is scored in one run of `tapewatch score`; the first day of an instrument is what
was left of its day of training. A budget counts episodes opened in an hour of trading time, a risk
or a quantile ticks at or above the threshold. "Frozen" is the same prior without adaptation, which
quantiles never have. Natural bursts are in these days, and count. In brackets: realised by asked;
where fewer than {MANY} alarms are expected, the 95 % Poisson interval of the count is given.

{
        table(
            (
                "asked",
                "instrument",
                "day",
                "hours",
                "alarms asked",
                "95 % of counts",
                "realised, adaptive",
                "realised, frozen",
                "threshold by prior: least / median / most",
            ),
            lines,
        )
    }

{
        table(
            ("asked", "thresholds", "median factor", "greatest", "within 1.5"),
            [
                (ask, kind, *_summary([row for row in rows if row["ask"] == ask], kind))
                for ask in ASKS
                for kind in ("adaptive", "frozen")
                if not (kind == "adaptive" and ASKS[ask][0] == "quantile")
            ],
        )
    }

The factor is realised by asked or its inverse, whichever is above 1. The step for an alarm and the
memory of a risk were compared on these very days (scores only), so they are no independent test of
the choice; nothing was chosen per instrument.
""".strip()


def _interval(row: Mapping[str, Any]) -> str:
    if row["asked"] >= MANY:
        return ""
    low, high = _expected(row["asked"])
    return f"{low} to {high}"


def _expected(asked: float) -> tuple[int, int]:
    low, high = (int(poisson.ppf(p, asked)) for p in (0.025, 0.975))
    return low, high


def kept(row: Mapping[str, Any], kind: str = "adaptive") -> bool:
    """Whether a count is within a factor of 1.5, or inside the interval where few are expected."""
    if row["asked"] >= MANY:
        return factor_of(row, kind) <= 1.5
    low, high = _expected(row["asked"])
    return low <= int(row[kind]) <= high


def factor_of(row: Mapping[str, Any], kind: str = "adaptive") -> float:
    """Realised by asked or its inverse, whichever is above 1."""
    asked, realised = float(row["asked"]), float(row[kind])
    return max(realised / asked, asked / max(realised, 0.5))


def _summary(rows: Sequence[Mapping[str, Any]], kind: str) -> tuple[str, str, str]:
    factors = [factor_of(row, kind) for row in rows]
    within = sum(factor <= 1.5 for factor in factors)
    return f"{np.median(factors):.2f}", f"{max(factors):.2f}", f"{within} of {len(factors)}"
