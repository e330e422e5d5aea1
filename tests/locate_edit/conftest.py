"""A model that knows something, and one comparison of tracing and editing that several tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engramscope.locate_edit import LocateEdit, run_locate_edit
from engramscope.locate_edit.settings import Settings
from engramscope.models import Model, load_model
from engramscope.records.bundled import bundled_records

SETTINGS = Settings(
    facts=5,
    methods=("ft",),
    layers=(0, 3, 5),
    options={"ft": {"steps": 6}},
    windows=(1,),
    draws=2,
    resamples=100,
    seed=3,
)


@pytest.fixture(scope="session")
def mini() -> Model:
    return load_model("mini", device="cpu", check=False)


@pytest.fixture(scope="session")
def records() -> tuple[Any, ...]:
    return bundled_records().records


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, mini: Model, records: Any) -> LocateEdit:
    return run_locate_edit(records, mini, Path(tmp_path_factory.mktemp("le") / "out"), SETTINGS)
