"""Logit lens: what the model would answer if its final norm and head were applied after each block already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from engramscope.engine.gather import placeholder
from engramscope.errors import CheckError
from engramscope.locate.questions import (
    KEPT_BYTES,
    Pairs,
    Question,
    Run,
    choose,
    forward_last,
    of_equal_length,
    questions_of,
)
from engramscope.metrics import get_metric
from engramscope.metrics._base import Target
from engramscope.models.drive import example_outputs, passed_by
from engramscope.models.model import Model
from engramscope.models.offload import held
from engramscope.models.probe import eps_of
from engramscope.pairs.encode import Encoder

Progress = Callable[[str, int, int], None]

#: the `layer` of the residual stream before the first block
EMBED = -1
#: rows of logits at a time
_MOST_ROWS = 256
#: how far the lens after the last block may lie from the model's logits, in units of the precision of the latter
_ULPS = 16.0


@dataclass(frozen=True)
class _Row:
    """One position of one prompt: a row of every residual stream that is kept."""

    question: Question
    position: int


def logit_lens(
    model: Model,
    pairs: Pairs,
    *,
    positions: Literal["last", "all"] = "last",
    run: Run = "clean",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The next-token distribution that the residual stream of every layer stands for, `softmax(W_U N(resid_post[l]))`.

    N is the model's own final norm, with the scale that it has for this very input, followed by everything that the
    model does after it (bias, scale, soft cap): the stream is put in the place of the last block's output, and the
    model's own end does the rest. So after the last block the lens *is* the model's output, which is checked.

    Args:
        model: the model.
        pairs: the pairs; or pairs in tokens, for a model without a tokenizer. Answers must be single tokens.
        positions: the last position of the prompt, or every position. At earlier positions the answers are scored as
            if they came next there.
        run: the clean or the corrupted prompt (as tokens; noise is not applied).
        progress: called with (what, done, total).

    Returns:
        One row per pair, layer and position: `pair, cluster, layer, position, position_role`; `layer` is -1 before the
        first block (embedding and positions), l after block l. Then
        `logit_diff`: as the metric, in logits, NaN for pairs without incorrect answers; `prob`: of the correct answers,
        in [0, 1]; `rank`: of the best correct answer, 0 = on top, ties against it; `kl`: KL(final || lens) in nats, at
        least 0, from the model's distribution at the same position of the same run; `top_token`, `top_text`: the
        likeliest token (the one with the lowest id among equals), its text None without a tokenizer.

    Raises:
        PairsError: pairs at fault, one sentence each.
        UnknownNameError: no such run or choice of positions.
        ModelError: the model has no tokenizer and the pairs are no tokens.
        CheckError: after the last block the lens differs from the model's logits.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    Deviation: the soft cap and the scale of the logits are applied as the model applies them.
    """
    choose("choice of positions", positions, ("last", "all"))
    questions = questions_of(model, pairs, ["prob"], run, where_compared=["logit_diff"])
    lens = _Lens(model)
    encoder = None if model.tokenizer is None else Encoder(model.tokenizer)
    frames: list[pd.DataFrame] = []
    done = 0
    for members in of_equal_length(questions, lens.token_bytes if positions == "all" else 0.0):
        batch = [questions[index] for index in members]
        frames += lens.frames(batch, positions == "all", encoder)
        done += len(batch)
        if progress:
            progress("logit lens", done, len(questions))
    order = {question.id: place for place, question in enumerate(questions)}
    table = pd.concat(frames, ignore_index=True)
    keys = pd.DataFrame(
        {"pair": [order[pair] for pair in table["pair"]], "layer": table["layer"], "position": table["position"]}
    )
    return table.loc[keys.sort_values(["pair", "layer", "position"]).index].reset_index(drop=True)


class _Lens:
    """The end of a model, to be applied to any residual stream."""

    def __init__(self, model: Model) -> None:
        self.model = model
        token = placeholder(model, 1, 2)
        self.forms: Sequence[Any] = example_outputs(model.hf, model.blocks, token)
        self.layers = range(EMBED, model.anatomy.n_layers)
        self.token_bytes = float(len(self.layers) * model.anatomy.d_model * model.dtype.itemsize)
        # logits of a row, those of the final distribution, and what metrics make of them in float64
        self.rows = max(1, min(_MOST_ROWS, int(KEPT_BYTES / (model.anatomy.vocab * 40))))

    def logits(self, stream: Tensor) -> Tensor:
        """What the model makes of residual streams [rows, d_model] after the last block: logits [rows, vocab]."""
        last = self.model.anatomy.n_layers - 1
        with held(self.model.hf.get_submodule(self.model.anatomy.head)):
            output = passed_by(
                self.model.hf, self.model.blocks, self.forms, placeholder(self.model, len(stream), 1),
                lambda layer, _args, _kwargs: stream[:, None] if layer == last else None,
            )  # fmt: skip
        return output.logits[:, 0]

    def frames(self, batch: Sequence[Question], everywhere: bool, encoder: Encoder | None) -> Iterator[pd.DataFrame]:
        """The rows of the table for prompts of equal length, a slice at a time."""
        streams: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[[Tensor], None]:
            def store(value: Tensor) -> None:
                streams[layer] = (value if everywhere else value[:, -1:]).flatten(0, 1).clone()

            return store

        wanted = [(self.model.site("resid_pre", 0), keep(EMBED))]
        wanted += [(self.model.site("resid_post", layer), keep(layer)) for layer in self.layers[1:]]
        tokens = torch.tensor([question.prompt.ids for question in batch])
        own = forward_last(self.model, tokens, wanted)
        length = tokens.shape[1]
        rows = [_Row(question, at) for question in batch for at in (range(length) if everywhere else (length - 1,))]
        for first in range(0, len(rows), self.rows):
            part = slice(first, first + self.rows)
            final = self.logits(streams[self.layers[-1]][part])
            self._check(final, rows[part], {question.id: row for question, row in zip(batch, own, strict=True)})
            for layer in self.layers:
                logits = final if layer == self.layers[-1] else self.logits(streams[layer][part])
                yield _scored(rows[part], layer, logits, final, encoder)

    def _check(self, final: Tensor, rows: Sequence[_Row], own: dict[str, Tensor]) -> None:
        """Raise where the lens after the last block is not what the model returned at the last position."""
        for logits, row in zip(final, rows, strict=True):
            if row.position < len(row.question.prompt) - 1:
                continue
            expected = own[row.question.id]
            difference = float((logits - expected).abs().amax())
            if not difference <= _ULPS * eps_of(expected) * float(expected.abs().amax()):
                raise CheckError(
                    f"After the last block the lens differs from the logits of {self.model.name} by {difference:.3g} "
                    f"in pair {row.question.id!r}: the model's end depends on more than the residual stream."
                )


def _scored(rows: Sequence[_Row], layer: int, logits: Tensor, final: Tensor, encoder: Encoder | None) -> pd.DataFrame:
    targets = [
        Target(row.question.target.correct, row.question.target.incorrect, clean)
        for row, clean in zip(rows, final, strict=True)
    ]
    compared = [number for number, target in enumerate(targets) if target.incorrect]
    difference = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    if compared:
        some = get_metric("logit_diff").score(logits[compared, None], [targets[number] for number in compared])
        difference[compared] = some.to("cpu").double()
    values = {name: get_metric(name).score(logits[:, None], targets).to("cpu") for name in ("prob", "rank", "kl")}
    top = logits.argmax(dim=-1).tolist()
    return pd.DataFrame({
        "pair": [row.question.id for row in rows], "cluster": [row.question.cluster for row in rows], "layer": layer,
        "position": [row.position for row in rows],
        "position_role": [row.question.prompt.roles[row.position] for row in rows],
        "logit_diff": difference.numpy(), **{name: value.double().numpy() for name, value in values.items()},
        "top_token": top, "top_text": list(encoder.show(top)) if encoder else [None] * len(top),
    })  # fmt: skip
