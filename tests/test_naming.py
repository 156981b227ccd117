"""The head that names anomalies: arithmetic, "unknown", its folder, the events it names.

score    . . X X . X          X an alarm: its evidence is added to its episode's
evidence     e e   e
name     open: mean of the first; update, close: mean of all so far
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.artifact import (
    HEAD,
    HEAD_ARRAYS,
    MANIFEST,
    Artifact,
    ArtifactError,
    Classifier,
    read_artifact,
    write_with_head,
)
from detector.event_view import line_of
from detector.events import EpisodeBook, EpisodePolicy, event_schema
from detector.features import DEFAULT, FeatureSpec
from detector.naming import MEASURES, ORDINARY, TYPES, UNKNOWN, Head, head_inputs
from detector.pipeline import Pipeline
from detector.scorer import Scorer
from detector.ticks import TickBatch
from tests.models import random_artifact
from tests.streams import batches, market

CLASSES = ("fat_finger", "layering", ORDINARY, "wash_trades")


def random_head(latents: int, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Head:
    """Return a head with random arrays and limits that refuse nothing."""
    rng, size = np.random.default_rng(seed), latents + MEASURES
    return Head(
        classes=classes,
        clip=5.0,
        least_probability=0.0,
        most_distance=1e9,
        centre=rng.normal(size=size),
        scale=rng.uniform(0.5, 2.0, size),
        weights=rng.normal(size=(len(classes), size)),
        bias=rng.normal(size=len(classes)),
        whitener=np.triu(rng.normal(size=(size, size))),
        means=rng.normal(size=(len(classes), size)),
    )


def random_inputs(n: int, latents: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return latents and measures of ticks, some far out."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_t(2, (n, latents)).astype(np.float32),
        rng.lognormal(0.0, 2.0, (MEASURES, n)),
    )


def test_head_equals_its_formula() -> None:
    """Softmax and Mahalanobis distance, written with the textbook's matrix products."""
    head = random_head(7)
    latents, measures = random_inputs(50, 7)
    inputs = np.column_stack(
        [latents, np.log(measures[0]), np.log(measures[1]), np.log(1 + measures[2])]
    )
    z = np.clip((inputs - head.centre) / head.scale, -head.clip, head.clip)
    logits = z @ head.weights.T + head.bias
    odds = np.exp(logits)
    apart = (z @ head.whitener.T)[:, None, :] - head.means
    expected = np.hstack([odds / odds.sum(axis=1, keepdims=True), np.sqrt((apart**2).sum(axis=2))])
    found = head.evidence(head_inputs(latents, measures))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@given(st.integers(1, 40), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_evidence_of_a_tick_depends_on_nothing_around_it(n: int, seed: int) -> None:
    """A tick alone and a tick among others: the same evidence to the bit."""
    head = random_head(5)
    latents, measures = random_inputs(n, 5, seed)
    whole = head.evidence(head_inputs(latents, measures))
    for i in range(n):
        alone = head.evidence(head_inputs(latents[i : i + 1], measures[:, i : i + 1]))
        assert alone.tobytes() == whole[i].tobytes()


def total_of(probabilities: list[float], distances: list[float], ticks: int = 1) -> np.ndarray:
    """Return an episode's sum of evidence with these means."""
    return np.array([*probabilities, *distances]) * ticks


def test_sure_head_gives_the_likeliest_type() -> None:
    """The mean over the ticks decides, and its probability is told."""
    head = replace(random_head(2), least_probability=0.5, most_distance=3.0)
    name = head.name(total_of([0.1, 0.7, 0.1, 0.1], [9.0, 2.0, 9.0, 9.0], ticks=4), 4)
    assert (name.type, name.likeliest) == ("layering", "layering")
    assert name.probability == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("probabilities", "distances"),
    [
        ([0.1, 0.45, 0.3, 0.15], [9.0, 2.0, 9.0, 9.0]),  # no type is probable
        ([0.1, 0.7, 0.1, 0.1], [9.0, 3.1, 9.0, 9.0]),  # nothing like it was trained on
        ([0.0, 0.45, 0.55, 0.0], [9.0, 2.0, 2.0, 9.0]),  # a false alarm is likelier
    ],
)
def test_unsure_head_says_unknown(probabilities: list[float], distances: list[float]) -> None:
    """Improbable, far from all training, or like a false alarm: unknown, and what it is like."""
    head = replace(random_head(2), least_probability=0.5, most_distance=3.0)
    if probabilities[2] > 0.5:
        head = replace(head, least_probability=0.0)
    name = head.name(total_of(probabilities, distances), 1)
    assert (name.type, name.likeliest) == (UNKNOWN, "layering")


# ---- episodes -----------------------------------------------------------------------------------

SECOND = 1_000_000_000
POLICY = EpisodePolicy(close_ratio=0.5, quiet_s=2.0, update_interval_s=3.0)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 4), st.sampled_from([1.0, 6.0, 20.0])),
        min_size=1,
        max_size=60,
    ),
    st.lists(st.integers(0, 60), max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_episode_holds_the_evidence_of_its_alarms(
    steps: list[tuple[int, int, float]], cuts: list[int]
) -> None:
    """However ticks are cut into batches: the sum over the episode's alarms so far, in order."""
    n = len(steps)
    keys = np.array([key for key, _, _ in steps], np.int64)
    ts = np.cumsum([wait for _, wait, _ in steps]) * SECOND
    score = np.array([value for _, _, value in steps])
    evidence = np.random.default_rng(n).normal(size=(n, 3))
    book = EpisodeBook(4, POLICY, evidence=3)
    expected: dict[int, np.ndarray] = {}  # by instrument, of its open episode
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    for a, b in pairwise(edges):
        measures = np.full((6, b - a), 10.0)
        measures[0] = score[a:b]
        alarms = np.flatnonzero(score[a:b] >= 10.0)
        found = book.step(
            *((keys[a:b] % 4).astype(np.int32), keys[a:b], ts[a:b]),
            *(np.arange(a, b), np.zeros(b - a, np.int32), measures),
            *(alarms, evidence[a:b][alarms]),
        )
        for row in range(a, b):
            mine = [t for t in found if t.row == row - a]
            for t in mine:
                if t.phase == "close":
                    assert t.evidence.tobytes() == expected.pop(t.key).tobytes()
            key = int(keys[row])
            if score[row] >= 10.0:
                opens = any(t.phase == "open" for t in mine)
                before = np.zeros(3) if opens else expected[key]
                expected[key] = evidence[row] if opens else before + evidence[row]
            for t in mine:
                if t.phase != "close":
                    assert t.evidence.tobytes() == expected[t.key].tobytes()


# ---- the folder ---------------------------------------------------------------------------------


def named_artifact(folder: Path, threshold: float = 1.0, spec: FeatureSpec = DEFAULT) -> Artifact:
    """Return a random model that carries a random head."""
    artifact = random_artifact(folder / "plain", spec, threshold=threshold)
    head = random_head(artifact.weights["stage2.centre"].size)
    section = Classifier(
        classes=list(head.classes),
        clip=head.clip,
        least_probability=head.least_probability,
        most_distance=head.most_distance,
        episodes={"layering": 20},
    )
    manifest = artifact.manifest.model_copy(update={"classifier": section, "version": "named"})
    return write_with_head(folder / "named", folder / "plain", head, manifest)


def test_head_comes_back_from_its_folder(tmp_path: Path) -> None:
    """Every array and limit as it was written; everything else as in the model without it."""
    written = named_artifact(tmp_path).head
    found = read_artifact(tmp_path / "named")
    head = random_head(found.weights["stage2.centre"].size)
    assert written is not None
    assert found.head is not None
    for name in HEAD_ARRAYS:
        np.testing.assert_array_equal(getattr(found.head, name), getattr(head, name))
    assert found.head.classes == CLASSES
    plain = read_artifact(tmp_path / "plain")
    assert plain.head is None
    assert found.model_hash != plain.model_hash
    for name, entry in plain.manifest.files.items():
        assert found.manifest.files[name] == entry


def test_changed_head_is_refused(tmp_path: Path) -> None:
    """One flipped byte of the head, and the folder is not read."""
    named_artifact(tmp_path)
    path = tmp_path / "named" / HEAD
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"head\.safetensors"):
        read_artifact(tmp_path / "named")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["layering", "gossip"]}, "gossip"),
        ({"classes": ["layering", "layering", ORDINARY, "wash_trades"]}, "twice"),
        ({"classes": ["layering", "wash_trades"]}, "expected float64"),
        ({"most_distance": -1.0}, "most_distance"),
        (None, "classifier"),
    ],
)
def test_wrong_classifier_is_refused(
    tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    """Classes that are none, or that the arrays do not fit; a head without its section."""
    named_artifact(tmp_path)
    path = tmp_path / "named" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["classifier"] = None if change is None else manifest["classifier"] | change
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message):
        read_artifact(tmp_path / "named")


def test_model_is_never_its_own_target(tmp_path: Path) -> None:
    """Folders do not change: a head goes into a copy."""
    artifact = named_artifact(tmp_path)
    head = artifact.head
    assert head is not None
    with pytest.raises(ArtifactError, match="another folder"):
        write_with_head(
            *(tmp_path / "named", tmp_path / "named", head, artifact.manifest), overwrite=True
        )
    shutil.rmtree(tmp_path / "plain")
    with pytest.raises(ArtifactError, match="cannot be read"):
        write_with_head(tmp_path / "more", tmp_path / "plain", head, artifact.manifest)


# ---- events -------------------------------------------------------------------------------------


def with_pauses(n: int) -> Any:
    """Ticks of three instruments: warm after a first minute of silence, closed by a second."""
    ticks = market(n, 3, seed=2)
    for name in ("ts_event", "ts_recv"):
        for begins in (n // 3, 2 * n // 3):
            ticks[name][begins:] += np.uint64(60 * SECOND)
    return ticks


def events_of(artifact: Artifact, parts: list[TickBatch]) -> list[dict[str, Any]]:
    """Return the events of a fresh pipeline over these batches."""
    pipeline = Pipeline(artifact.features, Scorer(artifact))
    return [event.to_dict(1) for part in parts for event in pipeline.process(part).events]


def test_events_carry_names_that_no_batch_changes(tmp_path: Path) -> None:
    """Valid against the schema, and the same however the stream is cut."""
    artifact = named_artifact(tmp_path)
    ticks = with_pauses(3_000)
    whole = events_of(artifact, batches(ticks, []))
    assert {event["phase"] for event in whole} >= {"open", "close"}
    for event in whole:
        jsonschema.validate(event, dict(event_schema()))
        assert event["anomaly_type"] in TYPES
        assert event["likeliest_type"] in set(CLASSES) - {ORDINARY}
    assert events_of(artifact, batches(ticks, [1, 2, 400, 401, 1_000])) == whole


def test_model_without_head_gives_no_names(tmp_path: Path) -> None:
    """The three fields are absent, and everything else is as with the head."""
    ticks = with_pauses(1_500)
    named = events_of(named_artifact(tmp_path), batches(ticks, []))
    plain = events_of(read_artifact(tmp_path / "plain"), batches(ticks, []))
    fields = ("anomaly_type", "likeliest_type", "type_probability")
    assert plain
    for with_name, without in zip(named, plain, strict=True):
        assert not set(fields) & set(without)
        shown = {k: v for k, v in with_name.items() if k not in (*fields, "model")}
        assert shown == {k: v for k, v in without.items() if k != "model"}


@pytest.mark.parametrize(
    ("kind", "text"), [("layering", "layering 0.62"), (UNKNOWN, "unknown (like layering 0.62)")]
)
def test_line_tells_the_name(tmp_path: Path, kind: str, text: str) -> None:
    """People read the name, and what an unknown one is like."""
    event = events_of(named_artifact(tmp_path), batches(with_pauses(1_500), []))[0]
    event |= {"anomaly_type": kind, "likeliest_type": "layering", "type_probability": 0.62}
    assert text in line_of(json.dumps(event).encode()).plain
