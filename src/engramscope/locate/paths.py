"""Path patching as runs: what a sender says reaches the receivers named, and nothing else.

The edges of the model are cut at the residual stream (Wang et al. 2022, arXiv 2211.00593, §3.1; Goldowsky-Dill et al.
2023). A *sender* (a head's `z`, or what an MLP or an attention module adds) takes the value of the other run; of all
that read the residual stream only the *receivers* (`q`, `k` or `v` of heads, an MLP's input, the logits) see the
difference: directly (`mlps = "frozen"`) or also through MLPs in between (`mlps = "live"`, as published).

With receivers at the stages s = 1, 2, … (layer by layer, attention before the MLP), and E_0 the unpatched run:

    D_s   E_0 with the sender replaced and, between sender and stage s, what attention modules (and MLPs, where frozen)
          add held at its value in E_(s-1): its residual stream is E_(s-1)'s plus the sender's difference
    E_s   E_0 with the receivers up to stage s taking their values from D_1 … D_s; all else is recomputed

The last E is the patched run; where the logits are a receiver it is the D behind it. This is the edge form: of
receivers that feed each other the later one sees what the earlier one makes of its change. With one receiver it is the
four-pass procedure of Wang et al.; with several theirs drops such chains (all receivers are recorded while every head
is frozen), and so their "all receivers" is not the ordinary patch of the sender. Here it is.

An MLP receives by its input. Since it acts at each position by itself, that is the same as taking its output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from engramscope.engine.plan import DerivedRun, FromRun, Patch

#: letters of a head, by which it can receive
_LETTERS = ("q", "k", "v")
#: what may send
SENDERS = ("z", "mlp_out", "attn_out", "embed")
_HEAD = re.compile(r"(\d+)\.(\d+)\.([qkv])")
_MLP = re.compile(r"mlp\.(\d+)")


class _Sizes(Protocol):
    """What must be known of a model to say whether a receiver is one of its parts."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...


@dataclass(frozen=True, slots=True, order=True)
class Receiver:
    """Who sees the sender's difference.

    Attributes:
        layer: its layer; -1 for the logits.
        kind: "q", "k", "v", "mlp" or "logits".
        head: the head ("q") or key/value head ("k", "v"); -1 where there is none.
    """

    layer: int
    kind: str
    head: int = -1

    @property
    def name(self) -> str:
        """As it is written in a study file: "9.6.q", "mlp.5", "logits"."""
        if self.kind == "logits":
            return "logits"
        return f"mlp.{self.layer}" if self.kind == "mlp" else f"{self.layer}.{self.head}.{self.kind}"


@dataclass(frozen=True, slots=True)
class Paths:
    """From the sender (the cell's own site, layer, heads and positions) to these receivers.

    Attributes:
        receivers: without repetition, ascending.
        roles: the positions at which they receive: "all", "last", roles or spans. Logits receive where they are read.
        mlps: "live": paths through MLPs count. "frozen": only the direct edges do.
    """

    receivers: tuple[Receiver, ...]
    roles: tuple[str, ...]
    mlps: Literal["live", "frozen"]


def parse_receiver(text: str) -> Receiver | None:
    """A receiver as a study file writes it: "9.6.q", "0.1.k", "mlp.5" or "logits"; None for anything else."""
    if text == "logits":
        return Receiver(-1, "logits")
    if (head := _HEAD.fullmatch(text)) is not None:
        return Receiver(int(head[1]), head[3], int(head[2]))
    mlp = _MLP.fullmatch(text)
    return None if mlp is None else Receiver(int(mlp[1]), "mlp")


def receiver_faults(names: Sequence[str], sizes: _Sizes | None = None) -> list[str]:
    """What is wrong with the receivers of a sweep: how they are written and, with `sizes`, whether they exist."""
    faults = []
    for name in names:
        receiver = parse_receiver(name)
        if receiver is None:
            faults.append(
                f"{name!r} is no receiver; write a head's input as 9.6.q (layer, head, and q, k or v), an MLP's as "
                "mlp.5, or logits."
            )
        elif sizes is not None and receiver.layer >= sizes.n_layers:
            faults.append(f"receiver {name}: the model has {sizes.n_layers} layers, 0 to {sizes.n_layers - 1}.")
        elif sizes is not None and receiver.kind in _LETTERS:
            # before the weights are there, nobody knows how many key/value heads there are
            grouped = getattr(sizes, "n_kv_heads", sizes.n_heads)
            count = sizes.n_heads if receiver.kind == "q" else grouped
            if receiver.head >= count:
                kind = "heads" if receiver.kind == "q" else "key/value heads"
                faults.append(f"receiver {name}: the model has {count} {kind}, 0 to {count - 1}.")
    return faults


@dataclass(frozen=True, slots=True)
class Edges:
    """One cell of path patching in one pair, in the positions of its base run.

    Attributes:
        base: id of the run into which is written.
        length: its number of tokens.
        site, layer, heads: the sender.
        positions: the sender's positions.
        source: the sender's values.
        at: positions at which receivers receive.
        parallel: attention and MLP of a block read the same input.
        n_layers: number of layers.
    """

    base: str
    length: int
    site: str
    layer: int | None
    heads: tuple[int, ...] | None
    positions: tuple[int, ...]
    source: FromRun
    at: tuple[int, ...]
    parallel: bool
    n_layers: int


def path_runs(edges: Edges, paths: Paths, run_id: str) -> tuple[list[DerivedRun], DerivedRun]:
    """The runs of one cell: those in between, and the one that is read.

    Receivers that the sender cannot reach (of a layer before it) take no part; without any other the run that is read
    has no patch.

    Args:
        edges: the sender in one pair.
        paths: the receivers.
        run_id: id of the run that is read; the others' begin with it.
    """
    stages = _stages(edges, paths.receivers)
    sender = Patch(edges.site, edges.layer, edges.positions, edges.source, edges.heads)
    received: list[Patch] = []
    between: list[DerivedRun] = []
    for number, (stage, members) in enumerate(stages):
        before = between[-1].id if received else edges.base
        held = _held(edges, stage, before, paths.mlps)
        changed = DerivedRun(f"{run_id}/d{number}", edges.base, (sender, *held))
        between.append(changed)
        received += [_reception(member, changed.id, edges.at) for member in members]
        between.append(DerivedRun(f"{run_id}/e{number}", edges.base, tuple(received)))
    if any(receiver.kind == "logits" for receiver in paths.receivers):
        before = between[-1].id if received else edges.base
        held = _held(edges, (edges.n_layers, 0), before, paths.mlps)
        return between, DerivedRun(run_id, edges.base, (sender, *held))
    return between[:-1], DerivedRun(run_id, edges.base, tuple(received))


def runs_between(receivers: Iterable[Receiver]) -> int:
    """How many derived runs a cell with these receivers takes, at most."""
    stages = {(receiver.layer, receiver.kind == "mlp") for receiver in receivers if receiver.kind != "logits"}
    return 2 * len(stages) + 1


def _stages(edges: Edges, receivers: Sequence[Receiver]) -> list[tuple[tuple[int, int], list[Receiver]]]:
    """Receivers that the sender reaches, by (layer, 0 for attention and 1 for the MLP), in the order of the forward."""
    stages: dict[tuple[int, int], list[Receiver]] = {}
    for receiver in receivers:
        stage = (receiver.layer, int(receiver.kind == "mlp"))
        if receiver.kind != "logits" and stage > _own_stage(edges):
            stages.setdefault(stage, []).append(receiver)
    return sorted(stages.items())


def _own_stage(edges: Edges) -> tuple[int, int]:
    """The sender's own stage; what comes after it may read it."""
    if edges.layer is None:
        return (-1, 1)
    # in a parallel block the MLP reads what the attention reads, not what it adds
    return (edges.layer, int(edges.site == "mlp_out" or edges.parallel))


def _held(edges: Edges, stage: tuple[int, int], run: str, mlps: Literal["live", "frozen"]) -> list[Patch]:
    """Modules between the sender and a stage add what they add in `run`."""
    everywhere = tuple(range(edges.length))
    own = _own_stage(edges)
    held = []
    for layer in range(edges.n_layers):
        if own < (layer, 0) < stage:
            held.append(Patch("attn_out", layer, everywhere, FromRun(run, everywhere)))
        if mlps == "frozen" and own < (layer, 1) < stage:
            held.append(Patch("mlp_out", layer, everywhere, FromRun(run, everywhere)))
    return held


def _reception(receiver: Receiver, run: str, at: tuple[int, ...]) -> Patch:
    if receiver.kind == "mlp":
        return Patch("mlp_out", receiver.layer, at, FromRun(run, at))
    return Patch(receiver.kind, receiver.layer, at, FromRun(run, at), (receiver.head,))


def places_read(paths: Paths, n_layers: int) -> dict[tuple[str, int | None], None]:
    """Every (site, layer) that path patching may read or write besides the sender's own, once each."""
    places: dict[tuple[str, int | None], None] = {("attn_out", layer): None for layer in range(n_layers)}
    if paths.mlps == "frozen":
        places.update({("mlp_out", layer): None for layer in range(n_layers)})
    for receiver in paths.receivers:
        if receiver.kind != "logits":
            places["mlp_out" if receiver.kind == "mlp" else receiver.kind, receiver.layer] = None
    return places
