"""The network of KE: the words of the edit decide how a gradient becomes a change of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import pack_padded_sequence

from engramscope.edit.hyper.factors import Factors
from engramscope.edit.hyper.gradients import TokenPairs
from engramscope.edit.hyper.network import Condition, EditorNetwork


class Reader(nn.Module):
    """z = tanh(L [h→ ; h←] + c): the final states of a bidirectional LSTM over the words of an edit."""

    def __init__(self, width: int, hidden: int, size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, size)

    def forward(self, condition: Condition) -> Float[Tensor, "edits size"]:
        """z of each edit; packed, so that padding is never read."""
        packed = pack_padded_sequence(condition.vectors, condition.lengths, batch_first=True, enforce_sorted=False)
        _, (states, _) = self.lstm(packed)
        return torch.tanh(self.out(torch.cat((states[0], states[1]), -1)))


class MatrixHead(nn.Module):
    """ΔW = s_max σ(η) (G ∘ A + B) of one matrix W [n_in, n_out].

    A = softmax(r_a) c_aᵀ and B = softmax(r_b) c_bᵀ, where r has an entry for each input and c one for each output. All
    four vectors and η come from z through two layers with weight normalisation and a tanh between them.

    Because G = Σ_b x_b g_bᵀ, G ∘ A = Σ_b (x_b ∘ softmax(r_a)) (g_b ∘ c_a)ᵀ: ΔW has rank tokens + 1 and is never
    formed as a matrix.
    """

    def __init__(self, z: int, inner: int, n_in: int, n_out: int, scale: float) -> None:
        super().__init__()
        self.sizes, self.scale = (n_in, n_out, n_in, n_out, 1), scale
        self.first = weight_norm(nn.Linear(z, inner))
        self.second = weight_norm(nn.Linear(inner, sum(self.sizes)))

    def forward(self, z: Float[Tensor, "edits size"], pairs: TokenPairs) -> Factors:
        """ΔW of each edit, the tokens' outer products first and B last."""
        parts = self.second(torch.tanh(self.first(z))).split(self.sizes, -1)
        row_a, column_a, row_b, column_b, gate = (part[:, None] for part in parts)
        size = self.scale * gate.sigmoid()
        left = torch.cat((pairs.x * row_a.softmax(-1), row_b.softmax(-1)), 1)
        right = torch.cat((pairs.g * column_a, column_b), 1)
        return Factors(left, size * right)


class KeNetwork(EditorNetwork):
    """One reader, and a head for each matrix.

    Args:
        shapes: (n_in, n_out) of each matrix.
        width: of the model's embedding.
        hidden: of the LSTM, each way.
        z: size of the vector that the words become.
        inner: size of the layer in the heads.
        scale: s_max.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], width: int, hidden: int, z: int, inner: int, scale: float
    ) -> None:
        super().__init__()
        self.reader = Reader(width, hidden, z)
        self.heads = nn.ModuleList(MatrixHead(z, inner, *shape, scale) for shape in shapes)

    def forward(self, pairs: Sequence[TokenPairs], condition: Condition) -> list[Factors]:
        """ΔW of each matrix for each edit."""
        z = self.reader(condition)
        return [head(z, pair) for head, pair in zip(self.heads, pairs, strict=True)]

    def observe(self, pairs: Sequence[TokenPairs]) -> None:
        """Nothing is normalised, so nothing is noted."""

    def draw(self, generator: torch.Generator) -> None:
        """Everything uniform in ±1 / √(inputs), as torch draws linear layers; in the LSTM ±1 / √hidden."""
        bound = self.reader.lstm.hidden_size**-0.5
        for parameter in self.reader.lstm.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
        for module in (self.reader.out, *(layer for head in self.heads for layer in head.children())):
            assert isinstance(module, nn.Linear)
            bound = module.in_features**-0.5
            drawn = torch.empty(module.out_features, module.in_features).uniform_(-bound, bound, generator=generator)
            module.weight = drawn if is_parametrized(module) else nn.Parameter(drawn)
            module.bias.uniform_(-bound, bound, generator=generator)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """One learning rate for all."""
        return {"main": list(self.parameters())}
