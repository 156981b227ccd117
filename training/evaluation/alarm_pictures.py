"""Pictures of the alarms: rankings, sample episodes, hours of the day, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from detector.ticks import NS_PER_S
from training.evaluation.charts import (
    BAD,
    COLOURS,
    GOOD,
    LINES,
    OURS,
    WARM,
    Picture,
    Theme,
    figure,
    legend_below,
    picture,
)
from training.evaluation.episodes import FALSE, HIT, MASKED
from training.evaluation.operating import Judged, Trial
from training.evaluation.ranking import Curve
from training.evaluation.tables import plain

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LEAST_SHARE: Final = 1e-4
POINTS: Final = 2_000
"""Points a curve is drawn with."""

AROUND_S: Final = 12.0
MOST_SAMPLES: Final = 3
HOUR_NS: Final = 3600 * NS_PER_S
MOST_INSTRUMENTS: Final = 6


def rank_curves(found: Mapping[str, Curve]) -> Picture:
    """ROC and precision-recall curves by type."""

    def draw(theme: Theme) -> Figure:
        drawn = figure(4.6)
        roc, pr = drawn.subplots(1, 2)
        for name, curve in found.items():
            every = name == "all"
            style: dict[str, Any] = {
                "color": theme.ink if every else COLOURS[name],
                "linewidth": 2.2 if every else 1.4,
                "linestyle": "-" if every else LINES[name],
                "label": plain(name),
            }
            some = np.unique(np.geomspace(1, len(curve.found), POINTS).astype(int)) - 1
            recall = curve.found[some] / curve.found[-1]
            roc.plot(np.maximum(curve.false[some] / curve.false[-1], LEAST_SHARE), recall, **style)
            # Precision means nothing before the first row of the type.
            pr_from = recall > 0
            precision = curve.found[some] / np.maximum(curve.found[some] + curve.false[some], 1)
            pr.plot(recall[pr_from], precision[pr_from], **style)
        roc.set(
            xscale="log", xlim=(LEAST_SHARE, 1), ylim=(0, 1.02), title="ROC",
            xlabel="share of ordinary rows above", ylabel="share of anomalous rows above",
        )  # fmt: skip
        roc.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        pr.set(
            xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall",
            xlabel="recall (rows)", ylabel="precision",
        )  # fmt: skip
        legend_below(drawn, roc)
        return drawn

    return picture(
        "Ranking of rows by type",
        "Causal scores of the judged rows. A type is ranked against all ordinary rows. Note the "
        "logarithmic axis: alarms are about its left end.",
        draw,
    )


def samples(trial: Trial, judged: Judged, score: Float64, price: Float64) -> Picture | None:
    """Score over price around some anomalies that were hit, masked and missed.

    Parameters
    ----------
    trial, judged
        Rows and what was opened on them.
    score, price
        `(n,)` of the trial's rows.
    """
    hits = _pick(trial, judged.found.told_by >= 0)
    masked = _pick(trial, judged.found.masked)
    misses = _pick(trial, (judged.found.told_by < 0) & ~judged.found.masked)
    titled = (("Hit", hits), ("Masked", masked), ("Missed", misses))
    rows = [(title, chosen) for title, chosen in titled if chosen]
    if not rows:
        return None

    def draw(theme: Theme) -> Figure:
        drawn = figure(3.7 * len(rows))
        grid = drawn.subplots(
            2 * len(rows), MOST_SAMPLES, height_ratios=[1.5, 1.0] * len(rows), squeeze=False
        )
        for place, (title, chosen) in enumerate(rows):
            for column in range(MOST_SAMPLES):
                above, below = grid[2 * place][column], grid[2 * place + 1][column]
                if column >= len(chosen):
                    above.set_axis_off()
                    below.set_axis_off()
                    continue
                one = _Sample(trial, judged, score, price, chosen[column])
                above.set_title(f"{title}: {one.title}", fontsize=10)
                one.draw(above, below, theme)
                if column == 0:
                    above.set_ylabel("price")
                    below.set_ylabel("score / threshold")
        drawn.align_ylabels()
        return drawn

    return picture(
        "Score over price",
        "Sample anomalies that an episode told of; masked ones, in which one opened within 60 s of "
        "an earlier alarm; and some that none told of, with the thresholds the "
        "model is shipped with. Shaded: the anomaly. Triangle: an episode opens. An alarm is a "
        "score at its threshold (dashed).",
        draw,
    )


def _pick(trial: Trial, wanted: npt.NDArray[np.bool_]) -> list[int]:
    """First anomaly of as many different types as fit; then whatever there is."""
    chosen: list[int] = []
    seen: set[str] = set()
    every = np.flatnonzero(wanted).tolist()
    for anomaly in every:
        kind = trial.planted[anomaly].kind.value
        if kind not in seen and len(chosen) < MOST_SAMPLES:
            seen.add(kind)
            chosen.append(anomaly)
    rest = [anomaly for anomaly in every if anomaly not in chosen]
    return chosen + rest[: MOST_SAMPLES - len(chosen)]


class _Sample:
    """Ticks of an instrument around one anomaly."""

    def __init__(
        self, trial: Trial, judged: Judged, score: Float64, price: Float64, anomaly: int
    ) -> None:
        self._one = trial.planted[anomaly]
        around = round(AROUND_S * NS_PER_S)
        ts = trial.ts
        mine = (trial.keys == self._one.key) & (ts >= self._one.start_ns - around)
        mine &= ts <= self._one.end_ns + around
        self._at = self._seconds(ts[mine])
        self._price = price[mine]
        self._relative = np.maximum(score[mine] / judged.threshold[mine], 1e-3)
        opened = judged.episodes.key == self._one.key
        self._opened = self._seconds(judged.episodes.start[opened])

    def _seconds(self, ts: Int64) -> Float64:
        found: Float64 = (ts - self._one.start_ns) / NS_PER_S
        return found

    @property
    def title(self) -> str:
        """Type and instrument."""
        return f"{plain(self._one.kind.value)}, {self._one.symbol}"

    def draw(self, above: Axes, below: Axes, theme: Theme) -> None:
        """Price above, score below."""
        end = (self._one.end_ns - self._one.start_ns) / NS_PER_S
        for axes in (above, below):
            axes.axvspan(0, max(end, 0.05), color=WARM, alpha=0.22, linewidth=0)
            axes.set_xlim(-AROUND_S, end + AROUND_S)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        above.plot(self._at, self._price, color=theme.ink, linewidth=1.0, drawstyle="steps-post")
        above.tick_params(labelbottom=False)
        above.yaxis.set_major_locator(MaxNLocator(4))
        above.ticklabel_format(axis="y", useOffset=False)
        below.plot(self._at, self._relative, color=OURS, linewidth=0.9)
        below.axhline(1.0, color=theme.muted, linestyle="--", linewidth=1.0)
        inside = self._opened[(self._opened >= -AROUND_S) & (self._opened <= end + AROUND_S)]
        below.plot(inside, np.ones(len(inside)), "v", color=BAD, markersize=7, zorder=5)
        below.set(yscale="log", xlabel="s from its start")
        low = float(self._relative.min()) if len(self._relative) else 0.1
        high = float(self._relative.max()) if len(self._relative) else 1.0
        below.set_ylim(min(low, 0.5) * 0.8, max(high, 1.0) * 1.5)
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        below.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def alarms_by_hour(trial: Trial, judged: Judged) -> Picture:
    """Episodes opened in each hour, by what they were; one panel an instrument."""
    keys = sorted(
        np.unique(trial.keys).tolist(), key=lambda key: -np.count_nonzero(trial.keys == key)
    )[:MOST_INSTRUMENTS]

    def draw(theme: Theme) -> Figure:
        columns = min(2, len(keys))
        lines = -(-len(keys) // columns)
        drawn = figure(0.9 + 2.5 * lines)
        grid = drawn.subplots(lines, columns, squeeze=False).ravel()
        for axes, key in zip(grid, keys, strict=False):
            _hours(axes, trial, judged, key, theme)
        for axes in grid[len(keys) :]:
            axes.set_axis_off()
        legend_below(drawn, grid[0])
        return drawn

    return picture(
        "Alarms by hour",
        "Episodes opened in each hour (UTC) at the thresholds the model is shipped with: hits, "
        "masked ones (in an anomaly, but within 60 s of an earlier alarm) and false ones. Hours "
        "without a judged tick are left out.",
        draw,
    )


def _hours(axes: Axes, trial: Trial, judged: Judged, key: int, theme: Theme) -> None:
    hours = np.unique(trial.ts[trial.keys == key] // HOUR_NS)
    place = np.searchsorted(hours, judged.episodes.start // HOUR_NS)
    mine = judged.episodes.key == key
    floor = np.zeros(len(hours))
    for what, colour in ((HIT, GOOD), (MASKED, theme.ordinary), (FALSE, BAD)):
        chosen = place[mine & (judged.found.verdict == what)]
        count = np.bincount(chosen, minlength=len(hours))[: len(hours)]
        axes.bar(range(len(hours)), count, bottom=floor, color=colour, width=0.75, label=what)
        floor += count
    dates = [datetime.fromtimestamp(int(hour) * 3600, UTC) for hour in hours]
    every = max(1, len(hours) // 8)
    days = len({date.date() for date in dates}) > 1
    form = "%d %b\n%H:%M" if days else "%H:%M"
    shown = range(0, len(hours), every)
    axes.set_xticks(list(shown), [f"{dates[i]:{form}}" for i in shown], fontsize=9)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(title=trial.names.get(key, str(key)), ylabel="episodes")


def confusion(truth: Sequence[str], named: Sequence[str]) -> Picture:
    """Names that the model gave to detected episodes against what was planted."""
    rows = sorted(set(truth))
    columns = [*sorted(set(named) - {"unknown"}), *(["unknown"] if "unknown" in named else [])]
    table = np.zeros((len(rows), len(columns)), np.int64)
    for true, name in zip(truth, named, strict=True):
        table[rows.index(true), columns.index(name)] += 1
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)

    def draw(theme: Theme) -> Figure:
        drawn = figure(1.6 + 0.45 * len(rows), 9.5)
        axes = drawn.subplots()
        axes.imshow(share, aspect="auto", cmap=theme.map, vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
        axes.set_xticks(range(len(columns)), [plain(name) for name in columns])
        axes.tick_params(axis="both", length=0)
        axes.tick_params(axis="x", labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        axes.spines[:].set_visible(False)
        dark_first = theme.map == "magma"
        for (row, column), count in np.ndenumerate(table):
            if count:
                pale = (share[row, column] > 0.55) != dark_first
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=9,
                    color="white" if pale else "black",
                )  # fmt: skip
        axes.set(xlabel="named", ylabel="planted")
        return drawn

    return picture(
        "Names of detected episodes",
        f"For each planted type, the names that its detected episodes, {len(truth)} in all, ended "
        "with.",
        draw,
    )
