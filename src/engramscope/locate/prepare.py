"""From pairs and a corruption to base runs: what is run before anything is patched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engramscope.corruptions import make_corruption
from engramscope.corruptions._base import Ablation, Corruption, Draw, ModelFacts
from engramscope.engine.plan import BaseRun
from engramscope.errors import ModelError, PairsError, shortened
from engramscope.models.model import Model
from engramscope.pairs.pair import PairSet
from engramscope.pairs.tokenize import tokenize_pairs
from engramscope.pairs.tokenized import TokenizedPair


@dataclass(frozen=True)
class Prepared:
    """One pair, ready to be run.

    Attributes:
        index: its place among the prepared pairs.
        tokens: the pair in tokens.
        draws: its corrupted base runs (none for ablations).
        ablations: what is written into its clean run instead (ablations only).
    """

    index: int
    tokens: TokenizedPair
    draws: tuple[Draw, ...]
    ablations: tuple[Ablation, ...]

    @property
    def id(self) -> str:
        """The pair's id."""
        return self.tokens.pair.id

    @property
    def seeds(self) -> tuple[int, ...]:
        """Numbers of the draws; ablations count theirs the same way."""
        return tuple(draw.seed for draw in self.draws) or tuple(range(len(self.ablations)))

    @property
    def noised(self) -> tuple[int, ...]:
        """Positions of the corrupted prompt to whose embeddings noise is added."""
        return tuple(sorted({position for draw in self.draws if draw.noise for position in draw.noise.positions}))

    def shared(self, draw: Draw) -> int:
        """How many tokens the clean and a corrupted prompt begin with in common, noise counted as a difference.

        None where they are run by two models.
        """
        if draw.model != "own":
            return 0
        clean, corrupted = self.tokens.clean.ids, self.tokens.corrupted.ids
        first = next((at for at, (p, q) in enumerate(zip(clean, corrupted, strict=False)) if p != q), len(clean))
        return min(first, *draw.noise.positions) if draw.noise and draw.noise.positions else first

    def partner(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(clean, corrupted) positions for these clean positions; those without a partner are left out."""
        partners = dict(zip(self.tokens.alignment.clean, self.tokens.alignment.corrupted, strict=True))
        return [(position, partners[position]) for position in positions if position in partners]


def prepare(
    model: Model, pairs: PairSet, corruption: Corruption | str = "str", seed: int = 0
) -> tuple[list[Prepared], Corruption]:
    """Tokenise the pairs and make their corrupted base runs.

    Args:
        model: supplies the tokenizer and, for noise, the embedding.
        pairs: the pairs.
        corruption: a corruption, or the name of one with its default options.
        seed: seed of random corruptions.

    Raises:
        PairsError: every pair at fault, one sentence each.
    """
    if model.tokenizer is None:
        raise ModelError(f"Model {model.name!r} has no tokenizer, so prompts cannot be turned into tokens.")
    how = make_corruption(corruption, {}) if isinstance(corruption, str) else corruption
    rewritten = rewrite_pairs(pairs, how)
    tokens = tokenize_pairs(rewritten, model.tokenizer, how.alignment)
    draws = how.draws(tokens, model_facts(model), seed)
    ablations = how.ablations(tokens, seed)
    prepared = [
        Prepared(index, pair, tuple(draws[index]), tuple(ablations[index])) for index, pair in enumerate(tokens)
    ]
    return prepared, how


def model_facts(model: Model) -> ModelFacts:
    """What corruptions may ask of a model: its tokenizer and its token embedding."""

    def encode(text: str) -> tuple[int, ...]:
        return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def embed(ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            embedded: Tensor = model.hf.get_input_embeddings()(torch.tensor(list(ids), device=model.device))
        return embedded.float().cpu()

    return ModelFacts(encode, embed, model.hf.get_input_embeddings().weight.shape[0])


def rewrite_pairs(pairs: PairSet, corruption: Corruption) -> PairSet:
    """The pairs as the corruption wants their texts.

    Raises:
        PairsError: every pair that lacks what the corruption needs.
    """
    kept, faults = [], []
    kinds: dict[str, int] = {}
    for pair in pairs:
        try:
            kept.append(corruption.rewrite(pair))
        except PairsError as error:
            for fault in error.faults:
                kind = fault.replace(f"Pair {pair.id!r}", "Pair", 1)
                kinds[kind] = kinds.get(kind, 0) + 1
                if kinds[kind] == 1:
                    faults.append((kind, fault))
    if faults:
        raise PairsError(shortened([f"{fault}{_times(kinds[kind], len(pairs))}" for kind, fault in faults]))
    return PairSet(tuple(kept), pairs.name)


def _times(count: int, pairs: int) -> str:
    """Of how many pairs a fault is said once."""
    if count == 1:
        return ""
    return f" The same holds for all {pairs} pairs." if count == pairs else f" So it is in {count} of {pairs} pairs."


def clean_run(pair: Prepared, continuation: tuple[int, ...] = ()) -> BaseRun:
    """The clean base run, continued by the tokens of an answer where a whole answer is scored."""
    return BaseRun(_run_id(pair, "clean", continuation), pair.tokens.clean.ids + continuation)


def corrupted_run(pair: Prepared, draw: Draw, continuation: tuple[int, ...] = ()) -> BaseRun:
    """A corrupted base run, continued in the same way."""
    kind = f"corrupted{draw.seed}"
    return BaseRun(_run_id(pair, kind, continuation), pair.tokens.corrupted.ids + continuation, draw.noise, draw.model)


def _run_id(pair: Prepared, kind: str, continuation: tuple[int, ...]) -> str:
    return f"{pair.index}/{kind}/{','.join(map(str, continuation))}"
