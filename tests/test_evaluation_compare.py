"""Ahead or not: paired differences over seeds against their spread."""

from __future__ import annotations

from typing import Any

import pytest

from training.evaluation.compare import comparison, paired


def a_run(detector: str, seed: int, auroc: float, recall: float | None = None) -> dict[str, Any]:
    """A run with one or two of the figures that are compared."""
    run: dict[str, Any] = {
        "detector": detector,
        "seed": seed,
        "ranking": {"causal": {"all": {"auroc": auroc}}},
    }
    if recall is not None:
        run["episodes"] = {"6 an hour, frozen": {"mean_recall_over_types": recall}}
    return run


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([0.9, 0.8, 0.7], [0.8, 0.7, 0.6], "ahead"),
        ([0.9, 0.8], [0.9, 0.6], "level"),
        ([0.5, 0.6], [0.7, 0.9], "behind"),
        ([0.5, 0.5], [0.5, 0.5], "level"),
        ([0.9], [0.1], None),
    ],
)
def test_verdicts(ours: list[float], theirs: list[float], verdict: str | None) -> None:
    """Above the deviation of the differences; what is equal is level; one seed tells nothing."""
    assert paired(ours, theirs)["verdict"] == verdict


def test_differences_are_paired() -> None:
    """A seed that is hard for both costs neither: unpaired spreads would hide this."""
    found = paired([0.95, 0.55], [0.94, 0.53])
    assert found["verdict"] == "ahead"
    assert found["mean"] == pytest.approx(0.015)


def test_comparison_pairs_by_seed_whatever_the_order() -> None:
    """Seeds that only one detector has are left out, and figures that a seed lacks."""
    runs = [
        a_run("other", 2, 0.5),
        a_run("ours", 1, 0.9, recall=0.4),
        a_run("other", 1, 0.8, recall=0.1),
        a_run("ours", 2, 0.6, recall=0.4),
        a_run("ours", 3, 0.1),
    ]
    found = comparison(runs, "ours")
    assert set(found) == {"other"}
    assert found["other"]["causal AUROC"]["mean"] == pytest.approx(0.1)
    assert found["other"]["causal AUROC"]["seeds"] == 2
    assert "recall at 6 an hour, frozen" not in found["other"]
