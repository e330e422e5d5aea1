"""Copy scores: does a head that looks at a token raise that token's logit, or lower it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from engramscope.locate.questions import forward_last
from engramscope.locate.readout import final_norm_port, matrix_of, wide
from engramscope.models.model import Model
from engramscope.models.offload import held
from engramscope.models.probe import below
from engramscope.models.site import Port

Progress = Callable[[str, int, int], None]
Scores = np.ndarray  # [n_layers, n_heads]

#: numbers of logits at a time
_LOGITS = 2**24


def copy_scores(
    model: Model,
    tokens: Sequence[int],
    *,
    leading: Sequence[int] = (),
    top: int = 5,
    progress: Progress | None = None,
) -> tuple[Scores, Scores]:
    """Share of tokens that a head copies, and that it suppresses.

    For each token `t`: x is the residual stream after the first block (the token's embedding after MLP 0) in the
    prompt `[BOS] t`; o = v_h(x) W_O,h is what head h moves when it looks at t only: its layer's norm, its value
    projection with bias (with grouped queries that of its group), and the norm behind the attention where there is one.
    t is *copied* when it is among the `top` highest logits of `N(o) W_U`, N the final norm; *negated copy* the same
    with -o. Ties count against the token, so a head that writes nothing copies nothing.

    Args:
        model: the model.
        tokens: token ids.
        leading: special tokens that stand before a text.
        top: how many of the highest logits count.
        progress: called with (what, done, total).

    Returns:
        (copy, negated copy), shares of the tokens in [0, 1], [n_layers, n_heads]. Expected of a random direction:
        `top` / vocab.

    Source: Wang et al. 2022, arXiv 2211.00593, section 3.1 and appendix; `copy_scores` of the released code.
    Deviation: tokens stand alone after BOS instead of in prompts of the task. Heads of the first block are scored by
        the same x, which lies behind them.
    """
    values = _values(model, tokens, leading)
    names = torch.tensor(list(tokens))
    logits_of = _Unembedding(model)
    found = np.zeros((2, model.anatomy.n_layers, model.anatomy.n_heads))
    for layer in range(model.anatomy.n_layers):
        z, norm = _out(model, layer)
        assert z.head_columns is not None
        matrix = matrix_of(z.module, values[layer].new_zeros(1, z.head_columns.numel())).T  # [in, d_model]
        v = wide(values[layer]).repeat_interleave(model.anatomy.n_heads // model.anatomy.n_kv_heads, dim=1)
        for head, columns in enumerate(z.head_columns):
            written = (v[:, head] @ matrix[columns]).to(values[layer])
            if norm is not None:
                with torch.no_grad():
                    written = norm(written[:, None])[:, 0]
            for which, sign in enumerate((1, -1)):
                found[which, layer, head] = logits_of.share_in_top(sign * written, names, top)
        if progress:
            progress("copy scores", layer + 1, model.anatomy.n_layers)
    return found[0], found[1]


def why_no_copy_scores(model: Model) -> str:
    """A sentence that says why heads of this model have no copy scores; "" where they have."""
    for site in ("v", "z", "attn_out", "final_norm"):
        if site in model.anatomy.refusals:
            return model.anatomy.refusals[site]
    return ""


def _values(model: Model, tokens: Sequence[int], leading: Sequence[int]) -> list[Tensor]:
    """What the value projections of every layer make of the residual stream after the first block.

    Returns:
        [tokens, n_kv_heads, d_head] of each layer.
    """
    prompts = torch.tensor([[*leading, token] for token in tokens])
    after: list[Tensor] = []
    forward_last(model, prompts, [(model.site("resid_post", 0), lambda value: after.append(value.clone()))])
    found: dict[int, Tensor] = {}

    def keep(layer: int, columns: Tensor) -> Callable[[Tensor], None]:
        def store(value: Tensor) -> None:
            found[layer] = value[:, -1][:, columns.to(value.device)].clone()

        return store

    wanted = []
    for layer in range(model.anatomy.n_layers):
        access = model.site("v", layer)
        assert isinstance(access, Port)
        assert access.head_columns is not None
        # every block is given the stream behind the first one, whatever the block before it made of it
        wanted.append((model.site("resid_pre", layer), lambda value: after[0].to(value.device, copy=True)))
        wanted.append((access, keep(layer, access.head_columns)))
    forward_last(model, prompts, wanted)
    return [found[layer] for layer in range(model.anatomy.n_layers)]


def _out(model: Model, layer: int) -> tuple[Port, nn.Module | None]:
    """The output projection of a layer's attention, and the norm between it and the residual stream."""
    z, written = model.site("z", layer), model.site("attn_out", layer)
    assert isinstance(z, Port)
    assert isinstance(written, Port)
    return z, None if below(z.path, written.path) else written.module


class _Unembedding:
    """Final norm and head, without scale and soft cap, which change no order; in float32 at least, against ties."""

    def __init__(self, model: Model) -> None:
        self.norm = final_norm_port(model).module
        self.head = model.hf.get_submodule(model.anatomy.head)
        self.rows = max(1, _LOGITS // model.anatomy.vocab)

    def share_in_top(self, written: Tensor, tokens: Tensor, top: int) -> float:
        """Share of rows [rows, d_model] whose own token is among the highest logits."""
        count = 0
        for first in range(0, len(tokens), self.rows):
            part = slice(first, first + self.rows)
            logits = self._logits(written[part])
            own = logits.gather(1, tokens[part, None].to(logits.device))
            count += int(((logits >= own).sum(dim=1) <= top).sum())
        return count / len(tokens)

    def _logits(self, written: Tensor) -> Tensor:
        with torch.no_grad(), held(self.norm), held(self.head):
            normed = self.norm(written[:, None])[:, 0]
            if type(self.head) is not nn.Linear or normed.dtype in (torch.float32, torch.float64):
                return self.head(normed)
            bias = None if self.head.bias is None else self.head.bias.float()
            return nn.functional.linear(normed.float(), self.head.weight.float(), bias)
