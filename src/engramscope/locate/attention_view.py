"""Where do these heads look? Their attention from one position to named parts of the prompt, run by run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from torch import Tensor

from engramscope.corruptions._base import Corruption
from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan
from engramscope.engine.reference import Place, record_plan
from engramscope.errors import PairsError, SiteError, shortened
from engramscope.locate.prepare import Prepared, clean_run, corrupted_run, prepare
from engramscope.locate.questions import KEPT_BYTES, too_long
from engramscope.models.anatomy import Anatomy
from engramscope.models.model import Model
from engramscope.models.site import KV_SITES
from engramscope.pairs.pair import PairSet
from engramscope.pairs.tokenized import TokenizedPrompt

Progress = Callable[[str, int, int], None]
HeadSite = Literal["q", "k", "v", "z", "pattern"]

#: what is left of a head's attention beside the targets that were asked for
REST = "rest"
_SUMMARY = ["run", "layer", "head", "target", "mean", "sd", "n"]
_HEAD = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Restore:
    """What the patched run takes from the clean run: a site of some heads, at all positions.

    Attributes:
        site: "q", "k", "v", "z" or "pattern".
        heads: "layer.head" each. With grouped queries `k` and `v` belong to a group, so the whole group of a head is
            restored.
    """

    site: HeadSite
    heads: tuple[str, ...]


@dataclass(frozen=True)
class AttentionView:
    """Attention of some heads to parts of the prompt.

    Attributes:
        table: one row per run, draw, pair, head and target: `run` ("clean", "corrupted", "patched"), `seed` (the draw;
            0 for the clean run), `pair, layer, head, target, weight`. The weight is the sum over the target's
            positions, in [0, 1].
        summary: one row per run and target, and one more per run, head and target: `run, layer, head, target, mean, sd,
            n`; layer and head are missing where all heads are taken together. `sd` is over prompts, heads and draws
            (with n - 1), `n` their number.
    """

    table: pd.DataFrame
    summary: pd.DataFrame


@dataclass(frozen=True)
class _Job:
    model: Model
    heads: Mapping[int, tuple[int, ...]]  # layer -> heads that are looked at
    query: str
    targets: tuple[str, ...]
    patches: Mapping[int, tuple[int, ...]]  # layer -> heads that are restored
    site: HeadSite | None


def attention_view(
    model: Model,
    pairs: PairSet,
    heads: Sequence[str],
    targets: Sequence[str],
    *,
    query: str = "last",
    corruption: Corruption | str = "str",
    restore: Restore | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttentionView:
    """How much some heads look at named parts of the prompt in the clean, the corrupted and a patched run.

    `weight = Σ_{j in target} A[i, j]`, i the query position, A the attention weights after the softmax; `rest` is the
    row's sum over all positions that belong to no target. The patched run is the corrupted one with `restore` taken
    from the clean run at all positions that have a partner there (denoising).

    Args:
        model: the model.
        pairs: the pairs.
        heads: heads that are looked at, "layer.head" each, counted from 0: ("9.9", "10.0").
        targets: spans ("io", "s1", "s2") or position roles ("subject_last", "bos"), looked up in the prompt that the
            run has. A prompt that lacks one has no row for it.
        query: the position that looks: "last", a span or a role; of several positions the last.
        corruption: how the corrupted run is made: a corruption, or the name of one with its default options. For an
            ablation there is only the clean run.
        restore: makes a patched run; None for none.
        seed: seed of a random corruption.
        progress: called with (what, done, total).

    Raises:
        SiteError: a head or site that the model does not have, or an ablation with `restore`.
        PairsError: pairs at fault; no prompt has the query or a target; two targets share a position.
        ModelError: the model has no tokenizer.

    Source: Zhang & Nanda, arXiv 2309.16042 (attention of the name movers 9.6, 9.9, 10.0 of GPT-2 to IO, S1, S2 and
        the rest; the value vectors of 7.3, 7.9, 8.6, 8.10 restored); Wang et al., arXiv 2211.00593.
    """
    anatomy = model.anatomy
    looked_at = _by_layer(heads, anatomy)
    restored = {} if restore is None else _by_layer(restore.heads, anatomy, restore.site in KV_SITES)
    for layer in looked_at:
        model.site("pattern", layer)
    for layer in restored:
        model.site(restore.site if restore else "z", layer)
    prepared, how = prepare(model, pairs, corruption, seed)
    _check_lengths(model, prepared)
    if restore is not None and how.level == "activation":
        raise SiteError(
            "The corruption is an ablation, which writes into the clean run and makes no corrupted run, so nothing can "
            "be restored in it; choose another corruption or leave restore out."
        )
    job = _Job(model, looked_at, query, tuple(dict.fromkeys(targets)), restored, restore.site if restore else None)
    _check_targets(job, prepared)
    rows: list[tuple[object, ...]] = []
    for part in _parts(job, prepared):
        rows += _rows(job, part)
        if progress:
            progress("attention", part[-1].index + 1, len(prepared))
    columns = ["run", "seed", "pair", "layer", "head", "target", "weight"]
    table = pd.DataFrame(rows, columns=columns)
    return AttentionView(table, summarise_attention(table))


def summarise_attention(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of weights over prompts, heads and draws: all heads together, then head by head.

    Args:
        table: `AttentionView.table`.

    Returns:
        The columns of `AttentionView.summary`.
    """
    rows: list[tuple[object, ...]] = []
    for keys in (["run", "target"], ["run", "layer", "head", "target"]):
        for names, values in table.groupby(keys, sort=False)["weight"]:
            found = dict(zip(keys, names, strict=True)) if isinstance(names, tuple) else {}
            rows.append((*map(found.get, _SUMMARY[:4]), values.mean(), values.std(), len(values)))
    return pd.DataFrame(rows, columns=_SUMMARY).astype({"layer": "Int64", "head": "Int64"})


def parse_head(name: str, anatomy: Anatomy) -> tuple[int, int]:
    """(layer, head) of a head's name, "9.6".

    Raises:
        SiteError: it is no such name, or the model has no such head.
    """
    found = _HEAD.fullmatch(name.strip())
    if found is None:
        raise SiteError(f"{name!r} is no head; give layer and head with a point between them, for example '9.6'.")
    layer, head = int(found[1]), int(found[2])
    if layer >= anatomy.n_layers or head >= anatomy.n_heads:
        raise SiteError(
            f"There is no head {name}: the model has layers 0 to {anatomy.n_layers - 1} with heads 0 to "
            f"{anatomy.n_heads - 1}."
        )
    return layer, head


def _by_layer(names: Iterable[str], anatomy: Anatomy, groups: bool = False) -> dict[int, tuple[int, ...]]:
    """Heads by layer; their key/value groups where those are meant."""
    width = anatomy.n_heads // anatomy.n_kv_heads if groups else 1
    found = sorted({parse_head(name, anatomy) for name in names})
    if not found:
        raise SiteError("No head was named; give at least one, for example '9.6'.")
    layers = dict.fromkeys(layer for layer, _ in found)
    return {layer: tuple(sorted({head // width for at, head in found if at == layer})) for layer in layers}


def _positions(name: str, prompt: TokenizedPrompt) -> tuple[int, ...]:
    if name == "last":
        return (len(prompt) - 1,)
    if name in prompt.spans:
        return prompt.spans[name]
    return tuple(index for index, role in enumerate(prompt.roles) if role == name)


def _check_lengths(model: Model, prepared: Sequence[Prepared]) -> None:
    longest = {pair.id: max(len(pair.tokens.clean), len(pair.tokens.corrupted)) for pair in prepared}
    if faults := [fault for pair, length in longest.items() for fault in too_long(model, pair, length)]:
        raise PairsError(shortened(faults))


def _check_targets(job: _Job, prepared: Sequence[Prepared]) -> None:
    if not job.targets or REST in job.targets:
        raise PairsError(f"Name the parts of the prompt that the heads may look at; {REST!r} is what is left of them.")
    prompts = [(pair.id, pair.tokens.clean) for pair in prepared]
    faults: list[str] = []
    for name in (job.query, *job.targets):
        if not any(_positions(name, prompt) for _, prompt in prompts):
            known = sorted({*(span for _, prompt in prompts for span in prompt.spans),
                            *(role for _, prompt in prompts for role in prompt.roles)})  # fmt: skip
            faults.append(f"No prompt has a position {name!r}; there are: {', '.join(known)}.")
    for pair in prepared:
        for prompt in (pair.tokens.clean, pair.tokens.corrupted):
            every = [position for name in job.targets for position in _positions(name, prompt)]
            if len(every) > len(set(every)):
                names = ", ".join(job.targets)
                faults.append(f"Pair {pair.id!r}: two of the targets {names} share a token, which would be counted "
                              "twice; leave one of them out.")  # fmt: skip
                break
    if faults:
        raise PairsError(shortened(faults))


def _parts(job: _Job, prepared: Sequence[Prepared]) -> Iterator[list[Prepared]]:
    """Pairs whose recorded values fit into memory together; at least one at a time."""
    anatomy, size = job.model.anatomy, job.model.dtype.itemsize
    part: list[Prepared] = []
    taken = 0.0
    for pair in prepared:
        length, runs = max(len(pair.tokens.clean), len(pair.tokens.corrupted)), 1 + 2 * len(pair.draws)
        weights = len(job.heads) * anatomy.n_heads * length**2
        read = len(job.patches) * length * max(anatomy.d_model, anatomy.n_heads * max(anatomy.d_head, length))
        cost = runs * size * (weights + read)
        if part and taken + cost > KEPT_BYTES:
            yield part
            part, taken = [], 0.0
        part.append(pair)
        taken += cost
    if part:
        yield part


def _rows(job: _Job, pairs: Sequence[Prepared]) -> list[tuple[object, ...]]:
    """Rows of the table, pair by pair and run by run."""
    plan, wanted = _plan(job, pairs)
    places: list[Place] = [("pattern", layer) for layer in job.heads]
    found: dict[str, list[tuple[object, ...]]] = {run: [] for run in wanted}
    for run, (_, layer), value in record_plan(job.model, plan, {run: places for run in wanted}):
        assert layer is not None
        start, pair, prompt = wanted[run]
        found[run] += [(*start, pair, *row) for row in _weights(job, layer, value, prompt)]
    return [row for rows in found.values() for row in sorted(rows, key=lambda row: (row[3], row[4]))]  # pyright: ignore


def _plan(job: _Job, pairs: Sequence[Prepared]) -> tuple[Plan, dict[str, tuple[tuple[str, int], str, TokenizedPrompt]]]:
    """The runs, and for each that is looked at: (run, seed), the pair, its prompt."""
    bases: dict[str, BaseRun] = {}
    derived: list[DerivedRun] = []
    wanted: dict[str, tuple[tuple[str, int], str, TokenizedPrompt]] = {}
    for pair in pairs:
        clean = clean_run(pair)
        bases[clean.id] = clean
        wanted[clean.id] = (("clean", 0), pair.id, pair.tokens.clean)
        for draw in pair.draws:
            corrupted = corrupted_run(pair, draw)
            bases[corrupted.id] = corrupted
            wanted[corrupted.id] = (("corrupted", draw.seed), pair.id, pair.tokens.corrupted)
            if job.site is not None:
                patched = DerivedRun(f"{corrupted.id}/patched", corrupted.id, _patches(job, pair, clean))
                derived.append(patched)
                wanted[patched.id] = (("patched", draw.seed), pair.id, pair.tokens.corrupted)
    return Plan(tuple(bases.values()), tuple(derived)), wanted


def _patches(job: _Job, pair: Prepared, clean: BaseRun) -> tuple[Patch, ...]:
    assert job.site is not None
    partners = pair.partner(range(len(pair.tokens.clean)))
    source = FromRun(clean.id, tuple(p for p, _ in partners))
    into = tuple(q for _, q in partners)
    if job.site == "pattern" and len(pair.tokens.clean) != len(pair.tokens.corrupted):
        raise PairsError(
            f"Pair {pair.id!r}: attention weights have no partner in a prompt of another length; restore another site."
        )
    return tuple(Patch(job.site, layer, into, source, heads) for layer, heads in job.patches.items())


def _weights(job: _Job, layer: int, value: Tensor, prompt: TokenizedPrompt) -> Iterator[tuple[object, ...]]:
    """(layer, head, target, weight) of one run and layer; `value` [n_heads, query, key]."""
    at = _positions(job.query, prompt)
    if not at:
        return
    rows = value[list(job.heads[layer]), at[-1]].detach().to("cpu").double().numpy()  # [heads, key]
    places = {name: list(_positions(name, prompt)) for name in job.targets}
    left = np.ones(rows.shape[1], dtype=bool)
    left[[position for positions in places.values() for position in positions]] = False
    for head, row in zip(job.heads[layer], rows, strict=True):
        for name, positions in places.items():
            if positions:
                yield layer, head, name, float(row[positions].sum())
        yield layer, head, REST, float(row[left].sum())
