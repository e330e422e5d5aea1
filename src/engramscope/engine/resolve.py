"""From a plan to what a traversal has to do: which runs differ from their base, from where on, and who reads whom.

A run differs from its base only from its first effective patch on, and only at positions from its first patched one on
(attention is causal). A patch that puts in place what is there already is no patch. Values are named by *handles*: the
flat tokens of the base runs come first, then, for each derived run, a token for every position at which it may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from engramscope.engine.layout import Ints, Layout, lay_out
from engramscope.engine.plan import Constant, DerivedRun, FromRun, Patch, Plan
from engramscope.engine.stages import Place, Stage, UnsupportedPlanError, stage, stage_of
from engramscope.models.model import Model


@dataclass
class LiveRun:
    """A derived run that differs from its base.

    Attributes:
        id: its id in the plan.
        row: row of its base in the layout.
        start, end: positions at which it may differ, as far as anybody looks.
        birth: when it begins to differ.
        level: 1, or more than the level of every run that it reads own values of.
        patches: what is left of its patches: (stage, patch, positions, source positions).
        local: positions that differ while the layer of a "local" birth is computed.
        offset: number of its first token among all tokens of derived runs.
    """

    id: str
    row: int
    start: int
    end: int
    birth: Stage
    level: int
    patches: list[tuple[Stage, Patch, Ints, Ints | None]]
    local: Ints
    offset: int = 0

    @property
    def tokens(self) -> int:
        """Number of own tokens."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Write:
    """One patch of one run, in handles.

    Attributes:
        place: where.
        turn: 0 for a run's first patch at this place, 1 for its second, …
        heads: which heads; None for all.
        at: number of each written token among the tokens of derived runs.
        source: handles that the values come from; None where they are given.
        constant: given values.
        own: position of each written token (of `at`) in the patch, for given values of several rows.
    """

    place: Place
    turn: int
    heads: tuple[int, ...] | None
    at: Ints
    source: Ints | None
    constant: Tensor | None
    own: Ints


@dataclass(frozen=True)
class Resolved:
    """Everything a traversal has to do.

    Attributes:
        layout: the base runs.
        runs: the runs that differ, ordered by level, birth, number of tokens, start and base.
        alias: derived runs that do not differ from their base -> id of that base.
        writes: (layer, level) -> what is written in that layer, by stage number; the stem is layer -1.
        reads: place inside a block or in the tail -> handles that are read there, ascending.
        needed: for each handle, whether anybody looks at it after the keys and values of the last block.
        readouts: run id -> handles of its read-outs.
        own_tokens: number of tokens of derived runs.
    """

    layout: Layout
    runs: tuple[LiveRun, ...]
    alias: Mapping[str, str]
    writes: Mapping[tuple[int, int], Mapping[Stage, list[Write]]]
    reads: Mapping[Place, Ints]
    needed: np.ndarray
    readouts: Mapping[str, Ints]
    own_tokens: int = field(default=0)

    @property
    def levels(self) -> int:
        """Number of levels of derived runs."""
        return max((run.level for run in self.runs), default=0)


def resolve(model: Model, plan: Plan, *, packed: bool, skip_identities: bool = True) -> Resolved:
    """Work out what a traversal of `plan` has to do.

    Args:
        model: knows where its sites are.
        plan: runs and read-outs.
        packed: tokens side by side, born at their first changed position; else whole padded rows.
        skip_identities: leave out patches that put in place what is there already.

    Raises:
        UnsupportedPlanError: one traversal cannot follow the plan.
    """
    ends = _ends(plan)
    bases = [base for base in plan.bases if base.id in ends]
    layout = lay_out(bases, ends, packed)
    resolver = _Resolver(model, plan, layout, ends, skip_identities)
    for run in plan.derived:
        if run.id in ends:
            resolver.add(run)
    return resolver.finish()


def _ends(plan: Plan) -> dict[str, int]:
    """How many tokens of each run anybody looks at; runs that nobody looks at are left out."""
    ends: dict[str, int] = {}

    def seen(run: str, count: int) -> None:
        if count:
            ends[run] = max(ends.get(run, 0), count)

    for readout in plan.readouts:
        seen(readout.run, max(readout.positions, default=-1) + 1)
    for run in reversed(plan.derived):
        end = ends.get(run.id, 0)
        seen(run.base, end)
        for patch in run.patches:
            if isinstance(patch.source, FromRun):
                pairs = zip(patch.positions, patch.source.positions, strict=True)
                seen(patch.source.run, max((theirs + 1 for ours, theirs in pairs if ours < end), default=0))
    return ends


class _Resolver:
    def __init__(self, model: Model, plan: Plan, layout: Layout, ends: Mapping[str, int], skip: bool) -> None:
        self.model, self.plan, self.layout, self.ends, self.skip = model, plan, layout, ends, skip
        self.live: dict[str, LiveRun] = {}
        self.alias: dict[str, str] = {}
        self.stages: dict[Place, Stage] = {}
        self.known: dict[tuple[object, ...], tuple[Ints, Ints | None, np.ndarray]] = {}

    def stage(self, patch: Patch) -> Stage:
        place = (patch.site, patch.layer)
        if place not in self.stages:
            self.model.site(*place)  # refuses what the model does not have
            self.stages[place] = stage_of(self.model, place)
        return self.stages[place]

    def add(self, run: DerivedRun) -> None:
        """Keep what is effective of a run's patches."""
        row, end = self.layout.row[run.base], self.ends[run.id]
        kept: list[tuple[Stage, Patch, Ints, Ints | None]] = []
        first = end  # the first position that differs so far
        for group in self._groups(run):
            found = [(at, patch, *self._known(row, end, at, patch)) for at, patch in group]
            first = min([first, *(int(mine[changed].min()) for *_, mine, _, changed in found if changed.any())])
            for at, patch, mine, theirs, changed in found:
                keep = changed | (mine >= first)
                if keep.any():
                    kept.append((at, patch, mine[keep], None if theirs is None else theirs[keep]))
        if not kept:
            self.alias[run.id] = run.base
            return
        start = first if self.layout.packed else 0
        birth, local = self._birth(kept)
        level = 1 + max((self._level(at, patch, theirs) for at, patch, _, theirs in kept), default=0)
        length = end if self.layout.packed else self.layout.longest
        self.live[run.id] = LiveRun(run.id, row, start, length, birth, level, kept, local)

    def _groups(self, run: DerivedRun) -> list[list[tuple[Stage, Patch]]]:
        """Patches in the order of the forward; those inside one block together, whose order is not known."""
        groups: dict[int, list[tuple[Stage, Patch]]] = {}
        for patch in run.patches:
            at = self.stage(patch)
            groups.setdefault(stage("mixed", at.layer, 0).number if at.inside else at.number, []).append((at, patch))
        return [groups[number] for number in sorted(groups)]

    def _effective(self, row: int, end: int, at: Stage, patch: Patch) -> tuple[Ints, Ints | None, np.ndarray]:
        """Positions that are looked at, their source positions, and whether the value can differ from the base's."""
        positions = np.array(patch.positions, np.int64)
        seen = positions < end
        mine = positions[seen]
        if not len(mine):
            return mine, mine, np.zeros(0, bool)
        if patch.site == "pattern":
            _refuse_what_is_not_causal(patch)
        if isinstance(patch.source, Constant):
            return mine, np.flatnonzero(seen), np.ones(len(mine), bool)
        theirs = np.array(patch.source.positions, np.int64)[seen]
        if not self.skip:
            return mine, theirs, np.ones(len(mine), bool)
        source = self._source_row(patch.source.run)
        differs = self.layout.same[row, mine] != self.layout.same[source, theirs]
        if patch.source.run not in self.live:
            return mine, theirs, differs
        return mine, theirs, differs | self._own(patch.source.run, at, theirs)

    def _known(self, row: int, end: int, at: Stage, patch: Patch) -> tuple[Ints, Ints | None, np.ndarray]:
        """`_effective`, once for all patches that put the same positions of a base run in the same place of another."""
        source = patch.source
        # a source that nobody looks at is not there, and then nothing of this patch is looked at either
        if isinstance(source, Constant) or source.run in self.live or self._is_absent(source.run):
            return self._effective(row, end, at, patch)
        key = (row, end, self._source_row(source.run), patch.positions, source.positions, patch.site == "pattern")
        if key not in self.known:
            self.known[key] = self._effective(row, end, at, patch)
        return self.known[key]

    def _is_absent(self, run: str) -> bool:
        return self.alias.get(run, run) not in self.layout.row

    def _source_row(self, run: str) -> int:
        live = self.live.get(run)
        return live.row if live is not None else self.layout.row[self.alias.get(run, run)]

    def _own(self, run: str, at: Stage, positions: Ints) -> np.ndarray:
        """Where a run has a value of its own, rather than its base's."""
        live = self.live.get(run)
        if live is None or at.layer < live.birth.layer:
            return np.zeros(len(positions), bool)
        own = positions >= live.start
        if at.layer > live.birth.layer or live.birth.moment in ("stem", "pre", "tail"):
            return own
        if at.moment == "post":
            return own
        if live.birth.moment == "post" or at.moment == "pre":
            return np.zeros(len(positions), bool)
        return own & np.isin(positions, live.local) if live.birth.moment == "local" else own

    def _birth(self, kept: Sequence[tuple[Stage, Patch, Ints, Ints | None]]) -> tuple[Stage, Ints]:
        birth = min(at for at, *_ in kept)
        none = np.zeros(0, np.int64)
        if not birth.inside:
            return birth, none
        inside = [(at, mine) for at, _, mine, _ in kept if at.inside and at.layer == birth.layer]
        if self.layout.packed and all(at.moment == "local" for at, _ in inside):
            return stage("local", birth.layer, 0), np.unique(np.concatenate([mine for _, mine in inside]))
        return stage("mixed", birth.layer, 0), none

    def _level(self, at: Stage, patch: Patch, theirs: Ints | None) -> int:
        if not isinstance(patch.source, FromRun) or theirs is None:
            return 0
        live = self.live.get(patch.source.run)
        return live.level if live is not None and self._own(patch.source.run, at, theirs).any() else 0

    def handles(self, run: str, at: Stage, positions: Ints) -> Ints:
        """Handles of a run's values at a stage."""
        found = self.layout.table[self._source_row(run), positions]
        live = self.live.get(run)
        if live is None:
            return found
        return np.where(self._own(run, at, positions), self.layout.tokens + live.offset + positions - live.start, found)

    def finish(self) -> Resolved:
        """Number the tokens, and turn patches into writes."""
        runs = sorted(self.live.values(), key=lambda run: (run.level, run.birth.number, run.tokens, run.start, run.row))
        total = 0
        for run in runs:
            run.offset, total = total, total + run.tokens
        writes: dict[tuple[int, int], dict[Stage, list[Write]]] = {}
        reads: dict[Place, list[Ints]] = {}
        needed = np.zeros(self.layout.tokens + total, bool)
        last, tail = self.model.anatomy.n_layers - 1, stage("tail", -1, self.model.anatomy.n_layers)
        for run in runs:
            turns: dict[Place, int] = {}
            for at, patch, mine, theirs in run.patches:
                write = self._write(run, at, patch, mine, theirs, turns)
                writes.setdefault((at.layer, run.level), {}).setdefault(at, []).append(write)
                if write.source is not None:
                    if at.inside or at == tail:
                        reads.setdefault(write.place, []).append(write.source)
                    if at.layer >= last and at.moment != "pre":
                        needed[write.source] = True
        readouts = {
            one.run: self.handles(one.run, tail, np.array(one.positions, np.int64)) for one in self.plan.readouts
        }
        for handles in readouts.values():
            needed[handles] = True
        for run in runs:
            if run.birth.layer >= last and run.birth.moment in ("local", "post", "tail"):
                own = np.flatnonzero(needed[self.layout.tokens + run.offset :][: run.tokens])
                needed[self.layout.table[run.row, run.start + own]] = True
        unique = {place: np.unique(np.concatenate(parts)) for place, parts in reads.items()}
        return Resolved(self.layout, tuple(runs), self.alias, writes, unique, needed, readouts, total)

    def _write(
        self, run: LiveRun, at: Stage, patch: Patch, mine: Ints, theirs: Ints | None, turns: dict[Place, int]
    ) -> Write:
        place = (patch.site, patch.layer)
        turns[place] = turns.get(place, -1) + 1
        to = run.offset + mine - run.start
        if isinstance(patch.source, Constant):
            assert theirs is not None, "for given values: their rows"
            return Write(place, turns[place], patch.heads, to, None, patch.source.values, theirs)
        assert theirs is not None, "for a source run: its positions"
        return Write(place, turns[place], patch.heads, to, self.handles(patch.source.run, at, theirs), None, mine)


def _refuse_what_is_not_causal(patch: Patch) -> None:
    """Attention rows that would look at later tokens: what comes before a change would change, too."""
    if isinstance(patch.source, FromRun):
        pairs = zip(patch.positions, patch.source.positions, strict=True)
        if any(theirs > ours for ours, theirs in pairs):
            raise UnsupportedPlanError("attention weights of a later token are put in place of an earlier one's")
        return
    values = patch.source.values
    if values.ndim == 0:
        if float(values) != 0:
            raise UnsupportedPlanError("attention weights are replaced by a constant that looks ahead")
        return
    for number, position in enumerate(patch.positions):
        row = values[min(number, values.shape[0] - 1)]
        if bool((row[..., position + 1 :] != 0).any()):
            raise UnsupportedPlanError("attention weights are replaced by given ones that look ahead")
