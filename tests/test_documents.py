"""Generated documents are in step with what they are generated from."""

from __future__ import annotations

import pytest

from detector.documents import DOCUMENTS
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_document_is_in_step(name: str) -> None:
    """The committed file is what `make docs` writes."""
    assert (REPOSITORY / "docs" / name).read_text() == DOCUMENTS[name](), "run `make docs`"
