"""What is timed: models, prompts and sweeps, as data that every tool reads in the same way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from engramscope.locate.cells import window_layers


@dataclass(frozen=True)
class Sizes:
    """A model of the GPT-2 family."""

    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    vocab: int = 50257

    @property
    def d_mlp(self) -> int:
        return 4 * self.d_model


GPT2_SMALL = Sizes()
GPT2_XL = Sizes(n_layers=48, d_model=1600, n_heads=25)
TINY = Sizes(n_layers=3, d_model=32, n_heads=4, vocab=199)


@dataclass(frozen=True)
class Cell:
    """What is patched in one run, by index: layers together, one head or all, one position or all."""

    site: str
    layer: int
    layers: tuple[int, ...]
    head: int | None
    position: int | None

    @property
    def key(self) -> tuple[str, int, int | None, int | None]:
        """By what a cell is known in every tool (`layer` is the centre of its window)."""
        return self.site, self.layer, self.head, self.position


@dataclass(frozen=True)
class Sweep:
    """One site over all layers, and over heads and positions where asked; `layers` limits the layers."""

    site: str
    each_head: bool = False
    each_position: bool = False
    window: int = 1
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def cells(self, sizes: Sizes, length: int) -> list[Cell]:
        heads = (self.heads or range(sizes.n_heads)) if self.each_head else (None,)
        positions = range(length) if self.each_position else (None,)
        return [
            Cell(self.site, layer, window_layers(layer, self.window, sizes.n_layers), head, position)
            for layer, head, position in product(self.layers or range(sizes.n_layers), heads, positions)
        ]


@dataclass(frozen=True)
class Case:
    """One row of the benchmark. All sweeps put clean values into the corrupted run and read the logit difference.

    Attributes:
        name: what it is called on the command line.
        title: what it is called in the table.
        sweeps: what is patched.
        first_difference: the one position at which the corrupted prompt has another token; None for noise.
        noised: positions whose embeddings get noise; empty for token replacement.
        draws: noise draws per pair.
        sizes: the model.
        n_pairs, length: how many prompts, of how many tokens.
        ratio_target: how many times faster than TransformerLens it is to be.
        seconds_target: how long it may take, where a published figure is the target.
        only_cuda: too large for a processor.
        seed: of weights, prompts and noise.
    """

    name: str
    title: str
    sweeps: tuple[Sweep, ...]
    first_difference: int | None = 10
    noised: tuple[int, ...] = ()
    draws: int = 1
    sizes: Sizes = GPT2_SMALL
    n_pairs: int = 25
    length: int = 16
    ratio_target: float | None = None
    seconds_target: float | None = None
    only_cuda: bool = False
    seed: int = 0

    @property
    def cells(self) -> list[Cell]:
        """All cells, sweep by sweep."""
        return [cell for sweep in self.sweeps for cell in sweep.cells(self.sizes, self.length)]

    @property
    def replaced(self) -> tuple[int, ...]:
        """Positions whose embeddings differ between the clean and a corrupted run."""
        return self.noised if self.first_difference is None else (self.first_difference,)

    def quick(self) -> Case:
        """The same case so small that it shows only whether everything works."""
        return replace(
            self,
            sizes=TINY,
            n_pairs=3,
            length=8,
            first_difference=None if self.first_difference is None else min(self.first_difference, 5),
            draws=min(self.draws, 2),
            sweeps=tuple(replace(sweep, window=min(sweep.window, 2)) for sweep in self.sweeps),
        )


_HEADS = (Sweep("z", each_head=True),)
_GRID = (Sweep("resid_post", each_position=True),)

CASES: tuple[Case, ...] = (
    Case("heads", "144 heads, all positions, pairs differ at position 10", _HEADS, ratio_target=7.5),
    Case(
        "residual",
        "residual, 12 layers × 16 positions, same pairs",
        (Sweep("resid_pre", each_position=True),),
        ratio_target=25,
    ),
    Case(
        "heads_positions",
        "12 × 12 heads × 16 positions, same pairs",
        (Sweep("z", each_head=True, each_position=True),),
        ratio_target=30,
    ),
    Case(
        "heads_unshared",
        "144 heads, pairs differ at position 0 (nothing shared)",
        _HEADS,
        first_difference=0,
        ratio_target=2.7,
    ),
    Case(
        "tracing",
        "causal tracing grid, 10 noise draws, subject at positions 2–4",
        _GRID,
        first_difference=None,
        noised=(2, 3, 4),
        draws=10,
        ratio_target=6,
    ),
    Case(
        "windows",
        "MLP and attention windows of 10 layers × positions, same pairs",
        (Sweep("attn_out", each_position=True, window=10), Sweep("mlp_out", each_position=True, window=10)),
        ratio_target=6,
    ),
    Case(
        "gpt2_xl_tracing",
        "GPT-2 XL size, causal tracing of one fact, 1,008 cells × 10 noise draws",
        _GRID,
        first_difference=None,
        noised=(2, 3, 4),
        draws=10,
        sizes=GPT2_XL,
        n_pairs=1,
        length=21,
        seconds_target=3.5,
        only_cuda=True,
    ),
)


def case_named(name: str, *, quick: bool = False) -> Case:
    """A case of the table by its name.

    Raises:
        KeyError: there is none of this name.
    """
    case = {case.name: case for case in CASES}[name]
    return case.quick() if quick else case
