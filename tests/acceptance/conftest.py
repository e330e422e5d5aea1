from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.acceptance.setting import FAMILIES, KINDS, Setting, setting_of


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring in models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[(family, kind) for family in FAMILIES for kind in KINDS], ids="-".join)
def setting(request: pytest.FixtureRequest) -> Setting:
    """Every family with both executors."""
    return setting_of(*request.param)
