"""Options that are at fault are named, each once; so are options that do not go together."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, model_validator

from engramscope.errors import StudyError
from engramscope.options import parse_options


class Both(BaseModel):
    model_config = ConfigDict(extra="forbid")
    one: int | list[int] = 1
    other: int = 2

    @model_validator(mode="after")
    def _together(self) -> Both:
        if self.one == self.other:
            raise ValueError("one and other must differ")
        return self


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(StudyError) as caught:
        parse_options("thing", "x", Both, {"one": 2})
    assert caught.value.faults == ("thing 'x': one and other must differ.",)


def test_a_union_is_one_fault_and_not_one_for_each_branch() -> None:
    with pytest.raises(StudyError) as caught:
        parse_options("thing", "x", Both, {"one": "a", "othr": 3})
    assert len(caught.value.faults) == 2
    assert "option 'one'" in caught.value.faults[0]
    assert "did you mean 'other'" in caught.value.faults[1]
