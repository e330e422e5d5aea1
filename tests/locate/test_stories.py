"""A real trained model of another family, with questions of our own: who is "she" and who is "he"?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engramscope import load_model, make_pairs, patch

SHARED = os.environ.get("ENGRAMSCOPE_SHARED")
pytestmark = pytest.mark.skipif(SHARED is None, reason="ENGRAMSCOPE_SHARED names no folder with models/stories260K")


def test_a_real_llama_answers_and_a_few_heads_carry_the_answer() -> None:
    model = load_model(str(Path(SHARED or "") / "models" / "stories260K"))
    pairs = make_pairs("stories")
    result = patch(model, pairs, "z", heads="each", metrics=("logit_diff",), resamples=2000)
    assert (result.effects["clean"] > 1).all()
    assert (result.effects["corrupted"] < -1).all()
    # grouped queries: eight heads on four groups, five layers; some heads carry the answer, most do not
    found = result.summary[result.summary["detected"].astype(bool)]
    assert len(result.summary) == 40
    assert 1 <= len(found) < 40
    assert found["estimate"].max() > 0.2
