"""Gaussian noise: its level, its independence, and that it touches nothing but the span."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import corruption_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engramscope.corruptions import gaussian as module
from engramscope.corruptions import make_corruption
from engramscope.corruptions._base import ModelFacts
from engramscope.corruptions._moments import pooled_std
from engramscope.corruptions._random import digest, generator
from engramscope.corruptions.gaussian import Gaussian
from engramscope.errors import CheckError, PairsError, StudyError
from engramscope.pairs.tokenized import TokenizedPair


def made(**options: Any) -> Gaussian:
    how = make_corruption("gaussian", options)
    assert isinstance(how, Gaussian)
    return how


def pairs_for(how: Gaussian) -> list[TokenizedPair]:
    return cases.prepared(how, cases.make_pairs())


def test_sigma_is_k_times_the_std_of_all_scalars() -> None:
    words = " ".join(cases.NAMES)
    scalars = cases.embedding_table().numpy().astype(np.float64)[list(cases.encode(words))].ravel()
    for k in (1.0, 3.0):
        how = made(sigma=k)
        assert how.noise_level(pairs_for(how), cases.FACTS) == pytest.approx(k * np.std(scalars, ddof=1), rel=1e-12)


def test_sigma_is_neither_per_dimension_nor_root_mean_square() -> None:
    # one scalar std over everything: a different offset per dimension must count, the overall mean must not
    table = torch.zeros(cases.VOCAB, 2)
    table[:, 0], table[:, 1] = 101.0, 99.0
    facts = ModelFacts(cases.encode, lambda ids: table[list(ids)])
    how = made(sigma=1.0)
    n = 2 * len(cases.NAMES) * 2
    assert how.noise_level(pairs_for(how), facts) == pytest.approx(math.sqrt(n / (n - 1)), rel=1e-12)


def test_a_text_counts_as_often_as_it_occurs() -> None:
    how = made(sigma=1.0)
    pairs = pairs_for(how)
    doubled = [*pairs, *[replace(p, pair=replace(p.pair, id=p.pair.id + "b")) for p in pairs[:2]]]
    words = " ".join([*cases.NAMES, *cases.NAMES[:2]])
    scalars = cases.embedding_table().numpy().astype(np.float64)[list(cases.encode(words))].ravel()
    assert how.noise_level(doubled, cases.FACTS) == pytest.approx(np.std(scalars, ddof=1), rel=1e-12)


def test_key_texts_are_tokenised_alone_without_leading_space() -> None:
    asked: list[str] = []

    def encode(text: str) -> tuple[int, ...]:
        asked.append(text)
        return cases.encode(text)

    how = made()
    how.noise_level(pairs_for(how), ModelFacts(encode, cases.embed))
    assert sorted(asked) == sorted(cases.NAMES)


def test_vocabulary_takes_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)  # 40 rows: five whole blocks and a rest
    how = made(sigma=2.0, key_texts="vocabulary")
    expected = 2.0 * np.std(cases.embedding_table().numpy().astype(np.float64), ddof=1)
    assert how.noise_level(pairs_for(how), cases.FACTS) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="vocab"):
        how.noise_level(pairs_for(how), ModelFacts(cases.encode, cases.embed))


def test_an_embedding_that_is_no_number_is_not_used() -> None:
    facts = ModelFacts(cases.encode, lambda ids: torch.full((len(ids), 3), torch.nan))
    with pytest.raises(CheckError, match="not a number"):
        made().noise_level(pairs_for(made()), facts)


def test_the_noise_has_the_stated_level() -> None:
    how = made(draws=400)
    pairs = pairs_for(how)
    level = how.noise_level(pairs, cases.FACTS)
    values = torch.stack([d.noise.values for made_ in how.draws(pairs, cases.FACTS, 0) for d in made_ if d.noise])
    n = values.numel()  # 7 pairs x 400 draws x 2 tokens x 6 = 33600
    assert n == 33600
    assert values.double().std().item() == pytest.approx(level, rel=4 / math.sqrt(2 * n))
    assert abs(values.double().mean().item()) < 4 * level / math.sqrt(n)
    assert (values.double() / level).pow(4).mean().item() == pytest.approx(3.0, abs=0.2)  # normal, not uniform (1.8)


def test_only_the_span_is_touched() -> None:
    how = made(draws=2)
    pairs = pairs_for(how)
    for pair, draws in zip(pairs, how.draws(pairs, cases.FACTS, 0), strict=True):
        assert pair.corrupted.ids == pair.clean.ids
        for draw in draws:
            assert draw.noise is not None
            assert draw.noise.positions == (1, 2)
            assert draw.noise.values.shape == (2, cases.D_MODEL)
            assert draw.noise.values.dtype == torch.float32
            assert bool((draw.noise.values != 0).all())


def test_another_span_can_be_named() -> None:
    how = made(span="verb")
    pairs = [replace(p, spans={"verb": (p.clean.index("lives"), len(p.clean))}) for p in cases.make_pairs()]
    for draws in how.draws(cases.prepared(how, pairs), cases.FACTS, 0):
        assert all(draw.noise is not None and draw.noise.positions == (3, 4) for draw in draws)


def test_several_spans_are_noised_together_and_measured_together() -> None:
    how = made(span=["verb", "subject", "verb"])
    pairs = [
        replace(p, spans={"subject": p.spans["subject"], "verb": (p.clean.index("lives"), len(p.clean))})
        for p in cases.make_pairs()
    ]
    tokens = cases.prepared(how, pairs)
    for draws in how.draws(tokens, cases.FACTS, 0):
        assert all(draw.noise is not None and draw.noise.positions == (1, 2, 3, 4) for draw in draws)
    texts = [pair.pair.clean[slice(*pair.pair.spans[span])].strip() for pair in tokens for span in ("subject", "verb")]
    scalars = torch.cat([cases.FACTS.embed(cases.FACTS.encode(text)).flatten() for text in texts])
    assert how.noise_std(tokens, cases.FACTS) == pytest.approx(float(scalars.double().std()), rel=1e-6)
    with pytest.raises(PairsError, match="'subject'"):
        how.rewrite(replace(pairs[0], spans={"verb": pairs[0].spans["verb"]}))


def test_no_two_draws_share_noise() -> None:
    how = made(draws=5)
    rows = torch.stack([
        draw.noise.values.flatten()
        for draws in how.draws(pairs_for(how), cases.FACTS, 0)
        for draw in draws
        if draw.noise
    ])  # fmt: skip
    assert rows.shape == (35, 12)
    assert len({tuple(row) for row in rows.tolist()}) == 35
    assert rows.flatten().unique().numel() == 35 * 12  # no token's noise is another's either


def test_more_draws_leave_the_first_ones_as_they_are() -> None:
    few, many = made(draws=2), made(draws=6)
    pairs = pairs_for(few)
    for a, b in zip(few.draws(pairs, cases.FACTS, 1), many.draws(pairs, cases.FACTS, 1), strict=True):
        for x, y in zip(a, b[:2], strict=True):
            assert x.noise is not None
            assert y.noise is not None
            torch.testing.assert_close(x.noise.values, y.noise.values, rtol=0, atol=0)


def test_limiting_the_set_changes_only_the_scale() -> None:
    how = made(draws=3)
    pairs = pairs_for(how)
    ratio = how.noise_level(pairs[:2], cases.FACTS) / how.noise_level(pairs, cases.FACTS)
    assert ratio != pytest.approx(1.0, rel=1e-3)
    for few, all_ in zip(how.draws(pairs[:2], cases.FACTS, 0), how.draws(pairs, cases.FACTS, 0)[:2], strict=True):
        for x, y in zip(few, all_, strict=True):
            assert x.noise is not None
            assert y.noise is not None
            torch.testing.assert_close(x.noise.values, y.noise.values * ratio, rtol=1e-6, atol=1e-7)


def test_sigma_zero_is_the_identity() -> None:
    how = made(sigma=0.0)
    for draws in how.draws(pairs_for(how), cases.FACTS, 0):
        assert len(draws) == 10
        assert all(draw.noise is not None and not draw.noise.values.any() for draw in draws)


def test_its_own_corrupted_prompt_is_not_used() -> None:
    pair = made().rewrite(replace(cases.make_pairs()[0], corrupted_spans={"subject": (0, 4)}))
    assert pair.corrupted is None
    assert pair.corrupted_spans == {}


@pytest.mark.parametrize("spans", [{}, {"other": (0, 4)}, {"subject": (4, 5)}, {"subject": (3, 3)}])
def test_a_pair_without_the_span_is_named(spans: dict[str, tuple[int, int]]) -> None:
    pair = replace(cases.make_pairs()[0], spans=spans)  # (4, 5) is one space
    with pytest.raises(PairsError, match=r"pair Ada Byron.*'subject'"):
        made().rewrite(pair)


def test_every_pair_without_tokens_in_the_span_is_named() -> None:
    how = made()
    bare = [replace(p, corrupted=replace(p.corrupted, spans={})) for p in pairs_for(how)[:3]]
    with pytest.raises(PairsError) as error:
        how.draws(bare, cases.FACTS, 0)
    assert len(error.value.faults) == 3


def test_no_pairs_no_draws() -> None:
    assert made().draws([], cases.FACTS, 0) == []


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": -1.0}, {"sigma": math.inf}, {"sigma": math.nan}, {"sigma": "3"}, {"sigma": True}, {"draws": 0},
        {"draws": 2.5}, {"draws": True}, {"draws": "4"}, {"span": ""}, {"key_texts": "subjects"},
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=f"option '{next(iter(options))}'"):
        made(**options)


def test_all_option_faults_at_once() -> None:
    with pytest.raises(StudyError) as error:
        made(sigma=-1.0, drawz=3, key_texts="x")
    assert len(error.value.faults) == 3
    assert "did you mean 'draws'" in str(error.value)


def test_a_whole_number_is_a_good_sigma() -> None:
    how = made(sigma=3)
    pairs = pairs_for(how)
    assert how.noise_level(pairs, cases.FACTS) == made(sigma=3.0).noise_level(pairs, cases.FACTS)


def test_the_stream_is_the_same_in_every_process() -> None:
    # fixed once and for all: a change here changes every published noise draw
    assert digest("gaussian", 0, "p1", 0).hex()[:16] == "cdfdb1966dcdab8d"
    np.testing.assert_allclose(
        generator("gaussian", 0, "p1", 0).standard_normal(3),
        [0.32020876191900666, 0.25427423136255933, 0.07192081836315381],
        rtol=1e-12,
    )
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a", 1) != digest("a", "1")
    assert len({digest(seed, name) for seed in range(9) for name in ("α", "a", "á")}) == 27


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(-10, 10)),
    st.integers(1, 9),
    st.sampled_from([0.0, 1e6]),
)
def test_pooled_std_is_the_std_of_the_whole(values: np.ndarray, size: int, offset: float) -> None:
    values = values + offset  # a large mean: the naive sum of squares would cancel
    blocks = [torch.from_numpy(values[i : i + size]) for i in range(0, len(values), size)]
    assert pooled_std(blocks) == pytest.approx(np.std(values, ddof=1), rel=1e-7, abs=1e-8)


def test_pooled_std_of_too_little() -> None:
    assert math.isnan(pooled_std([]))
    assert math.isnan(pooled_std([torch.ones(1), torch.ones(0)]))
