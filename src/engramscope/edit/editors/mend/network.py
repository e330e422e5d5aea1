"""The network of MEND: normalised token pairs through a low-rank residual network, and back into outer products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engramscope.edit.hyper.factors import Factors
from engramscope.edit.hyper.gradients import TokenPairs
from engramscope.edit.hyper.network import Condition, EditorNetwork

#: added to every standard deviation
EPSILON = 1e-7


class RunningNorm(nn.Module):
    """(v − mean) / (std + 1e-7), coordinate by coordinate, over all vectors that were ever observed.

    The standard deviation has n − 1 in its denominator.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, vectors: Float[Tensor, "some size"]) -> None:
        """Add vectors to the moments (Chan, Golub & LeVeque 1979, which is Welford's update for many at once)."""
        number = len(vectors)
        if not number:
            return
        wide = vectors.double()
        mean = wide.mean(0)
        apart, total = mean - self.mean, self.count + number
        self.squares += (wide - mean).square().sum(0) + apart.square() * self.count * number / total
        self.mean += apart * number / total
        self.count += number

    def forward(self, vectors: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        """The normalised vectors."""
        deviation = (self.squares / (self.count - 1)).sqrt()
        return (vectors - self.mean.to(vectors.dtype)) / (deviation.to(vectors.dtype) + EPSILON)


class ResidualLayer(nn.Module):
    """y + relu(s_m ∘ (U V y + b) + o_m), with a scale s and a shift o for each matrix m that shares the layer.

    U, b and o are 0 at first and s is 1, so that the layer is the identity; V is drawn (`MendNetwork.draw`).

    Args:
        size: of y.
        rank: of U V.
        sharing: how many matrices share the layer.
        rectified: False leaves the relu out.
    """

    def __init__(self, size: int, rank: int, sharing: int, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.u = nn.Parameter(torch.zeros(size, rank))
        self.v = nn.Parameter(torch.zeros(rank, size))
        self.b = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(sharing, size))
        self.shift = nn.Parameter(torch.zeros(sharing, size))

    def forward(self, y: Float[Tensor, "... size"], which: int) -> Float[Tensor, "... size"]:
        """The layer for one of the matrices that share it."""
        inner = self.scale[which] * ((y @ self.v.T) @ self.u.T + self.b) + self.shift[which]
        # clamp, whose derivative at 0 is 1: that of relu is 0, and everything is 0 at first
        return y + (inner.clamp(min=0) if self.rectified else inner)


class SharedEditor(nn.Module):
    """What all matrices of one shape share: the normalisation of both vectors, and the residual layers."""

    def __init__(self, n_in: int, n_out: int, rank: int, layers: int, sharing: int, last_relu: bool) -> None:
        super().__init__()
        self.x, self.g = RunningNorm(n_in), RunningNorm(n_out)
        self.layers = nn.ModuleList(
            ResidualLayer(n_in + n_out, rank, sharing, last_relu or place < layers - 1) for place in range(layers)
        )

    def observe(self, pairs: TokenPairs) -> None:
        """Add the tokens that count to the moments."""
        self.x.observe(pairs.x[pairs.used])
        self.g.observe(pairs.g[pairs.used])

    def forward(self, pairs: TokenPairs, which: int) -> tuple[Tensor, Tensor]:
        """(x̃, g̃) of every token; 0 where a token does not count."""
        both = torch.cat((self.x(pairs.x), self.g(pairs.g)), -1)
        for layer in self.layers:
            both = layer(both, which)
        both = both * pairs.used[..., None]
        return both[..., : pairs.x.shape[-1]], both[..., pairs.x.shape[-1] :]


class MendNetwork(EditorNetwork):
    """ΔW_m = α_m Σ_b x̃_b g̃_bᵀ; matrices of one shape share a network.

    Args:
        shapes: (n_in, n_out) of each matrix.
        ranks: of the residual layers, for each shape.
        layers: how many residual layers.
        alpha: at first.
        last_relu: whether the last layer has a relu.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], ranks: dict[tuple[int, int], int], layers: int, alpha: float,
        last_relu: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self._places = [(_name(shape), list(shapes[:place]).count(shape)) for place, shape in enumerate(shapes)]
        self.editors = nn.ModuleDict({
            _name(shape): SharedEditor(*shape, ranks[shape], layers, list(shapes).count(shape), last_relu)
            for shape in dict.fromkeys(shapes)
        })  # fmt: skip
        self.alpha = nn.Parameter(torch.full((len(shapes),), alpha))

    def forward(self, pairs: Sequence[TokenPairs], condition: Condition) -> list[Factors]:
        """ΔW of each matrix; the words of the edit are not looked at."""
        del condition
        changes = []
        for alpha, (name, which), pair in zip(self.alpha, self._places, pairs, strict=True):
            x, g = self.editors[name](pair, which)
            changes.append(Factors(x, alpha * g))
        return changes

    def observe(self, pairs: Sequence[TokenPairs]) -> None:
        """Add the tokens that count to the moments of their shape."""
        for (name, _), pair in zip(self._places, pairs, strict=True):
            editor = self.editors[name]
            assert isinstance(editor, SharedEditor)
            editor.observe(pair)

    def draw(self, generator: torch.Generator) -> None:
        """V of each layer, with variance 1 / size; everything else begins at 0 or 1."""
        for module in self.editors.modules():
            if isinstance(module, ResidualLayer):
                module.v.normal_(0.0, module.v.shape[1] ** -0.5, generator=generator)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """α has a learning rate of its own."""
        return {"main": list(self.editors.parameters()), "alpha": [self.alpha]}


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
