"""Tables and pictures of the report that the synthetic desk does not show."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes

from detector.placing import Planted
from detector.scripts import AnomalyKind
from detector.ticks import NS_PER_S
from training.evaluation import charts, page, tables
from training.evaluation.alarm_pictures import confusion, samples
from training.evaluation.episodes import Episodes, verdicts
from training.evaluation.model_pictures import TOP_FEATURES, _ticks, residual_map, training_curves
from training.evaluation.operating import Judged, Trial
from training.evaluation.two_stage import STAGE1, TWO_STAGE


def pixels(png: bytes) -> np.ndarray:
    """Decode a picture."""
    return matplotlib.image.imread(io.BytesIO(png), format="png")


def test_a_picture_is_drawn_on_both_grounds() -> None:
    """Equal in size, light and dark at the corner."""
    made = confusion(["layering", "layering", "feed_gap"], ["layering", "unknown", "feed_gap"])
    light, dark = pixels(made.light), pixels(made.dark)
    assert light.shape == dark.shape
    assert light[0, 0, :3].mean() > 0.95
    assert dark[0, 0, :3].mean() < 0.2
    assert "3 in all" in made.caption


def test_an_anomaly_with_a_masked_episode_is_not_called_missed() -> None:
    """Of two anomalies that none told of, the one in which an episode opened is masked."""
    planted = tuple(
        Planted(AnomalyKind.LAYERING, 1, name, start * NS_PER_S, (start + 1) * NS_PER_S, {}, 0)
        for name, start in (("AAPL", 100), ("MSFT", 300))
    )
    ts = np.arange(60, 400, dtype=np.int64) * NS_PER_S
    keys, ones = np.ones(len(ts), np.int64), np.ones(len(ts))
    trial = Trial(keys, ts, keys.astype(np.int32), planted, {1: "AAPL"})
    opened = np.array([80, 100]) * NS_PER_S
    episodes = Episodes(np.ones(2, np.int64), opened, opened + NS_PER_S, np.array([20, 40]))
    found = verdicts(episodes, planted)
    titles: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "set_title", lambda _, text, **__: titles.append(text))
        samples(trial, Judged(ones, episodes, found, {}), ones, ones)
    assert set(titles) == {"Masked: layering, AAPL", "Missed: layering, MSFT"}


def test_reasons_for_dashes_are_told_once() -> None:
    """Operating points without thresholds, and why, over all detectors and seeds."""
    refused = {"6 an hour, frozen": "too short", "6 an hour, adaptive": "too short"}
    runs = [{"episodes": {"refused": refused}}, {"episodes": {"refused": refused}}]
    told = tables.without_thresholds({"time_ordered": {"runs": runs}})
    assert told == ["no thresholds for 6 an hour, frozen; 6 an hour, adaptive: too short"]
    assert tables.without_thresholds({"time_ordered": {"runs": []}}) == []


@pytest.mark.parametrize("ends", [(0.9, 1.6), (1.1, 1.9), (0.5, 6.0), (2.0, 70.0), (1e-3, 50.0)])
def test_an_axis_of_errors_has_several_labels(ends: tuple[float, float]) -> None:
    """However narrow: one power of ten alone says nothing of the scale."""
    inside = [tick for tick in _ticks(*ends).tick_values(*ends) if ends[0] <= tick <= ends[1]]
    assert len(inside) >= 3


def test_training_curves_of_one_net_and_of_several() -> None:
    """A summary states one history a stage, or one for each member; without any, no picture."""
    one = {"loss": [1.0, 0.5], "later_loss": [1.1, 0.6], "best_epoch": 1}
    assert training_curves({"stage1": one, "stage2": one}) is not None
    assert training_curves({"stage1": [one, one], "stage2": [one, one]}) is not None
    assert training_curves({"stage1": one}) is None
    assert training_curves({}) is None


def test_the_map_shows_what_stands_out_of_each_type() -> None:
    """A feature that one type alone moves is there, however far others move others."""
    residuals = np.full((60, 200), 0.1)
    kind = np.repeat([0, 1, 2], 20).astype(np.uint8)
    residuals[kind == 1, :40] = 9.0
    residuals[kind == 2, 150] = 1.0
    names = [f"f{i}" for i in range(200)]
    drawn: list[Any] = []
    real = charts.figure

    def watched(*size: float) -> Any:
        drawn.append(real(*size))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.evaluation.model_pictures.figure", watched)
        residual_map(residuals, kind, names)
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert "f150" in labels
    assert len(labels) <= TOP_FEATURES


def test_spreads_are_over_seeds() -> None:
    """One value has none; what no seed has is told as nothing."""
    assert tables.spread([0.5]) == "0.500"
    assert tables.spread([0.4, 0.6]) == "0.500 ± 0.141"
    assert tables.spread([None, None]) == tables.NOTHING


def test_detectors_keep_their_order() -> None:
    """Ours first, whatever the order of the runs."""
    runs = [{"detector": name} for name in (STAGE1, "5-NN", TWO_STAGE)]
    assert tables.detectors(runs) == [TWO_STAGE, STAGE1, "5-NN"]


def test_text_of_a_report_cannot_break_the_page() -> None:
    """File names and symbols are escaped."""
    shown = page._table(("a <b>", ["<i>"], [["x & y", "1 ± 2"]]))
    assert "<b>" not in shown
    assert "x &amp; y" in shown
    assert "1<br><small>± 2</small>" in shown
