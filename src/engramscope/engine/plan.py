"""A sweep as data: base runs, runs derived from them by patches, and what to read from each.

Nothing here computes. An executor (`engine/reference.py`: one plain hooked forward per batch of equal runs) takes a
`Plan` and yields the logits that were asked for. The words are those of the design: a *patch* replaces the value at
(site, layer, heads, positions) of one run by the value of another run, or by a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Noise:
    """Something added to the output of the token embedding of a base run.

    Attributes:
        positions: token positions.
        values: what is added, [len(positions), d_model], float32 on the CPU.
    """

    positions: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True, slots=True)
class BaseRun:
    """An ordinary forward computation on these tokens.

    Attributes:
        id: unique within the plan.
        tokens: token ids [seq].
        noise: added to the token embeddings, if any.
        model: which model runs it, where two models of one shape are compared: the one that is studied, or the one
            that it was before it was trained.
    """

    id: str
    tokens: tuple[int, ...]
    noise: Noise | None = None
    model: Literal["own", "base"] = "own"


@dataclass(frozen=True, slots=True)
class FromRun:
    """Values are taken from another run of the plan, base or derived.

    Attributes:
        run: the id of the source run.
        positions: source positions, one for each patched position.
    """

    run: str
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """Values are given: zeros, a mean over a reference set.

    Attributes:
        values: [n_positions or 1, width], the whole width of the site's module port; for `pattern`
            [n_positions or 1, n_heads, key]; a zero-dimensional tensor is broadcast.
    """

    values: Tensor


Source: TypeAlias = FromRun | Constant


@dataclass(frozen=True, slots=True)
class Patch:
    """(site, layer, heads, positions) of a run takes its value from `source`.

    Attributes:
        site: a site of the design (`resid_post`, `z`, …) or a module path; or the weights of a part (`weights:mlp`),
            which the run then borrows from the model of its source run, at all positions.
        layer: the block, counted from 0; None for `embed`, `final_norm`, `logits` and module paths.
        heads: heads that are replaced (key/value heads for `k` and `v`); None for all, and for sites without heads.
        positions: token positions in this run; for `pattern`, the query positions (whole rows are replaced).
        source: where the values come from.
    """

    site: str
    layer: int | None
    positions: tuple[int, ...]
    source: Source
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class DerivedRun:
    """A base run with patches.

    Attributes:
        id: unique within the plan.
        base: id of the base run whose tokens (and noise) it shares.
        patches: applied as the forward reaches them; at one site, in this order.
    """

    id: str
    base: str
    patches: tuple[Patch, ...]


@dataclass(frozen=True, slots=True)
class Readout:
    """The logits that are asked of one run.

    Attributes:
        run: id of the run.
        positions: token positions whose next-token logits are read, in this order.
    """

    run: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Runs and what to read from them; ids are unique, sources exist and come before their readers.

    Raises:
        ValueError: a run names a base or source that is not in the plan (an error of the caller, not of the user).
    """

    bases: tuple[BaseRun, ...]
    derived: tuple[DerivedRun, ...] = ()
    readouts: tuple[Readout, ...] = ()
    _by_id: dict[str, BaseRun | DerivedRun] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_id: dict[str, BaseRun | DerivedRun] = {}
        for base in self.bases:
            _add(by_id, base)
        for run in self.derived:
            _check_sources(by_id, run)
            _add(by_id, run)
        for readout in self.readouts:
            if readout.run not in by_id:
                raise ValueError(f"readout of unknown run {readout.run!r}")
        object.__setattr__(self, "_by_id", by_id)

    def __getitem__(self, run_id: str) -> BaseRun | DerivedRun:
        return self._by_id[run_id]

    def base_of(self, run: BaseRun | DerivedRun) -> BaseRun:
        """The base run that `run` shares its tokens with (itself for a base run)."""
        if isinstance(run, BaseRun):
            return run
        base = self._by_id[run.base]
        assert isinstance(base, BaseRun)
        return base


def source_runs(patches: Sequence[Patch]) -> tuple[str, ...]:
    """Ids of the runs that these patches read, without repetition, in order."""
    return tuple(dict.fromkeys(p.source.run for p in patches if isinstance(p.source, FromRun)))


def _add(by_id: dict[str, BaseRun | DerivedRun], run: BaseRun | DerivedRun) -> None:
    if run.id in by_id:
        raise ValueError(f"two runs are called {run.id!r}")
    by_id[run.id] = run


def _check_positions(run: str, positions: tuple[int, ...], length: int) -> None:
    if positions and not 0 <= min(positions) <= max(positions) < length:
        raise ValueError(f"run {run!r}: a patched position is not in its prompt of {length} tokens")


def _check_sources(by_id: dict[str, BaseRun | DerivedRun], run: DerivedRun) -> None:
    base = by_id.get(run.base)
    if not isinstance(base, BaseRun):
        raise ValueError(f"run {run.id!r} derives from {run.base!r}, which is no base run of this plan")
    checked: tuple[int, ...] = ()
    for patch in run.patches:
        # the patches of a window share their positions
        if patch.positions is not checked:
            _check_positions(run.id, patch.positions, len(base.tokens))
            checked = patch.positions
        if isinstance(patch.source, Constant) and patch.source.values.ndim:
            rows = patch.source.values.shape[0]
            if rows not in (1, len(patch.positions)):
                raise ValueError(f"run {run.id!r}: {len(patch.positions)} positions are given {rows} rows of values")
        if isinstance(patch.source, FromRun):
            if patch.source.run not in by_id:
                raise ValueError(f"run {run.id!r} reads {patch.source.run!r}, which is not in the plan before it")
            if len(patch.source.positions) != len(patch.positions):
                raise ValueError(
                    f"run {run.id!r}: {len(patch.positions)} positions take values from {len(patch.source.positions)}"
                )
