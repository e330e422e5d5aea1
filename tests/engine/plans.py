"""Random plans on a tiny model.

One generator draws every plan; its choices come from Hypothesis (`plans`, which shrinks what fails) or from a seed
(`seeded_plan`, which is faster). Everything that a plan may hold is drawn: see `random_plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from engramscope.engine import reference
from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Noise, Patch, Plan, Readout, Source
from engramscope.models import Model
from engramscope.models.site import HEAD_SITES, KV_SITES, Port

T = TypeVar("T")
AnyRun = BaseRun | DerivedRun
#: the first ids of the tiny vocabularies are special tokens
TOKENS = (3, 98)
SHORTEST, LONGEST = 3, 9


# ------------------------------------------------------------------------------------------------------- choices


class Choices(Protocol):
    """Where a generator takes its decisions from."""

    def integer(self, low: int, high: int) -> int:
        """A number from low to high, both included; `low` is the simplest."""
        ...


class Seeded:
    """Choices of a seeded generator."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))


class Drawn:
    """Choices of Hypothesis."""

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int]) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))


def chance(c: Choices, percent: int) -> bool:
    return c.integer(0, 99) >= 100 - percent


def pick(c: Choices, items: Sequence[T]) -> T:
    return items[c.integer(0, len(items) - 1)]


def some(c: Choices, items: Sequence[T], count: int) -> tuple[T, ...]:
    """`count` of the items in any order, none of them twice."""
    left, chosen = list(items), []
    for _ in range(count):
        chosen.append(left.pop(c.integer(0, len(left) - 1)))
    return tuple(chosen)


def normal(c: Choices, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(c.integer(0, 10_000)))


# ----------------------------------------------------------------------------------------- what a model can be asked


@dataclass(frozen=True)
class Place:
    """A place that can be patched.

    Attributes:
        site: named site or module path.
        layer: the block; None where the site exists once.
        heads: number of heads; None for sites without.
        width: of the value at the port (all heads of a pattern: 0).
        port: equal for places that are the same tensor; two of them in one run have no order that a plan could say.
    """

    site: str
    layer: int | None
    heads: int | None
    width: int
    port: object


@dataclass(frozen=True)
class Places:
    """Places of a model: its named sites by site, and its module paths."""

    named: Mapping[str, tuple[Place, ...]]
    paths: tuple[Place, ...]
    n_heads: int
    d_model: int

    def around(self, patch: Patch) -> tuple[Place, ...]:
        """Named places that a patch of another run may show at: its own layer and its neighbours', or all of them."""
        layer = patch.layer
        return tuple(
            place
            for places in self.named.values()
            for place in places
            if layer is None or place.layer is None or abs(place.layer - layer) <= 1
        )


@cache
def places_of(model: Model) -> Places:
    """Every place of a model, with the width of its port."""
    a = model.anatomy
    named = [
        (site, layer)
        for site in model.sites
        for layer in ([None] if site in ("embed", "final_norm", "logits") else range(a.n_layers))
    ]
    wanted = [*named, *((path, None) for path in model.module_paths)]
    widths = {
        place: 0 if value.ndim == 3 else int(value.shape[-1])
        for _, place, value in reference.record(model, [BaseRun("probe", (5, 6, 7))], wanted)
    }
    counts = {site: a.n_kv_heads if site in KV_SITES else a.n_heads for site in HEAD_SITES}

    def made(site: str, layer: int | None) -> Place:
        access = model.site(site, layer)
        port = (access.path, access.side) if isinstance(access, Port) else (site, layer)
        return Place(site, layer, counts.get(site), widths[site, layer], port)

    by_site: dict[str, list[Place]] = {}
    for site, layer in named:
        by_site.setdefault(site, []).append(made(site, layer))
    return Places(
        {site: tuple(places) for site, places in by_site.items()},
        tuple(made(path, None) for path in model.module_paths),
        a.n_heads,
        a.d_model,
    )


# ------------------------------------------------------------------------------------------------------- the plans


@st.composite
def plans(draw: Any, model: Model, causal: bool = True) -> Plan:
    """Random plans on a model; `causal` as in `random_plan`."""
    return random_plan(Drawn(draw), model, causal=causal)


def seeded_plan(model: Model, seed: int, causal: bool = True, most_runs: int = 8) -> Plan:
    """The random plan of a seed."""
    return random_plan(Seeded(seed), model, causal=causal, most_runs=most_runs)


def random_plan(c: Choices, model: Model, *, causal: bool = True, most_runs: int = 8) -> Plan:
    """A plan that mixes everything that plans can say.

    Prompts of several lengths that share beginnings, or are equal; several noise draws on the same tokens; runs derived
    from them with up to three patches (and windows of layers) at all sites and module paths, of one head, several or
    all, at one position, several in any order, or all; sources that are base runs, derived runs of any depth, constants
    or the run's own values; read-outs at any positions, or none.

    Args:
        c: where the choices come from.
        model: the model.
        causal: attention weights that are written never look ahead. Without it, rows of any query position go anywhere.
        most_runs: derived runs at most.
    """
    places = places_of(model)
    bases = _bases(c, places)
    derived: list[DerivedRun] = []
    for number in range(c.integer(1, most_runs)):
        base = pick(c, bases)
        derived.append(DerivedRun(f"d{number}", base.id, _patches(c, places, base, bases, derived, causal)))
    lengths = {base.id: len(base.tokens) for base in bases}
    lengths |= {run.id: lengths[run.base] for run in derived}
    return Plan(tuple(bases), tuple(derived), _readouts(c, lengths))


def _bases(c: Choices, places: Places) -> list[BaseRun]:
    clean = _tokens(c, c.integer(SHORTEST, LONGEST))
    prompts = [clean, _changed(c, clean)]
    if chance(c, 60):  # begins as the clean prompt does; another length
        kept = c.integer(1, len(clean))
        prompts.append((*clean[:kept], *_tokens(c, c.integer(0 if kept >= SHORTEST else SHORTEST, LONGEST - kept))))
    if chance(c, 40):
        prompts.append(_tokens(c, c.integer(1, LONGEST)))
    if chance(c, 30):
        prompts.append(pick(c, prompts))
    bases = [BaseRun(f"b{number}", tokens) for number, tokens in enumerate(prompts)]
    if chance(c, 60):
        noised = pick(c, prompts)
        at = some(c, range(len(noised)), c.integer(1, min(3, len(noised))))
        for draw in range(c.integer(1, 3)):
            bases.append(BaseRun(f"n{draw}", noised, Noise(at, 0.5 * normal(c, len(at), places.d_model))))
    return bases


def _tokens(c: Choices, count: int) -> tuple[int, ...]:
    return tuple(c.integer(*TOKENS) for _ in range(count))


def _changed(c: Choices, tokens: tuple[int, ...]) -> tuple[int, ...]:
    new = list(tokens)
    for position in some(c, range(len(tokens)), c.integer(1, 3)):
        new[position] = TOKENS[0] + (new[position] - TOKENS[0] + c.integer(1, 50)) % (TOKENS[1] - TOKENS[0])
    return tuple(new)


def _patches(
    c: Choices, places: Places, base: BaseRun, bases: Sequence[BaseRun], derived: Sequence[DerivedRun], causal: bool
) -> tuple[Patch, ...]:
    patches: list[Patch] = []
    ports: dict[object, Place] = {}
    for _ in range(0 if chance(c, 4) else c.integer(1, 3)):
        source = pick(c, derived) if derived and chance(c, 35) else None
        near = places.around(pick(c, source.patches)) if source and source.patches and chance(c, 60) else ()
        place = pick(c, list(ports.values())) if ports and chance(c, 30) else pick(c, near) if near else _any(c, places)
        for patch in _window(c, places, place, base, bases, derived, source, causal):
            where = _place(places, patch)
            if _in_order(where, ports):
                ports[where.port] = where
                patches.append(patch)
    return tuple(patches)


def _any(c: Choices, places: Places) -> Place:
    if places.paths and chance(c, 20):
        return pick(c, places.paths)
    return pick(c, places.named[pick(c, list(places.named))])


def _place(places: Places, patch: Patch) -> Place:
    found = places.named.get(patch.site, places.paths)
    return next(place for place in found if (place.site, place.layer) == (patch.site, patch.layer))


def _in_order(where: Place, ports: Mapping[object, Place]) -> bool:
    """Whether the plan says in which order this place and those already patched are written: q, k and v may share a
    port, because they are other columns of it; one tensor under two names has no order."""
    other = ports.get(where.port)
    return other is None or other.site == where.site or {other.site, where.site} <= {"q", "k", "v"}


def _window(
    c: Choices,
    places: Places,
    place: Place,
    base: BaseRun,
    bases: Sequence[BaseRun],
    derived: Sequence[DerivedRun],
    wanted: DerivedRun | None,
    causal: bool,
) -> Iterator[Patch]:
    """One patch, or the same in adjacent layers."""
    length = len(base.tokens)
    heads = None
    if place.heads is not None and chance(c, 65):
        heads = some(c, range(place.heads), 1 if chance(c, 60) else c.integer(1, place.heads))
    positions = _positions(c, length)
    source = _source(c, places, place, positions, base, bases, derived, wanted, causal)
    layers = [place.layer]
    if place.layer is not None and chance(c, 15):
        every = [other.layer for other in places.named[place.site]]
        layers = every[every.index(place.layer) :][: c.integer(2, 3)]
    if isinstance(source, FromRun) and chance(c, 5):  # the same position twice, with the same value
        source, positions = FromRun(source.run, (*source.positions, source.positions[0])), (*positions, positions[0])
    for layer in layers:
        yield Patch(place.site, layer, positions, source, heads)


def _positions(c: Choices, length: int) -> tuple[int, ...]:
    kind = c.integer(0, 9)
    if kind <= 3:
        return (c.integer(0, length - 1),)
    if kind <= 6:
        return some(c, range(length), c.integer(1, length))
    return tuple(range(length)) if kind <= 8 else (length - 1,)


def _source(
    c: Choices,
    places: Places,
    place: Place,
    positions: tuple[int, ...],
    base: BaseRun,
    bases: Sequence[BaseRun],
    derived: Sequence[DerivedRun],
    wanted: DerivedRun | None,
    causal: bool,
) -> Source:
    length = {run.id: len(run.tokens) for run in bases}
    kind = c.integer(0, 99)
    if kind >= 80:
        return Constant(_constant(c, places, place, positions, len(base.tokens), causal))
    candidates: list[AnyRun] = [base] if kind >= 70 else [wanted] if wanted else [*bases]
    if place.site == "pattern":  # rows of attention weights have as many columns as the prompt has tokens
        candidates = [run for run in candidates if length[_base_id(run)] == len(base.tokens)] or [base]
    run = pick(c, candidates)
    limit = length[_base_id(run)]
    if max(positions) < limit and chance(c, 80):
        return FromRun(run.id, positions)
    ahead = place.site == "pattern" and causal
    return FromRun(run.id, tuple(c.integer(0, min(limit - 1, at) if ahead else limit - 1) for at in positions))


def _base_id(run: AnyRun) -> str:
    return run.id if isinstance(run, BaseRun) else run.base


def _constant(
    c: Choices, places: Places, place: Place, positions: tuple[int, ...], length: int, causal: bool
) -> Tensor:
    kind = c.integer(0, 3)
    if kind == 0:
        return torch.zeros(())
    rows = 1 if kind == 1 else len(positions)
    if place.site != "pattern":
        return torch.tensor(0.5) if kind == 3 and chance(c, 20) else normal(c, rows, place.width)
    keys = length if chance(c, 70) else c.integer(1, length)
    weights = normal(c, rows, places.n_heads, keys).softmax(-1)
    if causal:
        last = torch.tensor([min(positions)] if rows == 1 else positions)
        weights = weights * (torch.arange(keys) <= last[:, None])[:, None, :]
    return weights


def _readouts(c: Choices, lengths: Mapping[str, int]) -> tuple[Readout, ...]:
    # few different numbers of positions, so that the reference executor can put runs into one forward
    numbers = (1, c.integer(1, 3), LONGEST)
    found = []
    for run, length in lengths.items():
        if chance(c, 15 if run.startswith("d") else 40):
            continue
        count = min(pick(c, numbers), length)
        found.append(Readout(run, (length - 1,) if count == 1 and chance(c, 40) else some(c, range(length), count)))
    return some(c, found, len(found))
