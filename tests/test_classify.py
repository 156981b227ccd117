"""Training the head that names anomalies: labels of episodes, the fit, the command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from detector.artifact import Artifact, read_artifact
from detector.errors import RefusedError
from detector.features import DEFAULT
from detector.naming import ORDINARY, UNKNOWN
from detector.offline import Files
from detector.placing import Planted
from detector.planting import plan
from detector.readers import write_parquet
from detector.scripts import AnomalyKind
from detector.synthetic import DEMO_START_NS, demo_market, generate
from detector.ticks import NS_PER_S, TickBatch
from training import classify
from training.classify import (
    Episode,
    FittedHead,
    TooFewEpisodesError,
    add_head,
    episodes_of,
    fit_head,
    macro_f1,
    name_of,
)
from training.cli import register
from training.datasets import Split
from training.halves import Half
from training.labels import Label, write_labels
from training.train import Options, train

KINDS = (AnomalyKind.PUMP_AND_DUMP, AnomalyKind.FAT_FINGER, AnomalyKind.CROSSED_BOOK)
SECONDS = 600
MARKET = demo_market(instruments=12)


def lessons(seed: int) -> tuple[Planted, ...]:
    """Return 16 anomalies of each kind."""
    end = DEMO_START_NS + SECONDS * NS_PER_S
    return plan(
        *(MARKET.symbols, 16 * len(KINDS), DEMO_START_NS + 120 * NS_PER_S, end),
        min_separation_s=45.0,
        kinds=KINDS,
        seed=seed,
    )


def ticks_with(planted: tuple[Planted, ...] = ()) -> Iterator[TickBatch]:
    """Yield the market's ticks with these anomalies."""
    return generate(MARKET, DEMO_START_NS, SECONDS, planted)


def labels_of(planted: tuple[Planted, ...]) -> list[Label]:
    """Return their labels."""
    return [Label(each, Half.BOTH, 0) for each in planted]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return a model quickly trained on the clean market."""
    options = Options(
        split=Split(train=0.6, calibration=0.39, gap_s=1.0), epochs=2, quantile=0.9998
    )
    folder = tmp_path_factory.mktemp("classify") / "model"
    return train(ticks_with(), DEFAULT, folder, options)


@pytest.fixture(scope="module")
def episodes(artifact: Artifact) -> list[Episode]:
    """Return the labelled episodes of one planted stream."""
    planted = lessons(1)
    return episodes_of(artifact, ticks_with(planted), labels_of(planted))


@pytest.fixture(scope="module")
def fitted(episodes: list[Episode]) -> FittedHead:
    """Return a head of them."""
    return fit_head(episodes)


def test_head_names_anomalies_it_did_not_see(artifact: Artifact, fitted: FittedHead) -> None:
    """Other anomalies of the trained kinds get their names, far beyond the third of a guess."""
    planted = lessons(2)
    found = episodes_of(artifact, ticks_with(planted), labels_of(planted))
    pairs = [
        (each.kind, name_of(fitted.head, each.inputs))
        for each in found
        if each.kind in fitted.episodes and each.kind != ORDINARY
    ]
    assert len(pairs) > 20
    assert macro_f1(pairs, fitted.episodes) > 0.8
    assert fitted.held_out["close"] > 0.8


def test_episodes_are_cut_and_labelled_as_published(
    artifact: Artifact, episodes: list[Episode]
) -> None:
    """As many episodes as opening events, and the alarms of each are those of the pipeline."""
    planted = lessons(1)
    again = episodes_of(
        artifact,
        (batch[a : a + 100] for batch in ticks_with(planted) for a in range(0, len(batch), 100)),
        labels_of(planted),
    )
    assert [(e.kind, e.anomaly) for e in again] == [(e.kind, e.anomaly) for e in episodes]
    for one, other in zip(again, episodes, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    found = Counter(each.kind for each in episodes)
    assert min(found["pump_and_dump"], found["fat_finger"]) >= 8
    for each in episodes:
        if each.anomaly:
            assert planted[each.anomaly - 1].kind.value == each.kind


@pytest.mark.parametrize(
    ("opened_s", "last_s", "expected"),
    [
        (99, 99, ORDINARY),
        (100, 100, "fat_finger"),
        (111, 111, "fat_finger"),  # up to a second after its end
        (112, 112, ""),  # its aftermath
        (99, 101, ""),  # open when it began
        (170, 170, ""),
        (171, 171, ORDINARY),
    ],
)
def test_label_of_an_episode(opened_s: int, last_s: int, expected: str) -> None:
    """Within the anomaly its kind, near it nothing, far from it ordinary."""
    planted = Planted(
        AnomalyKind.FAT_FINGER, 1, "X", 100 * NS_PER_S, 110 * NS_PER_S, {"side": 1.0}, 0
    )
    label = Label(planted, Half.BOTH, 0)
    kind, anomaly = classify._label_of(opened_s * NS_PER_S, last_s * NS_PER_S, [(3, label)])
    assert kind == expected
    assert anomaly == (3 if expected == "fat_finger" else 0)


def test_head_is_scikit_learns_softmax() -> None:
    """Probabilities are those of the fitted regression, for two classes and for more."""
    rng = np.random.default_rng(0)
    for kinds in (("layering", "feed_gap"), ("layering", "feed_gap", ORDINARY)):
        found = [
            Episode(kind, 1, rng.normal(loc, 1.0, (rng.integers(1, 9), 6)))
            for loc, kind in enumerate(kinds)
            for _ in range(30)
        ]
        head = classify._softmax(found)
        inputs = np.concatenate([each.inputs for each in found])
        z = np.clip((inputs - head.centre) / head.scale, -head.clip, head.clip)
        model = LogisticRegression()
        model.classes_ = np.array(head.classes)
        model.coef_, model.intercept_ = head.weights, head.bias
        n = len(kinds)
        evidence = head.evidence(inputs)
        if n > 2:
            np.testing.assert_allclose(evidence[:, :n], model.predict_proba(z), rtol=1e-9)
        own = {
            kind: evidence[np.concatenate([[e.kind == kind] * len(e.inputs) for e in found])]
            for kind in kinds
        }
        for c, kind in enumerate(head.classes):  # each class is nearest and likeliest to itself
            assert own[kind][:, c].mean() > 1 / n
            assert own[kind][:, n:].mean(axis=0).argmin() == c


def test_stranger_is_unknown(fitted: FittedHead) -> None:
    """Latents far from all that was trained on get no name."""
    inputs = np.where(np.arange(len(fitted.head.centre)) % 2, 50.0, -50.0)[None, :]
    assert name_of(fitted.head, inputs) == UNKNOWN


def test_too_few_episodes_are_refused(episodes: list[Episode]) -> None:
    """One kind alone is no choice, and the message counts what there was."""
    only = [each for each in episodes if each.kind == "fat_finger"]
    with pytest.raises(TooFewEpisodesError, match="fat_finger"):
        fit_head(only)


def test_labels_that_no_alarm_lies_in_are_named_as_the_reason(episodes: list[Episode]) -> None:
    """False alarms alone mean labels of other ticks, not too few plants."""
    false = [replace(each, kind=ORDINARY) for each in episodes]
    for given in (false, []):
        with pytest.raises(TooFewEpisodesError, match="labels were written with these ticks"):
            fit_head(given)


def test_command_writes_a_copy_with_a_head(
    artifact: Artifact, fitted: FittedHead, tmp_path: Path
) -> None:
    """`classify` reads ticks and labels from files and tells what it trained on."""
    planted = lessons(1)
    write_parquet(tmp_path / "ticks.parquet", ticks_with(planted))
    write_labels(tmp_path / "labels.parquet", labels_of(planted))
    source = tmp_path / "model"
    _copy(artifact, source)
    app = typer.Typer()
    register(app)
    arguments = ["classify", "--model", source, "--out", tmp_path / "named", "--json"]
    arguments += ["--ticks", tmp_path / "ticks.parquet", "--labels", tmp_path / "labels.parquet"]
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    named = read_artifact(tmp_path / "named")
    assert named.head is not None
    assert facts["model_hash"] == named.model_hash
    assert set(facts["episodes"]) == set(named.head.classes)
    found = episodes_of(
        named, Files((tmp_path / "ticks.parquet",)).batches(DEFAULT), labels_of(planted)
    )
    assert sum(name_of(named.head, each.inputs) == each.kind for each in found) > 20
    assert named.version == f"{artifact.version}-named"
    twice = add_head(tmp_path / "named", tmp_path / "twice", fitted)
    assert twice.version == named.version
    other = [replace(each, ticks=5) for each in labels_of(planted)]
    write_labels(tmp_path / "other.parquet", other)
    wrong = [*arguments[:4], tmp_path / "other", *arguments[5:-1], tmp_path / "other.parquet"]
    refused = CliRunner().invoke(app, [str(each) for each in wrong]).exception
    assert isinstance(refused, RefusedError)
    assert "have other ticks than the labels state" in str(refused)
    again = CliRunner().invoke(app, [str(each) for each in [*arguments, "--labels", "more"]])
    assert isinstance(again.exception, RefusedError)


def _copy(artifact: Artifact, folder: Path) -> None:
    """Write the artifact's folder again."""
    from detector.artifact import write_artifact  # noqa: PLC0415

    write_artifact(folder, artifact.manifest, artifact.weights, artifact.tables, {})
