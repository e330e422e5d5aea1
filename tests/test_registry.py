"""Names after a typo."""

from __future__ import annotations

from engramscope.registry import nearest


def test_few_names_are_all_listed() -> None:
    assert nearest("kll", ("prob", "kl", "rank")) == "; did you mean 'kl'? Known: prob, kl, rank."
    assert nearest("zzzzzz", ("prob", "kl")) == ". Known: prob, kl."


def test_of_many_names_the_nearest_are_listed_and_the_others_counted() -> None:
    known = tuple(f"transformer.h.{layer}.{part}" for layer in range(48) for part in ("mlp", "attn", "ln_1"))
    said = nearest("transformer.h.7.mpl", known)
    assert said.startswith("; did you mean 'transformer.h.7.mlp'? Known: transformer.h.7.mlp, ")
    names = said.split(" Known: ")[1].removesuffix(f" and {len(known) - 8} more.").split(", ")
    assert len(names) == len(set(names)) == 8
    assert set(names) <= set(known)
    assert len(said) < 250
    assert nearest("###", known).startswith(". Known: ")
    assert nearest("###", known).endswith(" and 136 more.")


def test_the_limit_itself_is_listed_in_full() -> None:
    known = tuple(f"name{number}" for number in range(20))
    assert nearest("x", known).endswith(f"Known: {', '.join(known)}.")
    assert "more" in nearest("x", (*known, "name20"))
