"""Cells that restore everything, or nothing, by construction: found from the graph of layers and positions.

A patch can cut every path from what was changed to the read-out. Then the patched run *is* the source run as far as
the read-out can see: the recovery is 100 % whatever the weights are, and says nothing about the model (the logits at
the read-out position, the last block's residual there, the residual of any layer at all positions, the embedding of
the only changed tokens). Such a cell is a *cut*. In an ablation, where there is no source run, every token of the
prompt counts as changed: a cut leaves nothing of the prompt in what is read (zero in the last block's residual at the
end), and so shows the same in any model. Conversely a patch whose value cannot differ between the two runs, or
from which no path leads to the read-out, has the effect 0 whatever the weights are. Such a cell is *inert*.

Both follow from propagating "may differ" through the model, one truth value per position:

    embedding   differs where tokens, noise or the place in the prompt differ
    attention   at t differs if its input differs at any s <= t (causal), or if the prompts are not aligned before t
    MLP         at t differs if its input differs at t
    residual    at t differs if what it was, or anything added to it, differs at t
    a patch     puts the source run's value in the place of the target run's own

A `cut` is exact in what it asserts: a cell is called a cut only if no path is left open. Whatever is not known
(the inside of an unknown module, attention windows, a part of the heads) counts as an open path.

Assumption: a block's only inputs that depend on the tokens are the residual stream's values. An architecture that
hands token embeddings or another layer's keys and values to a block (per-layer inputs) breaks it.

Source: Zhang & Nanda, arXiv 2309.16042; the guard itself is ours (no other tool has it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engramscope.corruptions._base import Level
from engramscope.locate.cells import Cell, Direction, cell_positions
from engramscope.models.anatomy import Anatomy
from engramscope.models.site import GLOBAL_SITES, HEAD_SITES, KV_SITES, is_module_path
from engramscope.pairs.tokenized import TokenizedPair

#: (site, layer) -> whether the value there may differ between two models for equal inputs
Differs = Callable[[str, int | None], bool]

_Flags: TypeAlias = NDArray[np.bool_]
_Place: TypeAlias = tuple[str, int | None]
_Write: TypeAlias = Callable[[str, int | None, _Flags], _Flags]

#: a module of which nothing is known but the block that it stands in
_OTHER = "other"
#: here the attention and MLP modules add the residual themselves: their outputs are the residual stream
_ADD_THE_RESIDUAL = frozenset({"bloom"})
#: only these can close a path: a changed residual passes every other site by
_CLOSING = frozenset({"embed", "resid_pre", "resid_mid", "resid_post", "z", "attn_out", "final_norm", "logits"})


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the cell's values go: site and layer of each patch, and whether all heads are replaced."""

    places: tuple[_Place, ...]
    whole: bool
    closes: bool


#: stands for every cell that closes no path
_OPEN = _Target((), whole=False, closes=False)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Everything besides the cell that decides: positions of the target run, up to the last read-out.

    Attributes:
        changed: positions whose embedding differs from the source run's, or that have no partner there.
        moved: positions that have no partner, or one at another index.
        broken: positions from which the source run sees positions that the target run lacks, or at another distance.
        readouts: positions at which logits are read.
    """

    changed: tuple[int, ...]
    moved: tuple[int, ...]
    broken: tuple[int, ...]
    readouts: tuple[int, ...]

    @property
    def length(self) -> int:
        return max(self.readouts) + 1


def changed_positions(pair: TokenizedPair, direction: Direction, noised: Sequence[int] = ()) -> tuple[int, ...]:
    """Positions of the *target* run that differ from their partner in the source run before the first block.

    Args:
        pair: the pair; its alignment says who is whose partner.
        direction: "denoise" (the target is the corrupted prompt) or "noise" (the clean prompt).
        noised: positions of the corrupted prompt to whose embeddings noise is added.

    Returns:
        Aligned positions with another token, another index or noise; and positions without a partner. Ascending.
    """
    alignment = pair.alignment
    different = {*pair.changed, *noised}
    if direction == "denoise":
        return tuple(sorted({*different, *alignment.corrupted_only}))
    partner = dict(zip(alignment.corrupted, alignment.clean, strict=True))
    return tuple(sorted({*(partner[q] for q in different if q in partner), *alignment.clean_only}))


def patched_positions(cell: Cell, pair: TokenizedPair) -> tuple[int, ...]:
    """Positions of the *target* run that the cell patches: its clean positions, or their partners when denoising.

    Positions without a partner are left out: there is nothing to patch them from, or with.
    """
    alignment = pair.alignment
    if not alignment.clean_only and alignment.clean == alignment.corrupted:
        return cell_positions(cell, pair)
    partner = dict(zip(alignment.clean, alignment.corrupted, strict=True))
    positions = [p for p in cell_positions(cell, pair) if p in partner]
    return tuple(partner[p] for p in positions) if cell.direction == "denoise" else tuple(positions)


class CutFinder:
    """Decides which cells are cuts and which are inert, and remembers the answer for equal geometries.

    Args:
        anatomy: the model's parts.
        level: of the corruption. In ablations ("activation") a cell is a cut if nothing of the run's own prompt reaches
            the read-out any more, and inert only if no path leads from it to the read-out.
        differs: where the two runs are those of two models ("weights"), where these differ.
    """

    def __init__(self, anatomy: Anatomy, level: Level = "tokens", differs: Differs | None = None) -> None:
        self._anatomy = anatomy
        self._level = level
        self._models_differ = differs or _nowhere
        self._targets: dict[tuple[str, tuple[int, ...], tuple[int, ...] | None], _Target] = {}
        self._cuts: dict[object, bool] = {}
        # the pair is kept beside its geometry, so that no other pair can come to have its identity
        self._geometries: dict[object, tuple[TokenizedPair, _Geometry]] = {}
        self._inert: dict[object, bool] = {}

    def is_cut(
        self,
        cell: Cell,
        pair: TokenizedPair,
        changed: Sequence[int],
        positions: Sequence[int],
        readout: int | Sequence[int],
    ) -> bool:
        """Whether the patched run's logits at the read-out equal the source run's, whatever the weights are.

        Args:
            cell: site, layers, heads and direction.
            pair: for its alignment.
            changed: positions of the target run that differ from the source run (`changed_positions`).
            positions: positions of the target run that are patched (`patched_positions`).
            readout: position(s) of the target run whose logits are read; more than one for whole answers.

        Returns:
            True if nothing that differs reaches any read-out. Also where the two runs cannot differ there at all.
            For ablations: True if what is read no longer depends on the prompt (`changed` is not looked at).
        """
        return self._cut(self._target(cell), positions, self._of_target(cell.direction, pair, changed, readout))

    def is_inert(
        self,
        cell: Cell,
        pair: TokenizedPair,
        changed: Sequence[int],
        positions: Sequence[int],
        readout: int | Sequence[int],
    ) -> bool:
        """Whether the patched run's logits at the read-out equal the target run's own, whatever the weights are.

        The arguments are those of `is_cut`.

        Returns:
            True if the patched value cannot differ between the runs, or if no path leads from it to any read-out.
        """
        target = self._target(cell)
        key = (target, tuple(positions), _geometry(cell.direction, pair, changed, readout))
        if key not in self._inert:
            self._inert[key] = not self._differs_from_target(*key)
        return self._inert[key]

    def cut_in(
        self, cell: Cell, pair: TokenizedPair, noised: Sequence[int] = (), answer_tokens: int = 1
    ) -> bool | None:
        """Whether the cell is a cut in this pair; None where it patches nothing.

        Args:
            cell: the cell.
            pair: the pair.
            noised: for Gaussian noise, the noised positions of the pair's corrupted prompt.
            answer_tokens: how many tokens of the answer are read, the first after the prompt's last position.
        """
        if cell.paths is not None or (cell.severed is not None and not self._ends_the_blocks(cell)):
            return False  # all edges but those named, or the severed modules, go on as in the unpatched run
        ablated = self._level == "activation"
        positions = cell_positions(cell, pair) if ablated else patched_positions(cell, pair)
        if not positions:
            return None
        key = (id(pair), cell.direction, tuple(noised), answer_tokens)
        if key not in self._geometries:
            self._geometries[key] = (pair, self._geometry_of(cell.direction, pair, noised, answer_tokens))
        return self._cut(self._target(cell), positions, self._geometries[key][1])

    def inert_in(self, cell: Cell, pair: TokenizedPair, answer_tokens: int = 1) -> bool:
        """Whether the cell is inert in this pair (`is_inert`), whose prompts are one; False where it patches nothing.

        Args:
            cell: the cell.
            pair: the pair.
            answer_tokens: as for `cut_in`.
        """
        positions = patched_positions(cell, pair)
        readouts = tuple(range(len(pair.clean) - 1, len(pair.clean) - 1 + answer_tokens))
        return bool(positions) and self.is_inert(cell, pair, (), positions, readouts)

    def _ends_the_blocks(self, cell: Cell) -> bool:
        """Whether nothing of a block comes after what the cell restores."""
        return cell.site == "resid_post" and max(cell.layers) == self._anatomy.n_layers - 1

    def _geometry_of(
        self, direction: Direction, pair: TokenizedPair, noised: Sequence[int], answer_tokens: int
    ) -> _Geometry:
        ablated = self._level == "activation"
        prompt = pair.corrupted if direction == "denoise" and not ablated else pair.clean
        readouts = tuple(range(len(prompt) - 1, len(prompt) - 1 + answer_tokens))
        changed = () if ablated else changed_positions(pair, direction, noised)
        return self._of_target(direction, pair, changed, readouts)

    def _of_target(
        self, direction: Direction, pair: TokenizedPair, changed: Sequence[int], readout: int | Sequence[int]
    ) -> _Geometry:
        if self._level == "activation":
            readouts = (readout,) if isinstance(readout, int) else tuple(readout)
            return _Geometry(tuple(range(len(pair.clean))), (), (), readouts)
        return _geometry(direction, pair, changed, readout)

    def _cut(self, target: _Target, positions: Sequence[int], geometry: _Geometry) -> bool:
        key = (target, tuple(positions), geometry) if target.closes else (_OPEN, (), geometry)
        if key not in self._cuts:
            self._cuts[key] = not self._differs_from_source(*key)
        return self._cuts[key]

    def _target(self, cell: Cell) -> _Target:
        key = (cell.site, cell.layers, cell.heads)
        if key not in self._targets:
            target = _resolve(cell, self._anatomy)
            # between two models everything that differs may lie inside one module
            self._targets[key] = replace(target, closes=target.whole) if self._level == "weights" else target
        return self._targets[key]

    def _differs_from_source(self, target: _Target, positions: tuple[int, ...], geometry: _Geometry) -> bool:
        patched = _flags(positions, geometry.length)

        def write(site: str, layer: int | None, value: _Flags) -> _Flags:
            value = value | self._models_differ(site, layer)
            return value & ~patched if target.whole and (site, layer) in target.places else value

        end = _propagate(
            self._anatomy,
            _flags(geometry.changed, geometry.length),
            _flags(geometry.moved, geometry.length),
            _flags(geometry.broken, geometry.length),
            write,
        )
        return bool(end[list(geometry.readouts)].any())

    def _differs_from_target(self, target: _Target, positions: tuple[int, ...], geometry: _Geometry) -> bool:
        patched, never = _flags(positions, geometry.length), np.zeros(geometry.length, dtype=np.bool_)
        between = self._between_runs(geometry)

        def write(site: str, layer: int | None, value: _Flags) -> _Flags:
            if (site, layer) not in target.places:
                return value
            # what differs from the target differs between the runs as well: nothing to be taken away here
            return value | (patched & between[site, layer])

        end = _propagate(self._anatomy, never, never, never, write)
        return bool(end[list(geometry.readouts)].any())

    def _between_runs(self, geometry: _Geometry) -> dict[_Place, _Flags]:
        # where source and target differ before anything is patched; an ablation's value may differ everywhere
        seen: dict[_Place, _Flags] = {}

        def write(site: str, layer: int | None, value: _Flags) -> _Flags:
            value = value | self._models_differ(site, layer)
            seen[site, layer] = np.ones_like(value) if self._level == "activation" else value
            return value

        start = _flags(geometry.changed, geometry.length)
        _propagate(self._anatomy, start, _flags(geometry.moved, geometry.length),
                   _flags(geometry.broken, geometry.length), write)  # fmt: skip
        for layer in (None, *range(self._anatomy.n_layers)):
            # nothing is known of these modules but that they are causal
            seen[_OTHER, layer] = seen["logits", None] | np.logical_or.accumulate(start)
        return seen


def is_cut(
    cell: Cell,
    pair: TokenizedPair,
    anatomy: Anatomy,
    changed: Sequence[int],
    positions: Sequence[int],
    readout: int | Sequence[int],
) -> bool:
    """`CutFinder.is_cut` for a single question; keep a `CutFinder` for many."""
    return CutFinder(anatomy).is_cut(cell, pair, changed, positions, readout)


def is_inert(
    cell: Cell,
    pair: TokenizedPair,
    anatomy: Anatomy,
    changed: Sequence[int],
    positions: Sequence[int],
    readout: int | Sequence[int],
) -> bool:
    """`CutFinder.is_inert` for a single question; keep a `CutFinder` for many."""
    return CutFinder(anatomy).is_inert(cell, pair, changed, positions, readout)


def _propagate(anatomy: Anatomy, start: _Flags, moved: _Flags, broken: _Flags, write: _Write) -> _Flags:
    """Which positions' logits differ; `write` sees every site's flags and returns what becomes of them.

    A replaced token embedding does not move a token: where partners stand at different indices the residual differs
    all the same (learned positions), and so does the attention, whose distances differ (rotary positions).
    """
    cumulative = np.logical_or.accumulate
    residual = write("embed", None, start) | moved
    residual = residual | cumulative(write(_OTHER, None, np.zeros_like(start)))
    for layer in range(anatomy.n_layers):
        residual = write("resid_pre", layer, residual)
        q, k, v = (write(site, layer, residual) for site in ("q", "k", "v"))
        pattern = write("pattern", layer, q | cumulative(k) | broken)
        z = write("z", layer, pattern | cumulative(v) | broken)
        # an unknown module may act on anything in its block, at its own positions and at later ones
        other = cumulative(write(_OTHER, layer, np.zeros_like(start)))
        attention = write("attn_out", layer, z)
        middle = residual | attention | other
        if not anatomy.parallel:
            middle = write("resid_mid", layer, middle)
        neurons = write("mlp_act", layer, residual | other if anatomy.parallel else middle)
        mlp = write("mlp_out", layer, neurons)
        residual = write("resid_post", layer, middle | mlp)
    return write("logits", None, write("final_norm", None, residual))


def _resolve(cell: Cell, anatomy: Anatomy) -> _Target:
    site = cell.site
    if is_module_path(site):
        paths = [site.replace("{layer}", str(layer)) for layer in cell.layers] if "{layer}" in site else [site]
        places = tuple(_place_of(path, anatomy) for path in paths)
    elif site == "resid_mid" and anatomy.parallel:
        places = tuple((_OTHER, layer) for layer in cell.layers)
    else:
        places = ((site, None),) if site in GLOBAL_SITES else tuple((site, layer) for layer in cell.layers)
    whole = _all_heads(cell, anatomy) and all(kind not in {_OTHER, "mlp_act"} for kind, _ in places)
    return _Target(places, whole, whole and any(kind in _CLOSING for kind, _ in places))


def _place_of(path: str, anatomy: Anatomy) -> _Place:
    """The site that a module's output is, or determines: (site, layer).

    An attention module's output determines `attn_out` also where a norm follows it, or where it holds the residual
    too; the head's output determines the logits also where they are soft-capped. A module inside an MLP is taken for a
    part of its neurons: it acts at its own position only, and closes no path.
    """
    adds = anatomy.model_type in _ADD_THE_RESIDUAL
    known: dict[str | None, _Place] = {
        anatomy.embed: ("embed", None), anatomy.head: ("logits", None), anatomy.final_norm: ("final_norm", None),
        **{name: ("resid_post", layer) for layer, name in enumerate(anatomy.blocks)},
        **{name: ("resid_mid" if adds else "attn_out", layer) for layer, name in enumerate(anatomy.attention)},
    }  # fmt: skip
    if path in known:
        return known[path]
    for layer, block in enumerate(anatomy.blocks):
        if path == f"{block}.mlp" and adds:
            return "resid_post", layer
        if path == f"{block}.mlp" or path.startswith(f"{block}.mlp."):
            return "mlp_act", layer
        if path.startswith(f"{block}."):
            return _OTHER, layer
    return _OTHER, None


def _all_heads(cell: Cell, anatomy: Anatomy) -> bool:
    if cell.site not in HEAD_SITES or cell.heads is None:
        return True
    count = anatomy.n_kv_heads if cell.site in KV_SITES else anatomy.n_heads
    return set(cell.heads) >= set(range(count))


def _geometry(
    direction: Direction, pair: TokenizedPair, changed: Sequence[int], readout: int | Sequence[int]
) -> _Geometry:
    readouts = (readout,) if isinstance(readout, int) else tuple(readout)
    alignment = pair.alignment
    if len(alignment.clean) == len(pair.clean) == len(pair.corrupted) and alignment.clean == alignment.corrupted:
        return _Geometry(tuple(changed), (), (), readouts)
    here, there = alignment.corrupted, alignment.clean
    target, only_there = pair.corrupted, alignment.clean_only
    shift = len(pair.clean) - len(pair.corrupted)
    if direction == "noise":
        here, there, target, only_there, shift = there, here, pair.clean, alignment.corrupted_only, -shift
    partner = dict(zip(here, there, strict=True))
    # beyond the prompt (an answer's tokens) the two runs go on side by side
    places = {t: partner.get(t) if t < len(target) else t + shift for t in range(max(readouts) + 1)}
    moved = tuple(t for t, place in places.items() if place != t)
    broken = tuple(
        t for t, place in places.items() if place is None or place != t or any(s < place for s in only_there)
    )
    return _Geometry(tuple(changed), moved, broken, readouts)


def _nowhere(site: str, layer: int | None) -> bool:
    del site, layer
    return False


def _flags(positions: Iterable[int], length: int) -> _Flags:
    flags = np.zeros(length, dtype=np.bool_)
    flags[[p for p in positions if p < length]] = True
    return flags
