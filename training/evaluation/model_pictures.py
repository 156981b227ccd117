"""Pictures of the model: how it was trained, what its errors are, what it is surprised by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from training.evaluation.charts import (
    BAD,
    COLOURS,
    MARKERS,
    OURS,
    WARM,
    Picture,
    Theme,
    figure,
    legend_below,
    picture,
)
from training.evaluation.tables import plain
from training.labels import KIND_INDEX
from training.report import NARROW

Float64 = npt.NDArray[np.float64]

BINS: Final = 90
WIDE: Final = 1_000.0
"""From this ratio of its ends on a logarithmic axis holds three powers of ten."""
TOP_FEATURES: Final = 30
MOST_RESIDUAL: Final = 10.0
"""Residuals beyond are drawn as this."""


def training_curves(summary: Mapping[str, Any]) -> Picture | None:
    """Losses by epoch of both stages; None where the summary does not have them."""
    stages = [_histories(summary.get(name)) for name in ("stage1", "stage2")]
    if not all(stages):
        return None

    def draw(theme: Theme) -> Figure:
        drawn = figure(3.4)
        titles = ("Stage 1: clipped z-scores", "Stage 2: latent of stage 1")
        for axes, histories, title in zip(drawn.subplots(1, 2), stages, titles, strict=True):
            for number, history in enumerate(histories):
                _curve(axes, history, theme, first=number == 0)
            axes.set(title=title, xlabel="epoch", ylabel="mean squared error")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(drawn, axes)
        return drawn

    return picture(
        "Training curves",
        "Mean squared error by epoch, on the rows fitted and on the last tenth of the training "
        "part; dotted: the epoch whose weights were kept.",
        draw,
    )


def _histories(found: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401 - whatever JSON holds
    """One history, or one for each member of an ensemble."""
    every = found if isinstance(found, list) else [found]
    return [one for one in every if isinstance(one, Mapping) and one.get("loss")]


def _curve(axes: Axes, history: Mapping[str, Any], theme: Theme, *, first: bool) -> None:
    epochs = np.arange(1, len(history["loss"]) + 1)
    axes.plot(epochs, history["loss"], color=OURS, marker=".", label="fitted" if first else None)
    if later := history.get("later_loss"):
        label = "later rows" if first else None
        axes.plot(epochs, later, color=WARM, marker=".", label=label)
    if (best := history.get("best_epoch")) is not None:
        axes.axvline(best + 1, color=theme.muted, linestyle=":", label="kept" if first else None)


def error_histograms(
    calibration: Sequence[Float64],
    ordinary: Sequence[Float64],
    anomalous: Sequence[Float64],
    threshold: float,
) -> Picture:
    """Distributions of both errors and the score, in this order, with the model's threshold."""

    def draw(theme: Theme) -> Figure:
        drawn = figure(3.8)
        titles = ("Stage 1 error", "Stage 2 error", "Score")
        for place, (axes, title) in enumerate(zip(drawn.subplots(1, 3), titles, strict=True)):
            parts = (
                (calibration[place], theme.ordinary, "calibration"),
                (ordinary[place], OURS, "ordinary, judged"),
                (anomalous[place], BAD, "anomalous, judged"),
            )
            _histogram(axes, parts)
            if place == 2:
                axes.axvline(threshold, color=theme.ink, linestyle="--", label="threshold")
            axes.set(title=title, ylabel="share of rows" if place == 0 else None)
        legend_below(drawn, axes)
        return drawn

    return picture(
        "Errors and score",
        "Shares of rows on logarithmic axes: calibration part, ordinary and anomalous rows that "
        f"are judged. Dashed: the model's own pooled threshold, {threshold:.4g}.",
        draw,
    )


def _histogram(axes: Axes, parts: Sequence[tuple[Float64, str, str]]) -> None:
    every = np.concatenate([values for values, *_ in parts])
    every = every[every > 0]
    low, high = (every.min(), every.max()) if len(every) else (0.1, 1.0)
    bins = np.geomspace(low * 0.999, high * 1.1, BINS).tolist()
    for values, colour, label in parts:
        if len(values):
            share = np.full(len(values), 1 / len(values))
            axes.hist(
                values, bins, weights=share, color=colour, histtype="step", linewidth=1.5,
                label=label,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(_ticks(low, high))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _ticks(low: float, high: float) -> Locator:
    """Ticks of a logarithmic axis: at least three labels, whatever its ends."""
    if high < NARROW * low:
        return MaxNLocator(4)
    return LogLocator(subs=(1, 2, 5)) if high < WIDE * low else LogLocator(numticks=6)


def residual_map(residuals: Float64, kind: npt.NDArray[np.uint8], names: Sequence[str]) -> Picture:
    """Which features surprise stage 1, by type.

    Parameters
    ----------
    residuals
        `(m, F)` observed less expected in training standard deviations.
    kind
        `(m,)` types, 0 ordinary.
    names
        Of the features.
    """
    columns = ["ordinary", *(k for k, index in KIND_INDEX.items() if np.any(kind == index))]
    table = np.stack(
        [
            np.mean(np.minimum(np.abs(residuals[kind == index]), MOST_RESIDUAL), axis=0)
            for index in (0 if name == "ordinary" else KIND_INDEX[name] for name in columns)  # type: ignore[index]
        ],
        axis=1,
    )
    top = _standing_out(table[:, 1:] - table[:, :1])

    def draw(theme: Theme) -> Figure:
        drawn = figure(1.6 + 0.235 * len(top), 9.5)
        axes = drawn.subplots()
        shown = axes.imshow(table[top], aspect="auto", cmap=theme.map, vmin=0)
        axes.grid(visible=False)
        axes.set_yticks(range(len(top)), [names[i] for i in top], fontsize=8.5)
        axes.set_xticks(range(len(columns)), [plain(str(name)) for name in columns])
        axes.tick_params(axis="x", labelrotation=35, length=0)
        axes.tick_params(axis="y", length=0)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        axes.spines[:].set_visible(False)
        bar = drawn.colorbar(shown, ax=axes, shrink=0.6, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("mean |observed - expected|, training sd")
        return drawn

    return picture(
        "What stage 1 did not expect",
        f"Mean absolute residual of each feature by type, in the feature's training standard "
        f"deviations, single rows cut off at {MOST_RESIDUAL:g}. For each type the features that "
        "stand out most from ordinary rows.",
        draw,
    )


def _standing_out(above: Float64) -> list[int]:
    """Features of `(F, types)` excesses over ordinary rows: the largest ones of each type."""
    each = max(1, TOP_FEATURES // above.shape[1])
    order = np.argsort(-above, axis=0, kind="stable")[:each]
    return list(dict.fromkeys(order.T.ravel().tolist()))


def latent_plane(plane: Float64, kind: npt.NDArray[np.uint8]) -> Picture:
    """`(m, 2)` latent of stage 2, coloured by `(m,)` type."""

    def draw(theme: Theme) -> Figure:
        drawn = figure(5.6, 9.0)
        axes = drawn.subplots()
        plain_rows = plane[kind == 0]
        axes.scatter(
            plain_rows[:, 0],
            plain_rows[:, 1],
            s=3,
            color=theme.ordinary,
            alpha=0.35,
            linewidths=0,
            label="ordinary",
        )
        for name, index in KIND_INDEX.items():
            mine = plane[kind == index]
            if len(mine):
                axes.scatter(
                    mine[:, 0], mine[:, 1], s=12, color=COLOURS[name], alpha=0.75, linewidths=0,
                    marker=MARKERS[name], label=plain(name),
                )  # fmt: skip
        for axis, values in ((axes.set_xlim, plane[:, 0]), (axes.set_ylim, plane[:, 1])):
            low, high = np.quantile(values, (0.005, 0.995)).tolist()
            edge = 0.05 * (high - low) or 1.0
            axis(low - edge, high + edge)
        axes.set(xlabel="first unit", ylabel="second unit")
        marks = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), markerscale=2)
        for handle in marks.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
        return drawn

    return picture(
        "Latent plane of stage 2",
        "What stage 2 keeps of a tick: its two latent units, for a sample of ordinary rows and of "
        "each type. The outermost hundredth of the rows lies beyond the edges.",
        draw,
    )
