"""How every picture of the page looks: one style on light and one on dark ground."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detector.scripts import AnomalyKind

DPI: Final = 130
WIDTH: Final = 11.0
"""Inches; the page shows a picture at its own width at most."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a ground and of what is drawn on it."""

    ground: str
    ink: str
    muted: str
    grid: str
    ordinary: str
    map: str

    def style(self) -> Any:  # noqa: ANN401 - Matplotlib names every key in its type
        """Return Matplotlib's parameters."""
        return {
            "figure.facecolor": self.ground,
            "axes.facecolor": self.ground,
            "savefig.facecolor": self.ground,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.edgecolor": self.muted,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink,
            "grid.color": self.grid,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.titlepad": 9,
            "axes.labelsize": 10,
            "font.size": 10,
            "font.family": "DejaVu Sans",
            "legend.frameon": False,
            "legend.fontsize": 9,
        }


LIGHT: Final = Theme("#ffffff", "#1d2730", "#75818a", "#e4e9ed", "#8795a1", "YlOrRd")
DARK: Final = Theme("#161b22", "#e6edf3", "#8b98a5", "#2a323b", "#7d8b98", "magma")

OURS: Final = "#3b82c4"
WARM: Final = "#e07b39"
GOOD: Final = "#3fa66a"
BAD: Final = "#d1495b"

COLOURS: Final = dict(
    zip(
        (kind.value for kind in AnomalyKind),
        ("#3b82c4", "#e07b39", "#3fa66a", "#d1495b", "#8e6bbf", "#c7a500", "#d678b3", "#8a6d5a",
         "#2aa7b8"),
        strict=True,
    )
)  # fmt: skip
"""One colour a type, told apart on both grounds."""

LINES: Final = dict(
    zip((kind.value for kind in AnomalyKind), ("-", "-", "-", "-", "-", "--", "--", "--", "--"),
        strict=True)
)  # fmt: skip
MARKERS: Final = dict(zip((kind.value for kind in AnomalyKind), "os^vDP<>X", strict=True))
"""The same once more for eyes that do not tell colours apart."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture on both grounds, as PNG bytes, with what is said beside it."""

    title: str
    caption: str
    light: bytes
    dark: bytes


Draw = Callable[[Theme], Figure]


def picture(title: str, caption: str, draw: Draw) -> Picture:
    """Draw a picture on both grounds."""
    return Picture(title, caption, _png(draw, LIGHT), _png(draw, DARK))


def figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure; nothing in it may overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def legend_below(drawn: Figure, axes: Axes, columns: int = 5) -> None:
    """Put the legend of some axes below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    drawn.legend(
        handles, labels, loc="outside lower center", ncols=min(columns, max(len(labels), 1))
    )


def _png(draw: Draw, theme: Theme) -> bytes:
    with mpl.rc_context(theme.style()):
        drawn = draw(theme)
        FigureCanvasAgg(drawn)
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
