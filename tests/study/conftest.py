from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _fast_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a tiny study, and have tests of their own."""
    monkeypatch.setattr("engramscope.report.page.write_figures", lambda *_, **__: [], raising=True)
