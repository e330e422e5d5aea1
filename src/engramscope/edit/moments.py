"""Second moments of keys: how often a layer's MLP sees which directions, over running text."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engramscope.edit._base import Progress
from engramscope.edit.applied import deltas_in, without_deltas
from engramscope.edit.delta import Delta, LowRank
from engramscope.edit.edit import identity
from engramscope.edit.frozen import evaluating
from engramscope.edit.keys import input_of
from engramscope.edit.matrices import down_projection
from engramscope.edit.moment_store import MomentStore, Partial, SecondMoment, read_moment
from engramscope.edit.passes import read_until
from engramscope.edit.texts import Texts
from engramscope.edit.tokens import encoder_of
from engramscope.errors import InputError
from engramscope.models.hooks import Tap
from engramscope.models.model import Model, hash_of

#: raised whenever what is computed changes, so that files of before are not taken for it
ROUTINE = 1
#: tokens for each neuron, where nobody said how many
PER_NEURON = 20
#: a document is cut after so many tokens, or where the model's positions end
CONTEXT = 1024
#: above this width sums are kept in float32, because in float64 they would take more than half a gigabyte
WIDE = 8192
_DOCUMENTS_AT_ONCE = 16
_TOKENS_AT_ONCE = 8192
_TOKENS_OF_A_FORWARD = 4096
_SAVE_EVERY_S = 60.0


def second_moments(
    model: Model, layers: Sequence[int], texts: Texts, store: MomentStore, *, tokens: int | None = None,
    context: int | None = None, edited: bool = True, progress: Progress | None = None,
    save_every_s: float = _SAVE_EVERY_S,
) -> dict[int, SecondMoment]:  # fmt: skip
    """C = (1/N) Σ k kᵀ of each layer, k the input of its down projection at every token of the texts.

    Padding is left out; special tokens that the tokenizer puts in front of a text count. The forward stops at the
    deepest layer that is asked for, and all layers are measured in one pass. What was measured before is read from the
    store, and a measurement that was stopped goes on where it was.

    Args:
        model: the model.
        layers: which.
        texts: documents; each is cut at `context` tokens.
        store: where moments are kept.
        tokens: N; 20 times the number of neurons by default. Fewer where the texts end before.
        context: 1024 by default, or the positions that the model has.
        edited: with the edits that are in the model; otherwise they are taken out meanwhile.
        progress: called with (what, done, total), in tokens.
        save_every_s: how often a measurement under way is saved.

    Returns:
        One for each layer.

    Raises:
        InputError: the texts hold no token, or a key is not finite.
        ResultsError: the disk refuses.

    Source: Meng et al. 2022, ROME, appendix B. The release takes 100,000 documents of Wikipedia in float32, where the
    paper says 100,000 vectors; the number of tokens is said outright here.
    """
    files = moment_files(
        model, layers, texts, store, tokens=tokens, context=context, edited=edited, progress=progress,
        save_every_s=save_every_s,
    )  # fmt: skip
    return {layer: read_moment(file) for layer, file in files.items()}


def moment_files(
    model: Model, layers: Sequence[int], texts: Texts, store: MomentStore, *, tokens: int | None = None,
    context: int | None = None, edited: bool = True, progress: Progress | None = None,
    save_every_s: float = _SAVE_EVERY_S,
) -> dict[int, Path]:  # fmt: skip
    """The files of `second_moments`, which take the memory of one matrix for each layer only where they are measured.

    Raises:
        InputError: the texts hold no token, or a key is not finite.
        ResultsError: the disk refuses.
    """
    budget, cut = budget_of(model, layers, tokens), context_of(model, context)
    known_hash = identity(model)["hash"]
    said = {layer: description(model, layer, texts, budget, cut, known_hash, edited=edited) for layer in layers}
    found = {layer: known for layer in layers if (known := store.file(said[layer])) is not None}
    missing = [layer for layer in said if layer not in found]
    if missing:
        wanted = {layer: said[layer] for layer in missing}
        with evaluating(model.hf), nullcontext() if edited else without_deltas(model.hf):
            found |= _measured(_Pass(model, missing, texts, budget, cut, progress), wanted, store, save_every_s)
    return {layer: found[layer] for layer in layers}


def _measured(
    pass_: _Pass, said: Mapping[int, Mapping[str, Any]], store: MomentStore, save_every_s: float
) -> dict[int, Path]:
    """Measure, from where an earlier measurement was stopped, and keep what comes out; its files."""
    names = list(said.values())
    partial = store.read_partial(names)
    if partial is not None:
        pass_.resume(partial)
    saved = time.monotonic()
    for _ in pass_.steps():
        if time.monotonic() - saved >= save_every_s and pass_.tokens < pass_.budget:
            store.write_partial(names, pass_.state())
            saved = time.monotonic()
    found = {layer: store.write(moment) for layer, moment in zip(said, pass_.moments(said), strict=True)}
    store.remove_partial(names)
    return found


def context_of(model: Model, given: int | None) -> int:
    """After how many tokens a document is cut."""
    most = getattr(model.hf.config, "max_position_embeddings", None) or CONTEXT
    return min(given or CONTEXT, most)


def budget_of(model: Model, layers: Sequence[int], given: int | None) -> int:
    """How many tokens are measured."""
    return given or PER_NEURON * max(down_projection(model, layer).n_in for layer in layers)


def description(
    model: Model,
    layer: int,
    texts: Texts,
    tokens: int,
    context: int,
    known_hash: str | None = None,
    *,
    edited: bool = True,
) -> dict[str, Any]:
    """Everything that a second moment depends on, as plain data.

    Args:
        model: the model.
        layer: the layer.
        texts: what is read.
        tokens: how many of its tokens.
        context: after how many a document is cut.
        known_hash: of the unedited model, where it is known already; a model in memory is hashed anew every time.
        edited: of the model with the edits that are in it.
    """
    return {
        "routine": ROUTINE, **upstream(model, layer, known_hash, edited=edited), "config": _config_hash(model),
        "layer": layer, "module": down_projection(model, layer).path, "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": _tokenizer_hash(model), "texts": texts.identity, "tokens": tokens, "context": context,
    }  # fmt: skip


def upstream(model: Model, layer: int, known_hash: str | None = None, *, edited: bool = True) -> dict[str, Any]:
    """The state of everything that keys of a layer depend on: the model, and those of its edits that come before.

    An edit of the layer's own down projection, or of a later block, does not change what the layer's MLP is given.
    """
    own = down_projection(model, layer).path
    later = tuple(f"{path}." for path in (own, *model.anatomy.blocks[layer + 1 :]))
    before = [
        [name, fingerprint_of(delta)]
        for deltas in (deltas_in(model.hf) if edited else ())
        for name, delta in deltas.items()
        if not name.startswith(later)
    ]
    return {"model": known_hash or identity(model)["hash"], "edits": before}


@dataclass
class _Pass:
    """Sums over the documents that were seen so far."""

    model: Model
    layers: Sequence[int]
    texts: Texts
    budget: int
    context: int
    progress: Progress | None
    tokens: int = 0
    documents: int = 0
    sums: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        for layer in self.layers:
            linear = down_projection(self.model, layer)
            device = linear.weight.device
            dtype = torch.float64 if linear.n_in <= WIDE and device.type != "mps" else torch.float32
            self.sums.append(torch.zeros(linear.n_in, linear.n_in, dtype=dtype, device=device))

    def resume(self, partial: Partial) -> None:
        for own, kept in zip(self.sums, partial.sums, strict=True):
            own.copy_(kept)
        self.tokens, self.documents = partial.tokens, partial.documents

    def state(self) -> Partial:
        return Partial(self.sums, self.tokens, self.documents)

    def steps(self) -> Iterator[None]:
        """Measure; yields between portions of documents."""
        self._tell()
        stream = islice(self.texts.open(), self.documents, None)
        while self.tokens < self.budget:
            rows = self._portion(stream)
            if not rows:
                break
            for batch in _like_lengths(rows, _TOKENS_OF_A_FORWARD):
                self._add(batch)
            self.tokens += sum(len(row) for row in rows)
            self._tell()
            yield
        if not self.tokens:
            raise InputError(f"{self.texts.name}: no token in it, so no second moment can be measured.")

    def moments(self, said: Mapping[int, Mapping[str, Any]]) -> Iterator[SecondMoment]:
        """One layer after the other; its sum is used up."""
        for layer in self.layers:
            matrix = self.sums.pop(0).div_(self.tokens).cpu()
            if not bool(torch.isfinite(matrix).all()):
                raise InputError(
                    f"Second moment of layer {layer}: values that are not finite came up; load the model in float32."
                )
            yield SecondMoment(matrix, self.tokens, said[layer])

    def _tell(self) -> None:
        if self.progress:
            which = "layer" if len(self.layers) == 1 else "layers"
            names = ", ".join(map(str, self.layers))
            self.progress(f"second moments of {which} {names}", min(self.tokens, self.budget), self.budget)

    def _portion(self, stream: Iterator[str]) -> list[tuple[int, ...]]:
        """Token ids of the next documents, each cut to the context, and the last to the budget."""
        rows: list[tuple[int, ...]] = []
        room = min(self.budget - self.tokens, _TOKENS_AT_ONCE)
        while room > 0 and (texts := list(islice(stream, _DOCUMENTS_AT_ONCE))):
            self.documents += len(texts)
            for ids in encoder_of(self.model).ids(texts):
                left = self.budget - self.tokens - sum(len(row) for row in rows)
                if kept := ids[: min(self.context, left)]:
                    rows.append(kept)
            room = min(self.budget - self.tokens, _TOKENS_AT_ONCE) - sum(len(row) for row in rows)
        return rows

    def _add(self, rows: Sequence[tuple[int, ...]]) -> None:
        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = torch.tensor(row), 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)

        def adding(total: Tensor) -> Tap:
            def read(value: Tensor) -> None:
                keys = value[mask.to(value.device).bool()].to(torch.promote_types(value.dtype, torch.float32))
                if total.dtype == keys.dtype:
                    total.addmm_(keys.T, keys)
                else:
                    total.add_(keys.T @ keys)

            return read

        ports = [input_of(down_projection(self.model, layer)) for layer in self.layers]
        reads = [(port, adding(total)) for port, total in zip(ports, self.sums, strict=True)]
        read_until(self.model, ids, mask, reads)


def _like_lengths(rows: Sequence[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    batch: list[tuple[int, ...]] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def fingerprint_of(delta: Delta) -> str:
    """SHA-256 of what a delta adds."""
    parts = {"left": delta.left, "right": delta.right} if isinstance(delta, LowRank) else {"values": delta.values}
    return hash_of(parts)


def _config_hash(model: Model) -> str:
    """Of what the weights do not say: activation, rotary base, window, …"""
    said = {
        key: value for key, value in model.hf.config.to_dict().items()
        if not key.startswith("_") and key not in ("transformers_version", "dtype", "torch_dtype", "use_cache")
    }  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _tokenizer_hash(model: Model) -> str:
    return model.remember("edit.tokenizer_hash", lambda: _hash_of_tokenizer(model))


def _hash_of_tokenizer(model: Model) -> str:
    encoder_of(model)
    said = json.loads(model.tokenizer.backend_tokenizer.to_str())
    # what the last caller left behind says nothing about the tokens of a text
    said.pop("padding", None)
    said.pop("truncation", None)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
