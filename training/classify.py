"""The head that names anomalies: from planted anomalies to a model folder that carries it.

The pipeline runs over planted ticks; its episodes are labelled by what was
planted where they open; a softmax (multinomial logistic regression) is fitted to the latents and
errors of their alarms; the limits below which a type is "unknown" are those that hold on episodes
held back from the fit. Classes weigh alike, and so do the episodes of a class, however many ticks
they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

from detector.artifact import Artifact, Classifier, read_artifact, write_with_head
from detector.errors import RefusedError
from detector.naming import ORDINARY, Head, head_inputs
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.ticks import NS_PER_S, Batch, instrument_key
from training.labels import Label

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

GRACE_S: Final = 1.0
"""An episode that opens so long after an anomaly's end is still about it."""

AFTERMATH_S: Final = 60.0
"""An episode that opens so long after an anomaly is neither the anomaly's nor ordinary."""

LEAST_EPISODES: Final = 8
"""A type seen in fewer episodes is not trained, and false alarms neither."""

FIRST_SHARE: Final = 0.25
"""Share of an episode's weight that its first alarm has: the opening event knows no other."""

MOST_TICKS: Final = 32
"""Alarms of an episode fitted, at most, evenly chosen: more take longer and say no more."""

CLIP: Final = 5.0
INVERSE_PENALTY: Final = 10.0
FOLDS: Final = 5
REFUSED: Final = 0.02
"""Share of rightly named held-back episodes that each limit refuses to name."""

RIDGE: Final = 0.1
"""Added to the variances of the whitening, which are at most about 1."""


class TooFewEpisodesError(RefusedError, ValueError):
    """The planted ticks raised too few alarms to train on."""


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One episode of a planted stream.

    Parameters
    ----------
    kind
        What was planted where it opened, `ORDINARY` far from all anomalies, "" near one.
    anomaly
        Row of the label file, from 1; 0: none.
    inputs
        `(m, I)` float64 `naming.head_inputs` of its alarms, in their order.
    """

    kind: str
    anomaly: int
    inputs: Float64


def episodes_of(
    artifact: Artifact,
    batches: Iterable[Batch],
    labels: Sequence[Label],
    tell: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Run the pipeline over a planted stream and label its episodes.

    Thresholds stay as calibrated: planted anomalies are many, and thresholds that follow their
    alarms would rise until most of them are missed.

    Parameters
    ----------
    artifact
        The model; episodes go by the daemon's rules.
    batches
        The planted ticks, one partition; offsets number them, as `Files` gives them.
    labels
        What was planted.
    tell
        Called with the number of ticks after each batch.
    """
    scorer = Scorer(artifact)
    pipeline = Pipeline(artifact.features, scorer, PipelineSpec(adapt=False))
    alarms: list[tuple[Int64, Int64, Int64, Float64]] = []
    opened: list[tuple[int, int, int]] = []  # instrument, offset, event time
    for batch in batches:
        outcome = pipeline.process(batch)
        block, scores = outcome.blocks[0], outcome.scores[0]
        rows = np.flatnonzero(scores.anomaly)
        measures = np.stack([scores.stage1, scores.stage2, scores.tail])[:, rows]
        latents = scorer.latents(block.values[rows], block.keys[rows])
        inputs = head_inputs(latents, measures)
        alarms.append((block.keys[rows], batch.offsets[rows], block.ts[rows], inputs))
        opened += [
            (instrument_key(e.publisher_id, e.instrument_id), e.source.offset, e.ts_event)
            for e in outcome.events
            if e.phase == "open"
        ]
        if tell is not None:
            tell(len(batch))
    if not opened:
        return []
    keys, offsets, ts, inputs = (np.concatenate(part) for part in zip(*alarms, strict=True))
    planted = _by_key(labels)
    found: list[Episode] = []
    for key in sorted({key for key, _, _ in opened}):
        mine = np.flatnonzero(keys == key)
        starts = [(offset, at) for k, offset, at in opened if k == key]
        # An alarm opens an episode or belongs to the open one: those up to the next opening.
        cuts = np.searchsorted(offsets[mine], [offset for offset, _ in starts])
        for (_, at), rows in zip(starts, np.split(mine, cuts[1:]), strict=True):
            kind, anomaly = _label_of(at, int(ts[rows[-1]]), planted.get(key, []))
            found.append(Episode(kind, anomaly, inputs[rows]))
    return found


def _by_key(labels: Sequence[Label]) -> dict[int, list[tuple[int, Label]]]:
    by_key: dict[int, list[tuple[int, Label]]] = {}
    for number, label in enumerate(labels, start=1):
        by_key.setdefault(label.planted.key, []).append((number, label))
    return by_key


def _label_of(opened: int, last: int, planted: Sequence[tuple[int, Label]]) -> tuple[str, int]:
    """Kind and number of the anomaly that an episode opened in; `ORDINARY` far from all."""
    near = False
    for number, label in planted:
        start, end = label.planted.start_ns, label.planted.end_ns
        if start <= opened <= end + round(GRACE_S * NS_PER_S):
            return label.planted.kind.value, number
        near |= start <= last and opened <= end + round(AFTERMATH_S * NS_PER_S)
    return ("" if near else ORDINARY), 0


@dataclass(frozen=True, slots=True, eq=False)
class FittedHead:
    """A head and how it came about.

    Parameters
    ----------
    head
        What names episodes.
    episodes
        Trained on, by class.
    untrained
        Types with too few episodes, and how many they had.
    held_out
        Macro-F1 over the types on episodes held back, by phase ("open", "close"), with the limits
        applied: parameters like those trained on, and limits chosen on the same episodes.
    """

    head: Head
    episodes: Mapping[str, int]
    untrained: Mapping[str, int]
    held_out: Mapping[str, float]


def fit_head(episodes: Sequence[Episode], seed: int = 0) -> FittedHead:
    """Fit a head to labelled episodes and choose its limits.

    Parameters
    ----------
    episodes
        Of any number of planted streams; those labelled "" are left out.
    seed
        Of the folds.

    Raises
    ------
    TooFewEpisodesError
        Fewer than two types have `LEAST_EPISODES`.
    """
    counts = Counter(each.kind for each in episodes if each.kind)
    trained = {kind: n for kind, n in sorted(counts.items()) if n >= LEAST_EPISODES}
    untrained = {kind: n for kind, n in sorted(counts.items()) if kind not in trained}
    untrained.pop(ORDINARY, None)
    if len(trained.keys() - {ORDINARY}) < 2:
        told = ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items())) or "none"
        advice = (
            "plant more (--per-hour, more files), or lower the model's threshold"
            if counts.keys() - {ORDINARY}
            else "no alarm lies in a labelled anomaly; check that the labels were written with "
            "these ticks, then the model's threshold"
        )
        raise TooFewEpisodesError(
            f"episodes by type: {told}; two types need {LEAST_EPISODES} each: {advice}"
        )
    chosen = [each for each in episodes if each.kind in trained]
    kinds = np.array([each.kind for each in chosen])
    right: list[tuple[float, float]] = []
    held: list[tuple[str, Float64, Head]] = []
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for fit, later in folds.split(kinds, kinds):
        head = _softmax([chosen[i] for i in fit])
        for i in later.tolist():
            for part in (chosen[i].inputs[:1], chosen[i].inputs):
                mean = head.evidence(part).mean(axis=0)
                held.append((chosen[i].kind, mean, head))
                best = int(mean[: len(head.classes)].argmax())
                if head.classes[best] == chosen[i].kind != ORDINARY:
                    right.append((mean[best], mean[len(head.classes) + best]))
    if not right:
        raise TooFewEpisodesError(
            "no held-back episode was named rightly; the types cannot be told apart by this model"
        )
    probabilities, distances = np.array(right).T
    limits = np.quantile(probabilities, REFUSED), np.quantile(distances, 1 - REFUSED)
    named = [(kind, _limited(head, *limits).name(mean, 1).type) for kind, mean, head in held]
    phases = {"open": named[::2], "close": named[1::2]}
    return FittedHead(
        _limited(_softmax(chosen), *limits),
        trained,
        untrained,
        {phase: macro_f1(pairs, trained) for phase, pairs in phases.items()},
    )


def _limited(head: Head, least_probability: float, most_distance: float) -> Head:
    return replace(
        head, least_probability=float(least_probability), most_distance=float(most_distance)
    )


def macro_f1(pairs: Sequence[tuple[str, str]], classes: Iterable[str]) -> float:
    """Mean F1 over the types, of `(planted, named)` pairs of anomalies; "unknown" is a miss."""
    types = sorted(set(classes) - {ORDINARY})
    known = [(kind, name) for kind, name in pairs if kind in types]
    return float(f1_score(*zip(*known, strict=True), labels=types, average="macro"))


def _softmax(episodes: Sequence[Episode]) -> Head:
    """Fit softmax and distances; without limits."""
    parts = [_thinned(each.inputs) for each in episodes]
    inputs = np.concatenate(parts)
    kinds = np.repeat([each.kind for each in episodes], [len(part) for part in parts])
    weight = np.concatenate([_weights(len(part)) for part in parts])
    centre = np.average(inputs, axis=0, weights=weight)
    spread = np.sqrt(np.average((inputs - centre) ** 2, axis=0, weights=weight))
    scale = np.where(spread > 1e-6, spread, 1.0)
    z = np.clip((inputs - centre) / scale, -CLIP, CLIP)
    classes = np.unique(kinds)
    for kind in classes:
        weight[kinds == kind] /= weight[kinds == kind].sum()
    weight *= len(episodes) / len(classes)
    softmax = LogisticRegression(C=INVERSE_PENALTY, max_iter=1_000)
    softmax.fit(z, kinds, sample_weight=weight)
    weights, bias = softmax.coef_, softmax.intercept_
    if len(classes) == 2:  # scikit-learn keeps one row for two classes
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    means = np.stack(
        [np.average(z[kinds == c], axis=0, weights=weight[kinds == c]) for c in classes]
    )
    apart = z - means[np.searchsorted(classes, kinds)]
    covariance = (apart * weight[:, None]).T @ apart / weight.sum() + RIDGE * np.eye(z.shape[1])
    whitener = np.linalg.cholesky(np.linalg.inv(covariance)).T
    return Head(
        classes=tuple(classes.tolist()),
        clip=CLIP,
        least_probability=0.0,
        most_distance=np.inf,
        centre=centre,
        scale=scale,
        weights=np.ascontiguousarray(weights),
        bias=bias,
        whitener=np.ascontiguousarray(whitener),
        means=np.ascontiguousarray(means @ whitener.T),
    )


def _thinned(inputs: Float64) -> Float64:
    """Keep some of an episode's alarms, the first and the last among them."""
    chosen = np.linspace(0, len(inputs) - 1, min(len(inputs), MOST_TICKS))
    return inputs[np.round(chosen).astype(np.int64)]


def _weights(ticks: int) -> Float64:
    """Weights of an episode's alarms, their sum 1."""
    weights = np.full(ticks, (1 - FIRST_SHARE) / ticks)
    weights[0] += FIRST_SHARE
    return weights


def name_of(head: Head, inputs: Float64) -> str:
    """Name an episode by its alarms, as the daemon would by then."""
    return head.name(head.evidence(inputs).sum(axis=0), len(inputs)).type


def add_head(
    source: Path,
    out: Path,
    fitted: FittedHead,
    *,
    version: str | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Write a copy of a model folder that carries the head.

    Parameters
    ----------
    source, out
        Model folders; `out` must not be `source`.
    fitted
        From `fit_head` over episodes of `source`.
    version
        Name of the new model; None: the old one's with "-named", once.
    overwrite
        Whether `out` may replace a model.
    """
    manifest, head = read_artifact(source).manifest, fitted.head
    section = Classifier(
        classes=list(head.classes),
        clip=head.clip,
        least_probability=head.least_probability,
        most_distance=head.most_distance,
        episodes=dict(fitted.episodes),
    )
    changes: dict[str, Any] = {
        "classifier": section,
        "version": version or f"{manifest.version.removesuffix('-named')}-named",
    }
    return write_with_head(
        out, source, head, manifest.model_copy(update=changes), overwrite=overwrite
    )
