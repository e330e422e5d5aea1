"""Forwards of which only the part that is needed is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engramscope.edit.tokens import Ask, Rows, batches, rows_of
from engramscope.models.drive import example_outputs, visited
from engramscope.models.hooks import Hook, Tap, attached, taps, with_output
from engramscope.models.model import Model
from engramscope.models.site import Port

#: padded tokens of one forward that keeps no graph
TOKENS = 4096


class _AllReadError(Exception):
    """Raised inside a forward: everything that was asked for has been read."""


@torch.no_grad()
def read_until(
    model: Model, ids: Int[Tensor, "rows seq"], mask: Int[Tensor, "rows seq"], reads: Sequence[tuple[Port, Tap]]
) -> None:
    """Run the model until every port has been read once, and no further.

    Args:
        model: the model.
        ids: token ids, padded on the right.
        mask: 1 where there is a token.
        reads: ports, each with a function of its value [rows, seq, width]; it must copy what it keeps.
    """
    left = set(range(len(reads)))

    def reader(index: int, read: Tap) -> Callable[[Tensor], None]:
        def tap(value: Tensor) -> None:
            read(value)
            left.discard(index)
            if not left:
                raise _AllReadError

        return tap

    wanted = [(port, reader(index, read)) for index, (port, read) in enumerate(reads)]
    with suppress(_AllReadError), taps(model, wanted, copies=False):
        model.hf(input_ids=ids, attention_mask=mask, use_cache=False)


def at_subjects(
    model: Model, asks: Sequence[Ask], ports: Sequence[Port], *, tokens: int = TOKENS
) -> list[Float[Tensor, "asks width"]]:
    """Values at the last token of the subject; what comes after that token is not computed.

    Args:
        model: the model.
        asks: prompts with a subject.
        ports: where.
        tokens: padded tokens of one forward, at most.

    Returns:
        For each port its values, in float32 (float64 for a model in float64), on the device of the model.
    """
    cut = [replace(ask, prompt=ask.prompt[: _subject(ask) + 1], target=(0,)) for ask in asks]
    found: list[list[Tensor]] = [[] for _ in ports]
    order: list[int] = []
    for chosen in batches(cut, tokens):
        rows = rows_of([cut[index] for index in chosen], model.device)
        order += chosen
        lines = torch.arange(len(chosen), device=model.device)

        def keep(place: int, rows: Rows = rows, lines: Tensor = lines) -> Tap:
            def read(value: Tensor) -> None:
                found[place].append(wide(value[lines.to(value.device), rows.subject.to(value.device)]))

            return read

        read_until(model, rows.ids, rows.mask, [(port, keep(place)) for place, port in enumerate(ports)])
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__))
    return [torch.cat(values)[back.to(values[0].device)] for values in found]


@contextmanager
def from_block(model: Model, layer: int, hidden: Float[Tensor, "rows seq d_model"]) -> Iterator[None]:
    """For the time of a context the blocks below `layer` compute nothing: it is given `hidden` as its input."""
    if layer == 0:
        yield
        return
    forms = model.remember("edit.forms", lambda: _forms(model))

    def answer(below: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return with_output(forms[below], hidden if below == layer - 1 else given)

    with visited(model.blocks[:layer], answer):
        yield


def logits_where(
    model: Model, ids: Int[Tensor, "rows seq"], mask: Int[Tensor, "rows all"], where: Bool[Tensor, "rows seq"], *,
    positions: Int[Tensor, "rows seq"] | None = None, past: Any = None,
) -> Float[Tensor, "chosen vocab"]:  # fmt: skip
    """Logits at chosen positions only, row by row; the head computes no others. Gradients flow if recorded.

    Args:
        model: the model.
        ids: token ids.
        mask: 1 where there is a token, those of `past` included.
        where: the chosen positions.
        positions: of the tokens in their texts, where the model is to be told.
        past: a cache of keys and values, which grows by these tokens.
    """
    head = model.hf.get_submodule(model.anatomy.head)
    more = {} if positions is None else {"position_ids": positions}
    more |= {} if past is None else {"past_key_values": past}
    # at the input of the head: GPT-2 gives the output of its final norm the shape of the whole batch
    with attached([Hook(head, "input", lambda value: value[where.to(value.device)][None])]):
        return model.hf(input_ids=ids, attention_mask=mask, use_cache=past is not None, **more).logits[0]


def wide(value: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is wider."""
    return value if value.dtype == torch.float64 else value.float()


def _forms(model: Model) -> list[Any]:
    # a token that is no padding, because transformers warns of padding without a mask
    token = next(token for token in range(3) if token != model.hf.config.pad_token_id)
    return example_outputs(model.hf, model.blocks, torch.full((1, 2), token, device=model.device))


def _subject(ask: Ask) -> int:
    assert ask.subject is not None
    return ask.subject
