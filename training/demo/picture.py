"""A picture of the demo's live view, from a run of it: `make pictures`.

The run is that of `tapewatch demo`, its view the one that a terminal of this size shows. One moment
late in the run is kept as SVG.
"""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from detector.ticks import NS_PER_S
from training.demo.findings import Findings
from training.demo.scenario import Scenario
from training.demo.session import Moment, run_demo
from training.demo.view import LiveView

WIDTH: Final = 118
HEIGHT: Final = 40
SHARE: Final = 0.85
"""Of the live part that is over when the picture is taken."""

# Rich's own form asks a server for its font; a picture in a page must not, and would not get it.
_FORM: Final = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


class PicturedView(LiveView):
    """The live view on a terminal that nobody watches, and one moment of it.

    Attributes
    ----------
    svg
        The moment's picture; "" before it came.
    """

    def __init__(self) -> None:
        super().__init__(
            Console(file=io.StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT)
        )
        self._at_ns = 0
        self.svg = ""

    def live(self, scenario: Scenario, threshold: float, metrics_url: str) -> None:
        """Open the panels, and choose the moment."""
        super().live(scenario, threshold, metrics_url)
        self._at_ns = scenario.live_ns + round(SHARE * scenario.live_s) * NS_PER_S

    def moment(self, moment: Moment, findings: Findings) -> None:
        """Show it, and keep the picture of the first one late enough."""
        super().moment(moment, findings)
        if not self.svg and moment.market_ns >= self._at_ns:
            paper = Console(
                file=io.StringIO(), record=True, force_terminal=True, width=WIDTH, height=HEIGHT
            )
            paper.print(self.screen())
            self.svg = paper.export_svg(
                title="tapewatch demo", code_format=_FORM, unique_id="tapewatch"
            )


def main(path: Path) -> None:
    """Run the demo and write the picture."""
    print("running the demo, for a minute or two", flush=True)
    with PicturedView() as view:
        run_demo(Scenario(), view, time.monotonic())
    path.write_text(view.svg, encoding="utf-8")
    print(f"{path}: written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
