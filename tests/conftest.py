"""Fixtures that every test may use: the market data, and later the brokers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def leave_out(reason: str) -> NoReturn:
    """Skip with a reason; where nothing may be left out (`TAPEWATCH_REQUIRE_ALL=1`), fail."""
    if os.environ.get("TAPEWATCH_REQUIRE_ALL") == "1":
        pytest.fail(f"TAPEWATCH_REQUIRE_ALL=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real market data."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("TAPEWATCH_TEST_DATA") or default)
    if not folder.is_dir():
        leave_out(f"the market data folder {folder} is absent (TAPEWATCH_TEST_DATA names it)")
    return folder
