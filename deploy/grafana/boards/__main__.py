"""Write every board to `deploy/grafana/dashboards/NAME.json`, where Grafana reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from . import BOARDS

FOLDER: Final = Path(__file__).resolve().parent.parent / "dashboards"


def main() -> None:
    """Write the files and say which."""
    for name, board in BOARDS.items():
        path = FOLDER / f"{name}.json"
        path.write_text(board().to_json())
        print(f"{path.relative_to(Path.cwd())}: written")


if __name__ == "__main__":
    main()
