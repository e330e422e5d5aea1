"""The cells of a sweep: which (layers, heads, positions) are patched together, as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from engramscope.locate.paths import Paths, parse_receiver
from engramscope.models.anatomy import Anatomy
from engramscope.models.site import HEAD_SITES, KV_SITES, exists_once
from engramscope.pairs.tokenized import TokenizedPair
from engramscope.study_file import SweepSection

Direction = Literal["denoise", "noise"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a sweep; the same for every pair.

    Attributes:
        sweep: name of the sweep.
        site: site or module path.
        layers: the layers that are patched jointly (empty for sites that exist once).
        heads: the heads that are patched jointly; None for all, and for sites without heads.
        position: a position index of the clean prompt; None where `position_role` says which.
        position_role: None where an index says which (the role comes from the prompt); else "all", "last", a role or a
            span.
        direction: "denoise" or "noise".
        window: number of adjacent layers asked for (fewer at the ends of the model).
        layer: the centre of the window; None for sites that exist once.
        severed: "mlp_out" or "attn_out": what these modules add at the patched positions stays as it is in the
            unpatched run.
        other_draw: it stays as it is under another draw of the noise, as in the code of Meng et al.
        paths: the cell is a sender, whose values reach these receivers only.
    """

    sweep: str
    site: str
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    position: int | None
    position_role: str | None
    direction: Direction
    window: int
    layer: int | None
    severed: Literal["mlp_out", "attn_out"] | None = None
    other_draw: bool = False
    paths: Paths | None = None

    @property
    def head(self) -> int | None:
        """The head, if it is a single one."""
        return self.heads[0] if self.heads is not None and len(self.heads) == 1 else None


def window_layers(centre: int, width: int, n_layers: int) -> tuple[int, ...]:
    """Layers `[max(0, l - floor(w/2)), min(L, l + ceil(w/2)))`, as in the ROME code; cut at the ends."""
    return tuple(range(max(0, centre - width // 2), min(n_layers, centre + (width + 1) // 2)))


def cells_of(sweep: SweepSection, anatomy: Anatomy, pairs: Sequence[TokenizedPair]) -> Iterator[Cell]:
    """Every cell of a sweep, in the order layers, heads, positions, directions."""
    directions: tuple[Direction, ...] = ("denoise", "noise") if sweep.direction == "both" else (sweep.direction,)
    paths = _paths(sweep)
    for layer, heads, (position, role), direction in product(
        _layers(sweep, anatomy), _heads(sweep, anatomy), _positions(sweep, pairs), directions
    ):
        layers = () if layer is None else window_layers(layer, sweep.window, anatomy.n_layers)
        yield Cell(
            sweep.name, sweep.site, layers, heads, position, role, direction, sweep.window, layer,
            sweep.severed, sweep.as_published, paths,
        )  # fmt: skip


def cell_positions(cell: Cell, pair: TokenizedPair) -> tuple[int, ...]:
    """Positions of the pair's *clean* prompt that the cell patches; empty where the prompt has none of that role."""
    if cell.position is not None:
        return (cell.position,) if cell.position < len(pair.clean) else ()
    return role_positions(cell.position_role or "", pair)


def role_positions(role: str, pair: TokenizedPair) -> tuple[int, ...]:
    """Positions of the pair's *clean* prompt by name: "all", "last", a span or a role; empty where it has none."""
    clean = pair.clean
    if role == "all":
        return tuple(range(len(clean)))
    if role == "last":
        return (len(clean) - 1,)
    if role in clean.spans:
        return clean.spans[role]
    return tuple(i for i, name in enumerate(clean.roles) if name == role)


def _paths(sweep: SweepSection) -> Paths | None:
    if not sweep.receivers:
        return None
    found = {receiver for name in sweep.receivers if (receiver := parse_receiver(name)) is not None}
    roles = sweep.receiver_positions
    return Paths(tuple(sorted(found)), (roles,) if isinstance(roles, str) else tuple(roles), sweep.mlps)


def _layers(sweep: SweepSection, anatomy: Anatomy) -> tuple[int | None, ...]:
    if exists_once(sweep.site):
        return (None,)
    return tuple(range(anatomy.n_layers)) if sweep.layers == "each" else tuple(sweep.layers)


def _heads(sweep: SweepSection, anatomy: Anatomy) -> tuple[tuple[int, ...] | None, ...]:
    if sweep.site not in HEAD_SITES or sweep.heads == "all":
        return (None,)
    count = anatomy.n_kv_heads if sweep.site in KV_SITES else anatomy.n_heads
    return tuple((head,) for head in (range(count) if sweep.heads == "each" else sweep.heads))


def _positions(sweep: SweepSection, pairs: Sequence[TokenizedPair]) -> tuple[tuple[int | None, str | None], ...]:
    if sweep.positions == "each":
        longest = max((len(pair.clean) for pair in pairs), default=0)
        return tuple((position, None) for position in range(longest))
    if isinstance(sweep.positions, str):
        return ((None, sweep.positions),)
    return tuple((at, None) if isinstance(at, int) else (None, at) for at in sweep.positions)
