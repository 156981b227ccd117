"""Anomalies of the frozen plan in five instruments: episodes at an alarm budget, every detector.

One configuration for all. A model of each group of instruments is fitted on the plan's training
part, thresholds come from its calibration part, episodes are judged in its test part with anomalies
of the test halves. `run_group` takes any parts and seeds, so that a change can be tried elsewhere
first: never on this plan's test.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.real_data.panels import (
    ADAPTIVE,
    FROZEN,
    SHOWN,
    at_once,
    kept,
    markdown,
    names,
    slim,
)
from detector.features import DEFAULT
from detector.model import TwoStageModel
from detector.offline import Files
from detector.placing import Planted
from detector.ticks import NS_PER_S, TickBatch
from training import TwoStageDetector
from training.anomalies import inject, survey
from training.datasets import LATER_SHARE
from training.evaluation.compare import comparison
from training.evaluation.panel import Panel, Scores, needed, operations, rankings
from training.evaluation.protocols import Parts
from training.evaluation.stream import Bool, Int64, Stream, read_stream
from training.evaluation.tables import (
    against_table,
    budget_table,
    episode_table,
    kinds_of,
    ranking_table,
    recall_table,
)
from training.evaluation.two_stage import TWO_STAGE, TwoStage
from training.evaluation_plan import EVALUATION_PLAN, Span, Subject
from training.halves import Half
from training.planning import Survey

TITLE: Final = "Planted anomalies in five instruments"
GROUPS: Final = (("BAC", "IBM"), ("AAPL", "AMZN"), ("XAUUSD",))
"""The one with most ticks comes first: two groups run at a time."""
MODELS: Final = 2
"""Model seeds of a group; plants take them in turn. A fit is the most expensive part."""

OWN_ROWS: Final = 1_000
GAP_NS: Final = 60 * NS_PER_S

Plan = Callable[[Subject, dict[int, Survey], int], tuple[Planted, ...]]
"""Anomalies of one instrument for a seed."""


@dataclass(frozen=True, slots=True)
class Group:
    """Instruments that share a model; their parts of time are the same."""

    subjects: tuple[Subject, ...]

    @property
    def name(self) -> str:
        """Their symbols."""
        return "-".join(subject.symbol for subject in self.subjects)

    @property
    def spans(self) -> Subject:
        """The subject whose parts are all of theirs."""
        return self.subjects[0]

    def ticks(self, data: Path) -> Files:
        """Return all files, one stream."""
        return Files(tuple(data / name for each in self.subjects for name in each.files))


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Run the scenario; the facts for JSON."""
    by_symbol = {subject.symbol: subject for subject in EVALUATION_PLAN.subjects}
    groups = [Group(tuple(by_symbol[symbol] for symbol in group)) for group in GROUPS]
    seeds = EVALUATION_PLAN.test_seeds
    done = at_once(
        [partial(run_group, data, folder, each, _of_the_plan, seeds, names()) for each in groups]
    )
    found = {
        group.name: {**facts, "runs": slim(facts["runs"])}
        for group, facts in zip(groups, done, strict=True)
    }
    return {
        "fingerprint": DEFAULT.fingerprint,
        "features": len(DEFAULT.names),
        "models": MODELS,
        "groups": found,
        "together": _together(list(found.values())),
    }


def _of_the_plan(subject: Subject, surveys: dict[int, Survey], seed: int) -> tuple[Planted, ...]:
    return EVALUATION_PLAN.planted(subject, surveys, Half.TEST, seed)


def run_group(
    data: Path,
    folder: Path,
    group: Group,
    plan: Plan,
    seeds: Sequence[int],
    baselines: Sequence[str],
) -> dict[str, Any]:
    """Fit the models of a group and judge every detector on every planted stream.

    Parameters
    ----------
    data, folder
        Of the market data; where parts of a run are kept.
    group, plan, seeds
        Instruments, and what is planted in their test parts for each seed.
    baselines
        Names of the detectors beside the model.
    """
    with tempfile.TemporaryDirectory(prefix="tapewatch-planted-") as scratch:
        runner = _Runner(data, Path(scratch), group, plan, tuple(baselines))
        runs: list[dict[str, Any]] = []
        for place, seed in enumerate(seeds):
            job = partial(runner.run, seed, place % MODELS)
            runs += kept(folder, f"{group.name}-{seed}", job)["runs"]
    return {"runs": runs, "against": comparison(runs, TWO_STAGE)}


class _Runner:
    """Clean ticks, their features and the fitted models of a group, made once when needed."""

    def __init__(
        self, data: Path, scratch: Path, group: Group, plan: Plan, baselines: tuple[str, ...]
    ) -> None:
        self._data, self._scratch = data, scratch
        self._group, self._plan, self._baselines = group, plan, baselines
        self._models: dict[int, TwoStageModel] = {}
        self._ticks: list[TickBatch] = []
        self._surveys: dict[int, Survey] = {}
        self._clean: Stream | None = None

    def run(self, seed: int, model_seed: int) -> dict[str, Any]:
        """Everything of one seed."""
        clean, held = self._reference()
        model = TwoStage(self._model(model_seed))
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            stream = read_stream(self._planted(seed), DEFAULT, Path(folder), self._plans(seed))
            test = spanned(stream.ts, self._group.spans.test)
            panel = Panel.fit(model, clean, held.train, seed, self._baselines)
            held_out = panel.score(clean, held.calibration)
            scores: Scores = panel.score(stream, needed(stream, test))
            operated = operations(
                clean, held_out, held.calibration, stream, scores, test, model.table_rows
            )
            ranked = rankings(stream, scores, test)
        return {
            "runs": [
                {
                    "detector": name,
                    "seed": seed,
                    "ranking": ranked[name],
                    "episodes": operated.facts(name),
                }
                for name in ranked
            ]
        }

    def _reference(self) -> tuple[Stream, Parts]:
        """Clean ticks up to the end of the calibration part, with features."""
        if self._clean is None:
            self._ticks = [
                batch
                for batch in self._group.ticks(self._data).batches(DEFAULT)
                if isinstance(batch, TickBatch)
            ]
            self._surveys = survey(self._ticks)
            until = self._group.spans.calibration[-1].ns[1]
            self._clean = read_stream(cut(self._ticks, None, until), DEFAULT, self._scratch)
        return self._clean, planned_parts(self._clean, self._group.spans)

    def _model(self, seed: int) -> TwoStageModel:
        if seed not in self._models:
            clean, held = self._reference()
            detector = TwoStageDetector(random_state=seed)
            rows, later = clean.rows(held.fit), clean.rows(held.later)
            self._models[seed] = detector.fit_rows(
                rows, later, own_rows=OWN_ROWS, spec=DEFAULT
            ).model
        return self._models[seed]

    def _plans(self, seed: int) -> tuple[Planted, ...]:
        by_symbol = {one.symbol: (key, one) for key, one in self._surveys.items()}
        found: list[Planted] = []
        for subject in self._group.subjects:
            key, one = by_symbol[subject.symbol]
            found += self._plan(subject, {key: one}, seed)
        return tuple(sorted(found, key=lambda each: (each.start_ns, each.key)))

    def _planted(self, seed: int) -> Iterator[TickBatch]:
        """Plant from the calibration part on, so that windows and scales are warm for the test."""
        since = self._group.spans.calibration[0].ns[0]
        feeds = {key: one.feed for key, one in self._surveys.items()}
        for part in inject(cut(self._ticks, since, None), self._plans(seed), feeds):
            yield part.batch


def cut(batches: Sequence[TickBatch], since: int | None, until: int | None) -> Iterator[TickBatch]:
    """Ticks from `since` on and before `until`."""
    for batch in batches:
        inside = np.ones(len(batch), np.bool_)
        if since is not None:
            inside &= batch.ts_event >= since
        if until is not None:
            inside &= batch.ts_event < until
        if inside.any():
            yield batch if inside.all() else batch.taken(inside)


def spanned(ts: Int64, spans: Sequence[Span]) -> Bool:
    """`(n,)` bool: within one of the spans."""
    inside = np.zeros(len(ts), np.bool_)
    for span in spans:
        start, end = span.ns
        inside |= (ts >= start) & (ts < end)
    return inside


def planned_parts(stream: Stream, subject: Subject) -> Parts:
    """Divide clean rows as a plan says; the last tenth of the training part stops early."""
    train = np.flatnonzero(spanned(stream.ts, subject.train))
    cut_at = stream.ts[train[round(len(train) * (1 - LATER_SHARE))]]
    inside = spanned(stream.ts, subject.train)
    return Parts(
        fit=inside & (stream.ts < cut_at),
        later=inside & (stream.ts >= cut_at + GAP_NS),
        calibration=spanned(stream.ts, subject.calibration),
        test=np.zeros(len(stream), np.bool_),
    )


def _together(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Recall by type over all groups: each seed's hits of all instruments by what was planted."""
    runs: list[dict[str, Any]] = []
    every = [run for group in groups for run in group["runs"]]
    for name, seed in dict.fromkeys((run["detector"], run["seed"]) for run in every):
        mine = [run for run in every if (run["detector"], run["seed"]) == (name, seed)]
        runs.append(
            {
                "detector": name,
                "seed": seed,
                "episodes": {
                    point: _pooled([run["episodes"][point] for run in mine])
                    for point in mine[0]["episodes"]
                    if point in SHOWN and all(point in run["episodes"] for run in mine)
                },
            }
        )
    return {"runs": runs, "against": comparison(runs, TWO_STAGE)}


def _pooled(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    types: dict[str, dict[str, Any]] = {}
    for part in parts:
        for kind, found in part["types"].items():
            one = types.setdefault(kind, {"planted": 0, "hit": 0, "masked": 0})
            for key in one:
                one[key] += found[key]
    for one in types.values():
        one["recall"] = one["hit"] / one["planted"]
    hours = sum(part["clean_hours"] for part in parts)
    in_alarm = sum(part["clean_time_in_alarm"] * part["clean_hours"] for part in parts)
    planted = sum(one["planted"] for one in types.values())
    return {
        "planted": planted,
        "hit": sum(one["hit"] for one in types.values()),
        "masked": sum(one["masked"] for one in types.values()),
        "recall": sum(one["hit"] for one in types.values()) / planted,
        "mean_recall_over_types": float(np.mean([one["recall"] for one in types.values()])),
        "median_delay_ms": _middle([part["median_delay_ms"] for part in parts]),
        "median_delay_events": _middle([part["median_delay_events"] for part in parts]),
        "false_per_hour": sum(part["false"] for part in parts) / hours,
        "clean_time_in_alarm": in_alarm / hours,
        "types": types,
    }


def _middle(values: Sequence[float | None]) -> float | None:
    """Median of the groups' medians."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    together = facts["together"]
    runs = together["runs"]
    kinds = sorted({k for run in runs for k in run["episodes"][FROZEN]["types"]})
    seeds = sorted({run["seed"] for run in runs})
    groups = "\n\n".join(_group_told(name, group) for name, group in facts["groups"].items())
    return f"""
The frozen plan of [anomalies.md](anomalies.md): {len(seeds)} planted streams (seeds
{", ".join(map(str, seeds))}), {EVALUATION_PLAN.per_hour:g} anomalies an instrument-hour, test
halves of the ranges, in the test part of AAPL, AMZN, BAC, IBM and XAUUSD. One model a group (AAPL
with AMZN, BAC with IBM, XAUUSD), one configuration for all; {facts["models"]} model seeds in turn.
Everything is time-ordered: fitted on the training part, thresholds from the calibration part, in
which nothing is planted. Features: {facts["features"]}. Words and rules:
[evaluating.md](evaluating.md).

All instruments together; mean ± standard deviation over the streams. A type counts by what was
planted of it anywhere.

{markdown(episode_table(f"At {FROZEN}", runs, FROZEN))}

{markdown(episode_table(f"At {ADAPTIVE}", runs, ADAPTIVE))}

{markdown(recall_table(f"Recall by type at {FROZEN}", runs, FROZEN, kinds))}

{markdown(recall_table(f"Recall by type at {ADAPTIVE}", runs, ADAPTIVE, kinds))}

{markdown(against_table("Two stages less the others, paired over streams", together["against"]))}

{groups}
""".strip()


def _group_told(name: str, group: dict[str, Any]) -> str:
    runs = group["runs"]
    kinds = kinds_of(runs)
    ours = next(run for run in runs if run["detector"] == TWO_STAGE)
    episodes = {
        point: facts for point, facts in ours["episodes"].items() if point in {FROZEN, ADAPTIVE}
    }
    return "\n\n".join(
        [
            f"**{name.replace('-', ', ')}**",
            markdown(ranking_table("Causal, AUROC", runs, "causal", "auroc", kinds)),
            markdown(ranking_table("Causal, average precision", runs, "causal", "ap", kinds)),
            markdown(recall_table(f"Recall at {FROZEN}", runs, FROZEN, kinds[1:])),
            markdown(recall_table(f"Recall at {ADAPTIVE}", runs, ADAPTIVE, kinds[1:])),
            markdown(episode_table(f"At {FROZEN}", runs, FROZEN)),
            markdown(budget_table(f"Budget, seed {ours['seed']}", episodes)),
        ]
    )
