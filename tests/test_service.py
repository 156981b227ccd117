"""From a configuration to what runs: the model that is to follow the one in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.artifact import ArtifactError, sign_artifact
from detector.config import Config, KafkaConfig, ModelConfig
from detector.features import DEFAULT, vector_spec
from detector.kernels_scoring import score_rows
from detector.service import load_next, transactional_id
from tests.models import random_artifact
from tests.test_signing import make_key


def test_the_next_model_is_ready_and_compiles_nothing(tmp_path: Path) -> None:
    """A model of other sizes and another normaliser runs the kernels that are compiled already."""
    random_artifact(tmp_path / "a", version="a")
    b = random_artifact(tmp_path / "b", version="b", seed=1, latent=4, budget=5.0)
    load_next(tmp_path / "a", Config(), DEFAULT)
    compiled = list(score_rows.signatures)
    loaded = load_next(tmp_path / "b", Config(), DEFAULT)
    assert (loaded.scorer.version, loaded.scorer.model_hash) == ("b", b.model_hash)
    assert loaded.created == b.manifest.created
    assert list(score_rows.signatures) == compiled


def test_a_next_model_of_other_features_is_refused(tmp_path: Path) -> None:
    """The running windows are not those it was trained on; the message says what takes it."""
    random_artifact(tmp_path / "model", vector_spec(("x", "y")))
    with pytest.raises(ArtifactError, match=r"running windows are .*; restart tapewatch"):
        load_next(tmp_path / "model", Config(), DEFAULT)


def test_a_next_model_needs_the_signature_that_the_first_one_needed(tmp_path: Path) -> None:
    """With a key set, an unsigned one or one of another key is not put in force; ours is."""
    folder = tmp_path / "model"
    random_artifact(folder)
    private, public = make_key(tmp_path, "mine")
    other, _ = make_key(tmp_path, "other")
    config = Config(model=ModelConfig(path=folder, public_key=public))
    with pytest.raises(ArtifactError, match="sign"):
        load_next(folder, config, DEFAULT)
    sign_artifact(folder, other)
    with pytest.raises(ArtifactError, match="sign"):
        load_next(folder, config, DEFAULT)
    sign_artifact(folder, private)
    assert load_next(folder, config, DEFAULT).scorer.model_hash


def test_no_two_members_share_a_transactional_id() -> None:
    """Not even those whose names only look alike: they would fence each other for ever."""

    def name(group: str, member: str) -> str:
        kafka = KafkaConfig(group_id=group, properties={"group.instance.id": member})
        return transactional_id(Config(kafka=kafka))

    assert name("a", "b-c") != name("a-b", "c")
    assert name("a", "b") == name("a", "b"), "a restart goes on as the same"
    assert name("a", "b").startswith("a-b-"), "access is given by the group's name"
    assert transactional_id(Config()) != transactional_id(Config()), "without a member's name"
