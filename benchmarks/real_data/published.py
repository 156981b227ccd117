"""The injected LOBSTER set: every detector on the same rows, by both protocols.

The set has quote stuffing, layering and pump-and-dump clusters all through one day of AAPL and
AMZN. All detectors see the same z-scores of the same rows; what they are is in
`training.evaluation`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.lobster_injected import read_injected
from benchmarks.real_data.panels import ADAPTIVE, at_once, kept, markdown, names, slim
from detector.features import DEFAULT
from detector.placing import Planted, join
from detector.scripts import AnomalyKind
from detector.ticks import NS_PER_S, TickBatch
from training import TwoStageDetector
from training.datasets import LATER_SHARE
from training.evaluation.compare import comparison
from training.evaluation.panel import (
    WITHOUT_CHANCE,
    Panel,
    Scores,
    needed,
    operations,
    rankings,
)
from training.evaluation.protocols import (
    AROUND_S,
    CALIBRATION_SHARE,
    SETTLING_S,
    Ends,
    Parts,
    published,
    time_ordered,
)
from training.evaluation.stream import Stream, read_stream
from training.evaluation.tables import (
    against_table,
    episode_table,
    kinds_of,
    of,
    ranking_table,
)
from training.evaluation.two_stage import STAGE1, TWO_STAGE, TwoStage
from training.evaluation_plan import EVALUATION_PLAN

TITLE: Final = "Injected LOBSTER: every detector on the same rows"
STOCKS: Final = ("AAPL", "AMZN")
SEEDS: Final = (0, 1, 2, 3, 4)
OWN_ROWS: Final = 1_000
GAP_S: Final = 60
OPENING_S: Final = 1800
"""The first half hour of scored ticks."""

KINDS: Final = (None, AnomalyKind.QUOTE_STUFFING, AnomalyKind.LAYERING, AnomalyKind.PUMP_AND_DUMP)
"""Meaning of a label of the set by its number."""


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Run the scenario; the facts for JSON."""
    source = data / "lobster_injected"
    jobs = [partial(_protocol, source, folder, name) for name in ("published", "time-ordered")]
    around, ordered = at_once(jobs)
    return {
        "fingerprint": DEFAULT.fingerprint,
        "features": len(DEFAULT.names),
        "published": around,
        "time_ordered": ordered,
    }


def read_set(source: Path, scratch: Path, stocks: Sequence[str] = STOCKS) -> Stream:
    """Features of all stocks in one stream, in order of event time.

    The set labels rows, not times: a clean tick within a cluster stays ordinary.
    """
    found = [read_injected(source / f"{stock}.parquet") for stock in stocks]
    ticks = join([each.batch.ticks for each in found])
    order = np.argsort(ticks["ts_event"], kind="stable")
    symbols = {key: name for each in found for key, name in each.batch.symbols.items()}
    batch = TickBatch.from_ticks(np.ascontiguousarray(ticks[order]), symbols=symbols)
    planted: list[Planted] = []
    for each in found:
        (key, symbol), ts = next(iter(each.batch.symbols.items())), each.batch.ts_event
        for cluster in np.unique(each.clusters[each.clusters > 0]).tolist():
            own = each.clusters == cluster
            kind = KINDS[int(each.labels[own][0])]
            assert kind is not None
            start, end = int(ts[own].min()), int(ts[own].max())
            planted.append(Planted(kind, key, symbol, start, end, {}, cluster))
    planted.sort(key=lambda one: (one.start_ns, one.key))
    labels = np.concatenate([each.labels for each in found])[order]
    stream = read_stream([batch], DEFAULT, scratch, planted)
    return replace(stream, kind=labels[stream.at].astype(np.uint8))


def _ends() -> Ends:
    """Return the times of the evaluation's own plan for this day."""
    subject = EVALUATION_PLAN.subjects[0]
    start, train_end = subject.train[0].ns
    fit_end = train_end - round(LATER_SHARE * (train_end - start))
    return Ends(start, fit_end, train_end, subject.calibration[0].ns[1], GAP_S * NS_PER_S)


def _protocol(source: Path, folder: Path, name: str) -> dict[str, Any]:
    """Fit and judge every detector with every seed, by one of the protocols."""
    with tempfile.TemporaryDirectory(prefix="tapewatch-published-") as scratch:
        stream = read_set(source, Path(scratch))
        if name == "published":
            return _seeds(stream, published(stream), folder, name, episodes=False)
        return _seeds(stream, time_ordered(stream, _ends()), folder, name, episodes=True)


def _seeds(
    stream: Stream, parts: Parts, folder: Path, name: str, *, episodes: bool
) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        facts = kept(
            folder,
            f"{name}-{seed}",
            partial(_seed, stream, parts, seed, episodes=episodes),
        )
        runs += facts["runs"]
    chance = {run["detector"] for run in runs if run["seed"] == SEEDS[0]} & WITHOUT_CHANCE
    for seed in SEEDS[1:]:  # what no seed changes was run once, and is the same for all
        for detector in sorted(chance):
            if not any(r["detector"] == detector and r["seed"] == seed for r in runs):
                once = next(r for r in runs if r["detector"] == detector)
                runs.append({**once, "seed": seed})
    return {
        "parts": {
            "fitted": int(np.count_nonzero(parts.train)),
            "calibration": int(np.count_nonzero(parts.calibration)),
            "test": int(np.count_nonzero(parts.test)),
            "anomalous": int(np.count_nonzero(stream.kind[parts.test])),
        },
        "runs": slim(runs),
        "planted": _counted(stream, parts),
        "against": comparison(runs, TWO_STAGE),
    }


def _seed(stream: Stream, parts: Parts, seed: int, *, episodes: bool) -> dict[str, Any]:
    """Everything of one seed; what has no chance in it is run with the first one only."""
    detector = TwoStageDetector(random_state=seed)
    fitted = detector.fit_rows(
        stream.rows(parts.fit), stream.rows(parts.later), own_rows=OWN_ROWS, spec=DEFAULT
    )
    model = TwoStage(fitted.model)
    wanted = [name for name in names() if seed == SEEDS[0] or name not in WITHOUT_CHANCE]
    panel = Panel.fit(model, stream, parts.train, seed, wanted)
    chosen = needed(stream, parts.test)
    scores: Scores = panel.score(stream, chosen | parts.calibration)
    ranked = rankings(stream, scores, parts.test)
    runs: list[dict[str, Any]] = [
        {"detector": name, "seed": seed, "ranking": found} for name, found in ranked.items()
    ]
    if episodes:
        operated = operations(
            stream, scores, parts.calibration, stream, scores, parts.test, model.table_rows
        )
        for run in runs:
            run["episodes"] = operated.facts(run["detector"])
    return {"runs": runs}


def _counted(stream: Stream, parts: Parts) -> dict[str, dict[str, int]]:
    """Clusters of each stock and type whose first tick is judged, by half hour of the day."""
    first = int(stream.ts.min())
    found: dict[str, dict[str, int]] = {}
    judged = set(zip(stream.keys[parts.test].tolist(), stream.ts[parts.test].tolist(), strict=True))
    for one in stream.planted:
        if (one.key, one.start_ns) in judged:
            counts = found.setdefault(f"{one.symbol} {one.kind.value}", {"all": 0, "opening": 0})
            counts["all"] += 1
            counts["opening"] += one.start_ns < first + OPENING_S * NS_PER_S
    return found


def _told(counts: dict[str, dict[str, int]], *, opening: bool) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {count['all']}" + (f" ({count['opening']})" if opening else "")
        for name, count in sorted(counts.items())
    )


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    around, ordered = facts["published"], facts["time_ordered"]
    runs, kinds = around["runs"], kinds_of(around["runs"])
    ahead = sum(
        ours > alone
        for ours, alone in zip(
            of(runs, TWO_STAGE, "ranking", "causal", "all", "ap"),
            of(runs, STAGE1, "ranking", "causal", "all", "ap"),
            strict=True,
        )
        if ours is not None and alone is not None
    )
    seeds = len({run["seed"] for run in runs})
    ranked = "\n\n".join(
        markdown(ranking_table(f"{title}, {label}", runs, which, key, kinds))
        for which, title in (("causal", "Causal"), ("delayed", "Delayed"))
        for key, label in (("auroc", "AUROC"), ("ap", "average precision"))
    )
    return f"""
AAPL and AMZN with 50 clusters of each type each, {facts["features"]} features a tick computed over
the whole stream, anomalies included. Every detector sees the same z-scores (per stock, clipped at
3) of the same rows; [evaluating.md](evaluating.md) says what the detectors and the words are. Mean
± standard deviation over {seeds} seeds of the detectors; there is one injection, and what has no
seed has no deviation. A type is ranked against all ordinary test ticks.

**Published protocol.** Test: ticks within {AROUND_S} s of a cluster
({around["parts"]["test"]:,}, {around["parts"]["anomalous"]:,} of them anomalous). Fitted on
ordinary ticks outside of that and of the {SETTLING_S} s after it, but for the last
{100 * CALIBRATION_SHARE:.0f} % of each stock ({around["parts"]["fitted"]:,}): of the same day, from
before and after the test ticks. Clusters judged (in the first half hour of it):
{_told(around["planted"], opening=True)}.
So AAPL's stuffing and layering all lie in the opening, which few of the fitted ticks are of.

{ranked}

{markdown(against_table("Two stages less the others, paired over seeds", around["against"]))}

Causal average precision of both stages is above that of stage 1 alone on {ahead} of {seeds} seeds.

**Time-ordered.** Fitted until 12:45 New York time without clusters and the {SETTLING_S} s after
them ({ordered["parts"]["fitted"]:,} ticks), thresholds from the ordinary ticks until 14:00
({ordered["parts"]["calibration"]:,}), all {ordered["parts"]["test"]:,} ticks after it judged,
{ordered["parts"]["anomalous"]:,} of them anomalous. Few clusters lie there:
{_told(ordered["planted"], opening=False)}.

{markdown(ranking_table("Causal, AUROC", ordered["runs"], "causal", "auroc", kinds))}

{markdown(ranking_table("Causal, average precision", ordered["runs"], "causal", "ap", kinds))}

{markdown(episode_table(f"Episodes at {ADAPTIVE}", ordered["runs"], ADAPTIVE))}

{markdown(against_table("Two stages less the others, paired over seeds", ordered["against"]))}
""".strip()
