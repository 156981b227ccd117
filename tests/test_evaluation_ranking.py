"""AUROC and average precision, causal and delayed, against scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from training.evaluation.ranking import DELAYED_EVENTS, curves, delayed, ranking
from training.labels import KIND_INDEX


@given(seed=st.integers(0, 10_000), levels=st.integers(2, 50))
def test_figures_are_scikit_learns(seed: int, levels: int) -> None:
    """Overall and by type, with many ties and with few; a type meets ordinary rows alone."""
    rng = np.random.default_rng(seed)
    kind = rng.choice([0, 0, 0, 1, 3], 80).astype(np.uint8)
    kind[:3] = 0, 1, 3
    score = rng.integers(0, levels, 80) / levels + 0.3 * (kind > 0)
    found = curves(score, kind)
    names = {index: name.value for name, index in KIND_INDEX.items()}
    assert set(found) == {"all", names[1], names[3]}
    for name, rows, truth in (
        ("all", kind >= 0, kind > 0),
        (names[1], (kind == 0) | (kind == 1), kind == 1),
        (names[3], (kind == 0) | (kind == 3), kind == 3),
    ):
        wanted = truth[rows], score[rows]
        assert found[name].auroc == pytest.approx(roc_auc_score(*wanted))
        assert found[name].ap == pytest.approx(average_precision_score(*wanted))


def test_nothing_to_rank() -> None:
    """Rows of one sort alone give no figure instead of a wrong one."""
    assert curves(np.arange(5.0), np.zeros(5, np.uint8)) == {}
    assert curves(np.arange(5.0), np.ones(5, np.uint8)) == {}
    assert curves(np.empty(0), np.empty(0, np.uint8)) == {}


@given(seed=st.integers(0, 1_000))
def test_delayed_is_a_mean_over_what_follows(seed: int) -> None:
    """The event and the next 14 of its instrument; fewer at the end; never one before."""
    rng = np.random.default_rng(seed)
    keys, score = rng.integers(1, 4, 90), rng.normal(size=90)
    found = delayed(score, keys)
    for row in range(90):
        mine = [i for i in range(row, 90) if keys[i] == keys[row]][: DELAYED_EVENTS + 1]
        assert found[row] == pytest.approx(np.mean(score[mine]))


def test_rows_that_were_not_scored_do_not_count() -> None:
    """NaN outside of the rows to judge and the ones after them changes nothing."""
    rng = np.random.default_rng(3)
    kind = (rng.random(200) < 0.2).astype(np.uint8)
    score, keys = rng.normal(size=200) + kind, np.ones(200, np.int64)
    test = np.zeros(200, bool)
    test[50:100] = True
    whole = ranking(score, keys, kind, test)
    score[:50] = score[100 + DELAYED_EVENTS :] = np.nan
    assert ranking(score, keys, kind, test) == whole
    assert whole["causal"]["all"]["auroc"] != whole["delayed"]["all"]["auroc"]
