"""Pictures of a training, as PNG bytes: losses by epoch, errors against the threshold."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from training.calibrate import Scored
from training.stages import History

Float64 = npt.NDArray[np.float64]

FITTED: Final = "#1f6f8b"
LATER: Final = "#d1603d"
DPI: Final = 110
BINS: Final = 120

NARROW: Final = 8.0
"""Below this ratio of its ends a logarithmic axis holds one round number or none: plain ticks."""


def training_curves(stages: Sequence[History]) -> bytes:
    """Mean squared error of each stage by epoch, and the epoch whose weights were kept."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    titles = ("Stage 1: clipped z-scores", "Stage 2: latent of stage 1")
    for axes, history, title in zip(_columns(figure, 2), stages, titles, strict=True):
        epochs = np.arange(1, len(history.loss) + 1)
        axes.plot(epochs, history.loss, color=FITTED, marker=".", label="fitted rows")
        if history.later_loss:
            axes.plot(epochs, history.later_loss, color=LATER, marker=".", label="later rows")
        axes.axvline(history.best_epoch + 1, color="0.6", linestyle=":", label="kept")
        axes.set(title=title, xlabel="epoch", ylabel="mean squared error", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    return _png(figure)


def error_histograms(calibration: Scored, test: Scored, threshold: float) -> bytes:
    """Distributions of both errors and the score, held out, with the pooled threshold."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = (
        ("Stage 1 error", calibration.stage1, test.stage1, None),
        ("Stage 2 error", calibration.stage2, test.stage2, None),
        ("Score", calibration.score, test.score, threshold),
    )
    for axes, panel in zip(_columns(figure, len(panels)), panels, strict=True):
        _histogram(axes, *panel)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return _png(figure)


def _histogram(
    axes: Axes, title: str, calibration: Float64, test: Float64, threshold: float | None
) -> None:
    """Shares of rows on logarithmic axes: the tail is what a threshold is about."""
    both = np.concatenate([calibration, test])
    positive = both[both > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
    if threshold is not None:
        high = max(high, threshold)
    bins = np.geomspace(low * 0.999, high * 1.1, BINS).tolist()
    for values, colour, label in ((calibration, FITTED, "calibration"), (test, LATER, "test")):
        if len(values):
            share = np.full(len(values), 1 / len(values))
            axes.hist(
                values, bins, weights=share, color=colour, histtype="step", linewidth=1.4,
                label=f"{label}, {len(values):,} rows",
            )  # fmt: skip
    if threshold is not None:
        axes.axvline(threshold, color="0.2", linestyle="--", label=f"threshold {threshold:.3g}")
    axes.set(title=title, xscale="log", yscale="log", ylabel="share of rows")
    narrow = high < NARROW * low
    axes.xaxis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _columns(figure: Figure, n: int) -> list[Axes]:
    columns = list(np.atleast_1d(figure.subplots(1, n)))
    for axes in columns:
        axes.spines[["top", "right"]].set_visible(False)
    return columns


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # No time of writing and no version inside: the same training gives the same bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
