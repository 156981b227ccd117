"""Names of planted anomalies, at parameters the head never saw and of types it never saw.

The frozen evaluation plan: a model of the training part, a head of anomalies planted there from the
training halves of the parameters, judged on those planted in the test part from the test halves.
`rehearse` is the same on training seeds alone: what was looked at while the head was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.real_data.report import spread, table
from detector.artifact import Artifact
from detector.features import DEFAULT
from detector.feeds import Feed
from detector.naming import ORDINARY, UNKNOWN, Head
from detector.offline import Files
from detector.placing import Planted
from detector.scripts import AnomalyKind
from detector.ticks import TickBatch
from training.anomalies import inject
from training.classify import Episode, FittedHead, episodes_of, fit_head, macro_f1, name_of
from training.datasets import Split
from training.evaluation_plan import EVALUATION_PLAN, Span, Subject
from training.halves import Half
from training.labels import Label
from training.planning import Survey, survey
from training.train import Options, train

TITLE: Final = "Names of planted anomalies"
GROUPS: Final = (("AAPL", "AMZN"), ("BAC", "IBM"), ("XAUUSD",))
BUDGET: Final = 6.0
"""False episodes an instrument-hour."""

PHASES: Final = ("open", "close")
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Course:
    """What a head is fitted on and what it is judged on.

    Parameters
    ----------
    fit_seeds
        Of the training part and the training halves.
    judged
        Half and, with it, part of the time.
    judged_seeds
        Of it.
    """

    fit_seeds: tuple[int, ...]
    judged: Half
    judged_seeds: tuple[int, ...]


FINAL: Final = Course(EVALUATION_PLAN.train_seeds, Half.TEST, EVALUATION_PLAN.test_seeds)
REHEARSAL: Final = Course(
    EVALUATION_PLAN.train_seeds[:-1], Half.TRAIN, EVALUATION_PLAN.train_seeds[-1:]
)


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Run the scenario; the facts for JSON."""
    return _run(data, folder, FINAL)


def rehearse(data: Path, folder: Path) -> dict[str, Any]:
    """Run the scenario on training seeds alone."""
    return _run(data, folder, REHEARSAL)


def _run(data: Path, folder: Path, course: Course) -> dict[str, Any]:
    groups: list[dict[str, Any]] = []
    pairs: dict[str, list[tuple[str, str]]] = {phase: [] for phase in PHASES}
    known: dict[str, list[tuple[str, str]]] = {phase: [] for phase in PHASES}
    for symbols in GROUPS:
        facts, found = _group(data, folder, symbols, course)
        groups.append(facts)
        for phase in PHASES:
            pairs[phase] += found[phase]
            known[phase] += [pair for pair in found[phase] if pair[0] in facts["episodes"]]
    types = {kind for pair in known["close"] for kind in pair[:1]}
    return {
        "budget": BUDGET,
        "fit_seeds": course.fit_seeds,
        "judged_seeds": course.judged_seeds,
        "half": course.judged.value,
        "groups": groups,
        "pooled": {phase: macro_f1(known[phase], types) for phase in PHASES},
        "confusion": _confusion(pairs["close"]),
    }


# ---- one group of instruments, one model --------------------------------------------------------


def _group(
    data: Path, folder: Path, symbols: Sequence[str], course: Course
) -> tuple[dict[str, Any], dict[str, list[tuple[str, str]]]]:
    """Facts of one group, and what was planted and named, by phase."""
    subjects = [each for each in EVALUATION_PLAN.subjects if each.symbol in symbols]
    market = _Market(data, subjects)
    name = "+".join(symbols)
    artifact = market.train(folder / name)
    material = [
        episode
        for seed in course.fit_seeds
        for episode in market.episodes(artifact, Half.TRAIN, seed)
    ]
    judged = [
        episode
        for seed in course.judged_seeds
        for episode in _first(market.episodes(artifact, course.judged, seed))
    ]
    planted = {seed: market.planted(course.judged, seed) for seed in course.judged_seeds}
    fitted = fit_head(material)
    pairs = {phase: _named(fitted.head, judged, phase) for phase in PHASES}
    facts = {
        "name": name,
        "threshold": artifact.thresholds.pooled,
        "episodes": dict(fitted.episodes),
        "untrained": dict(fitted.untrained),
        "limits": [fitted.head.least_probability, fitted.head.most_distance],
        "held_out": dict(fitted.held_out),
        "planted": _counts(one.kind.value for some in planted.values() for one in some),
        "detected": _counts(each.kind for each in judged if each.anomaly),
        "macro_f1": {phase: macro_f1(pairs[phase], fitted.episodes) for phase in PHASES},
        "false_alarms": {
            "episodes": sum(each.kind == ORDINARY for each in judged),
            **{phase: _unknown_share(pairs[phase], ORDINARY) for phase in PHASES},
        },
        "confusion": _confusion(pairs["close"]),
        "left_out": _left_out(fitted, material, judged),
    }
    return facts, pairs


class _Market:
    """The ticks of some subjects, cut into the plan's parts."""

    def __init__(self, data: Path, subjects: Sequence[Subject]) -> None:
        self._subjects = subjects
        self._files = Files(tuple(data / name for each in subjects for name in each.files))
        self._surveys: list[dict[int, Survey]] = [
            survey(_ticks(each.ticks(data))) for each in subjects
        ]
        self._feeds: dict[int, Feed] = {
            key: one.feed for some in self._surveys for key, one in some.items()
        }

    def train(self, folder: Path) -> Artifact:
        """Train on the training part, thresholds from the calibration part."""
        first = self._subjects[0]
        end = first.train[-1].ns[1]
        # All later ticks that are given are for the thresholds.
        split = Split(train=0.6, calibration=0.4, train_until=end)
        return train(
            self._within(_ns(first.train) + _ns(first.calibration)),
            DEFAULT,
            folder,
            Options(split=split, budget=BUDGET),
            overwrite=True,
        )

    def planted(self, half: Half, seed: int) -> list[Planted]:
        """Return what is planted for a seed, in order of start."""
        found = [
            one
            for subject, surveys in zip(self._subjects, self._surveys, strict=True)
            for one in EVALUATION_PLAN.planted(subject, surveys, half, seed)
        ]
        return sorted(found, key=lambda one: (one.start_ns, one.key))

    def episodes(self, artifact: Artifact, half: Half, seed: int) -> list[Episode]:
        """Labelled episodes of one planted stream; windows are warm when the part begins."""
        first, planted = self._subjects[0], self.planted(half, seed)
        part = first.train if half == Half.TRAIN else first.calibration + first.test
        batches = (each.batch for each in inject(self._within(_ns(part)), planted, self._feeds))
        return episodes_of(artifact, batches, [Label(one, half, 0) for one in planted])

    def _within(self, spans: Spans) -> Iterator[TickBatch]:
        for batch in _ticks(self._files):
            inside: npt.NDArray[np.bool_] = np.zeros(len(batch), np.bool_)
            for start, end in spans:
                inside |= (batch.ts_event >= start) & (batch.ts_event < end)
            if inside.any():
                yield batch.taken(inside)


def _ticks(files: Files) -> Iterator[TickBatch]:
    for batch in files.batches(DEFAULT):
        assert isinstance(batch, TickBatch)
        yield batch


def _ns(spans: Sequence[Span]) -> list[tuple[int, int]]:
    return [span.ns for span in spans]


# ---- judging ------------------------------------------------------------------------------------


def _first(episodes: Sequence[Episode]) -> list[Episode]:
    """Keep the first episode of each anomaly, and all that are no anomaly's."""
    seen: set[int] = set()
    found = []
    for each in episodes:
        if not each.kind or each.anomaly in seen:
            continue
        if each.anomaly:
            seen.add(each.anomaly)
        found.append(each)
    return found


def _named(head: Head, episodes: Sequence[Episode], phase: str) -> list[tuple[str, str]]:
    """Say what was planted and what it was called, when the episode opened or closed."""
    stop = 1 if phase == "open" else None
    return [(each.kind, name_of(head, each.inputs[:stop])) for each in episodes]


def _left_out(
    fitted: FittedHead, material: Sequence[Episode], judged: Sequence[Episode]
) -> dict[str, dict[str, Any]]:
    """For each trained type: what a head that never saw it calls its episodes."""
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(fitted.episodes) - {ORDINARY}):
        mine = [each for each in judged if each.kind == kind]
        if not mine:
            continue
        head = fit_head([each for each in material if each.kind != kind]).head
        pairs = {phase: _named(head, mine, phase) for phase in PHASES}
        found[kind] = {
            "episodes": len(mine),
            **{phase: _unknown_share(pairs[phase], kind) for phase in PHASES},
            "called": _counts(name for _, name in pairs["close"]),
        }
    return found


def _unknown_share(pairs: Sequence[tuple[str, str]], kind: str) -> float | None:
    names = [name for planted, name in pairs if planted == kind]
    return names.count(UNKNOWN) / len(names) if names else None


def _confusion(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Names at the close, by what was planted."""
    return {
        kind: _counts(name for planted, name in pairs if planted == kind)
        for kind in sorted({planted for planted, _ in pairs})
    }


def _counts(values: Iterator[str]) -> dict[str, int]:
    listed = list(values)
    return {value: listed.count(value) for value in sorted(set(listed))}


# ---- the page -----------------------------------------------------------------------------------


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    groups = facts["groups"]
    rows = [
        (
            group["name"],
            f"{sum(group['detected'].values())} of {sum(group['planted'].values())}",
            *(f"{group['macro_f1'][phase]:.3f}" for phase in PHASES),
            ", ".join(group["untrained"]) or "none",
            f"{group['false_alarms']['episodes']}",
            *(_share(group["false_alarms"][phase]) for phase in PHASES),
        )
        for group in groups
    ]
    unseen = [
        (
            group["name"],
            kind,
            str(one["episodes"]),
            *(_share(one[phase]) for phase in PHASES),
            ", ".join(f"{name} {n}" for name, n in one["called"].items()),
        )
        for group in groups
        for kind, one in group["left_out"].items()
    ]
    shares = {
        phase: [one[phase] for group in groups for one in group["left_out"].values()]
        for phase in PHASES
    }
    heads = [kind.value for kind in AnomalyKind] + [UNKNOWN]
    confusion = [
        (kind, *(str(named.get(head, "")) for head in heads))
        for kind, named in facts["confusion"].items()
    ]
    return f"""
One model and one head a group of instruments, by the frozen plan
([anomalies.md](anomalies.md#the-evaluations-plan)): model of the training part, thresholds for
{facts["budget"]:g} false episodes an instrument-hour, head of seeds {_list(facts["fit_seeds"])}
planted in the training part from the training halves; judged on seeds
{_list(facts["judged_seeds"])}, {facts["half"]} halves. Only detected anomalies are judged: those in
which, or up to a second after which, an episode opened. "Unknown" counts as a miss. Thresholds stay
as calibrated: those that follow their alarms would rise with the planted ones, which are more than
the budget.

Macro-F1 over the types that their head was trained on, all groups together: {
        facts["pooled"]["open"]:.3f} by the opening event,
**{facts["pooled"]["close"]:.3f}** by the closing one (bar: .85).

{
        table(
            (
                "model of",
                "detected",
                "macro-F1, open",
                "close",
                "types with too few to train",
                "false episodes",
                "unknown, open",
                "close",
            ),
            rows,
        )
    }

Planted (rows) and named at the close (columns), all groups; `{ORDINARY}` are false episodes:

{table(("", *heads), confusion)}

A head that never saw a type, on the detected anomalies of that type: called "unknown"
{spread(shares["open"], ".2f")} of the time by the opening event, {
        spread(shares["close"], ".2f")
    } by
the closing one (mean and spread over the rows below).

{
        table(
            ("model of", "left out", "episodes", "unknown, open", "close", "called at the close"),
            unseen,
        )
    }
""".strip()


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
