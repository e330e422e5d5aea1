from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="package")
def _fast_tables() -> object:
    """The bootstrap and the figures take most of the time of a tiny table, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("findings", "sequence_findings"):
            patch.setattr(f"engramscope.editing.{module}.RESAMPLES", 100)
        for module in ("table_page", "sequence_page"):
            patch.setattr(f"engramscope.editing.{module}.embedded_figure", lambda _: "data:image/svg+xml;base64,")
        yield
