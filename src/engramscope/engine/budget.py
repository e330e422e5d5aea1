"""How much of a plan one traversal may hold at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Plan, Readout
from engramscope.models.model import Model

#: tokens of one call of a block on a CPU: more fall out of its cache
CPU_TOKENS = 1024
_LEAST_TOKENS, _MOST_TOKENS = 16, 65_536


@dataclass(frozen=True)
class Budget:
    """What a traversal may take besides the model.

    Attributes:
        memory: bytes in all.
        tokens: tokens of one call of a block, about.
    """

    memory: float
    tokens: int

    def halved(self) -> Budget:
        """Half of it: what is tried after the memory ran out."""
        return Budget(self.memory / 2, max(1, self.tokens // 2))

    def tail_rows(self, model: Model) -> int:
        """Rows of logits over the whole vocabulary at a time."""
        row = model.anatomy.vocab * (model.dtype.itemsize + 8)  # and a wider copy in the metric
        return max(1, min(256, int(self.memory / 4 / row)))


def budget_for(model: Model, memory_gb: float, longest: int) -> Budget:
    """The budget for runs of at most `longest` tokens."""
    memory = memory_gb * 2**30
    tokens = int(memory / 3 / _bytes_per_passing_token(model, longest))
    if model.device.type == "cpu":
        tokens = min(tokens, CPU_TOKENS)
    return Budget(memory, max(_LEAST_TOKENS, min(_MOST_TOKENS, tokens)))


def passes(model: Model, plan: Plan, memory: float, packed: bool) -> Iterator[Plan]:
    """Parts of a plan that fit into the memory one after the other; every read-out is in exactly one of them.

    A derived run comes with its base and with all runs that it reads, so a part can be executed by itself.
    """
    readouts = {readout.run: readout for readout in plan.readouts}
    room = memory / 2
    part = _Part(model, plan, packed)
    for run in (*plan.derived, *plan.bases):
        if run.id not in readouts:
            continue
        cost = part.cost(run)
        if part.readouts and part.size + cost > room:
            yield part.plan()
            part = _Part(model, plan, packed)
        part.add(run, readouts[run.id])
    if part.readouts:
        yield plan if len(part.readouts) == len(plan.readouts) else part.plan()


class _Part:
    def __init__(self, model: Model, plan: Plan, packed: bool) -> None:
        self.whole, self.packed = plan, packed
        anatomy, size = model.anatomy, model.dtype.itemsize
        # the residual stream, a copy on the way out, index tables
        self.per_token = 2 * anatomy.d_model * size + 80
        self.per_base_token = (4 * anatomy.d_model + 2 * anatomy.n_kv_heads * anatomy.d_head) * size + 160
        self.runs: dict[str, BaseRun | DerivedRun] = {}
        self.readouts: list[Readout] = []
        self.size = 0.0

    def cost(self, run: BaseRun | DerivedRun) -> float:
        """Bytes that adding a run would take."""
        return sum(self._bytes(one) for one in self._closure(run))

    def add(self, run: BaseRun | DerivedRun, readout: Readout) -> None:
        for one in self._closure(run):
            self.size += self._bytes(one)
            self.runs[one.id] = one
        self.readouts.append(readout)

    def plan(self) -> Plan:
        """The part as a plan, in the order of the whole one."""
        bases = tuple(base for base in self.whole.bases if base.id in self.runs)
        derived = tuple(run for run in self.whole.derived if run.id in self.runs)
        return Plan(bases, derived, tuple(self.readouts))

    def _closure(self, run: BaseRun | DerivedRun) -> list[BaseRun | DerivedRun]:
        """The run and everything it needs that is not in the part yet."""
        found: dict[str, BaseRun | DerivedRun] = {}
        waiting = [run]
        while waiting:
            one = waiting.pop()
            if one.id in self.runs or one.id in found:
                continue
            found[one.id] = one
            if isinstance(one, DerivedRun):
                waiting.append(self.whole[one.base])
                waiting += [self.whole[p.source.run] for p in one.patches if isinstance(p.source, FromRun)]
        return list(found.values())

    def _bytes(self, run: BaseRun | DerivedRun) -> float:
        if isinstance(run, BaseRun):
            return self.per_base_token * len(run.tokens)
        length = len(self.whole.base_of(run).tokens)
        first = min((min(patch.positions, default=length) for patch in run.patches), default=length)
        tokens = length - first if self.packed else length
        # what it reads is kept for the time of a layer, at most as wide as the residual stream and its tables
        return self.per_token * tokens + self.per_token * sum(len(patch.positions) for patch in run.patches[:1])


def _bytes_per_passing_token(model: Model, longest: int) -> float:
    """At most what one token of a call of a block needs while it passes."""
    anatomy = model.anatomy
    neurons = anatomy.d_mlp or 4 * anatomy.d_model
    wide = 5 * neurons + 12 * anatomy.d_model
    attention = 4 * anatomy.n_heads * longest + 4 * anatomy.n_heads * anatomy.d_head * longest
    return (wide + attention) * max(4, model.dtype.itemsize)
