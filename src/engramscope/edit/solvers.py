"""What the editors of one key-value matrix know about a layer's keys: options, and a solver for each layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from engramscope.edit._base import EditorOptions, Progress
from engramscope.edit.applied import deltas_in
from engramscope.edit.edit import identity
from engramscope.edit.matrices import down_projection
from engramscope.edit.moment_store import MomentStore, SecondMoment, given_file, read_moment
from engramscope.edit.moments import budget_of, context_of, description, fingerprint_of, moment_files
from engramscope.edit.prefixes import sample_prefixes
from engramscope.edit.solve import EPS, Solver
from engramscope.edit.texts import Texts, default_texts, read_texts
from engramscope.models.model import Model

#: tokens for each neuron below which a second moment is said to be thin
_THIN = 10
#: where a second moment is given, its texts are free
_ANY = Texts("", "", lambda: iter(()))


class MomentOptions(EditorOptions):
    """Where second moments come from.

    Attributes:
        tokens: how many tokens they are measured on; 20 times the number of neurons by default.
        context: documents are cut after so many tokens; 1024, or as many as the model has positions, by default.
        texts: a file (`.txt`, `.jsonl`, `.parquet`, `.csv`) or folder of texts; by default the training corpus of a
            bundled model, and English Wikipedia for any other.
        moments: a second moment that was measured before, or a folder of them; by default measured once and kept.
        edited: measure them on the model with the edits that are in it, again after each kept edit of an earlier layer;
            by default on the model without edits, once, as in the releases.
        cache: folder in which they are kept; by default $ENGRAMSCOPE_CACHE, or the user's cache directory.
        eps: what is added to the diagonal of C, as a share of its mean.
    """

    tokens: int | None = Field(None, ge=1)
    context: int | None = Field(None, ge=1)
    texts: Path | None = None
    moments: Path | None = None
    edited: bool = False
    cache: Path | None = None
    eps: float = Field(EPS, ge=0)


@dataclass(frozen=True, slots=True)
class LayerSolver:
    """A layer's solver, and what it was made from."""

    solver: Solver
    tokens: int
    neurons: int

    def said(self) -> dict[str, Any]:
        """What the diagnostics say about it."""
        return {"tokens": self.tokens, "eps": self.solver.eps, "condition": self.solver.condition}

    def note(self) -> str | None:
        """A sentence where there is too little to go on."""
        return thin_note(self.tokens, self.neurons)


def thin_note(tokens: int, neurons: int) -> str | None:
    """A sentence where a second moment was measured on too few tokens."""
    if tokens >= _THIN * neurons:
        return None
    return (
        f"The second moment was measured on {tokens} tokens for {neurons} neurons; at least {_THIN * neurons} are "
        "wanted (option 'tokens', or more texts)."
    )


class Known:
    """What an editor keeps from one edit to the next: prefixes and solvers of the state that the model is in."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, Path | None], Texts] = {}
        self._solver: tuple[str, LayerSolver] | None = None
        self._prefixes: tuple[str, tuple[str, ...]] = ("", ())

    def prefixes(
        self, model: Model, counts: Sequence[tuple[int, int]], seed: int, *, top_k: int, words: bool
    ) -> tuple[str, ...]:
        """The texts of `sample_prefixes`, drawn anew only when the model or what is asked for has changed."""
        edits = [(name, fingerprint_of(delta)) for deltas in deltas_in(model.hf) for name, delta in deltas.items()]
        key = json.dumps([identity(model)["hash"], edits, list(counts), seed, top_k, words])
        if self._prefixes[0] != key:
            self._prefixes = key, sample_prefixes(model, counts, seed, top_k=top_k, words=words)
        return self._prefixes[1]

    def solvers(
        self, model: Model, layers: Sequence[int], options: MomentOptions, progress: Progress | None
    ) -> Callable[[int], LayerSolver]:
        """What gives the solver of a layer; that of the first is made at once.

        One factor is in memory at a time, because for a wide model each takes half a gigabyte: the last one stays for
        as long as it holds, so that edits of one layer share it. Several layers have theirs made again for each edit.

        Raises:
            InputError: no texts, a second moment of another model or layer, or one that is singular.
        """
        said = self._descriptions(model, layers, options)
        keys = {layer: json.dumps([said[layer], options.eps, str(options.moments)]) for layer in layers}
        known = len(layers) == 1 and self._solver is not None and self._solver[0] == keys[layers[0]]
        moment_of = None if known else self._moments(model, layers, options, said, progress)

        def solver_of(layer: int) -> LayerSolver:
            if self._solver is None or self._solver[0] != keys[layer]:
                self._solver = None
                assert moment_of is not None
                moment = moment_of(layer)
                solver = Solver(moment.matrix, options.eps, down_projection(model, layer).weight.device)
                self._solver = keys[layer], LayerSolver(solver, moment.tokens, len(moment.matrix))
            return self._solver[1]

        solver_of(layers[0])
        return solver_of

    def moments(
        self, model: Model, layers: Sequence[int], options: MomentOptions, progress: Progress | None
    ) -> Callable[[int], SecondMoment]:
        """What reads the second moment of a layer; those that were never measured are measured here.

        Raises:
            InputError: no texts, or a second moment of another model or layer.
        """
        return self._moments(model, layers, options, self._descriptions(model, layers, options), progress)

    def _moments(
        self, model: Model, layers: Sequence[int], options: MomentOptions, said: dict[int, dict[str, Any]],
        progress: Progress | None,
    ) -> Callable[[int], SecondMoment]:  # fmt: skip
        if options.moments is not None:
            files = {layer: given_file(options.moments, said[layer]) for layer in layers}
        else:
            files = moment_files(
                model, layers, self._source(model, options), MomentStore.at(options.cache),
                tokens=budget_of(model, list(said), options.tokens), context=options.context, edited=options.edited,
                progress=progress,
            )  # fmt: skip
        return lambda layer: read_moment(files[layer])

    def _descriptions(self, model: Model, layers: Sequence[int], options: MomentOptions) -> dict[int, dict[str, Any]]:
        texts = _ANY if options.moments is not None else self._source(model, options)
        budget, context = budget_of(model, layers, options.tokens), context_of(model, options.context)
        known = identity(model)["hash"]
        return {
            layer: description(model, layer, texts, budget, context, known, edited=options.edited) for layer in layers
        }

    def _source(self, model: Model, options: MomentOptions) -> Texts:
        key = model.source, options.texts
        if key not in self._texts:
            self._texts[key] = default_texts(model) if options.texts is None else read_texts(options.texts)
        return self._texts[key]
