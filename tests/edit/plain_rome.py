"""ROME written out: one row at a time, whole logits, no batches, no caches; the oracle of the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engramscope.models.model import Model
from engramscope.records.fact import Fact


def token_ids(model: Model, text: str, *, specials: bool = True) -> list[int]:
    return model.tokenizer(text, add_special_tokens=specials)["input_ids"]


def last_token_of(model: Model, text: str, start: int, end: int) -> int:
    """Position of the last token that covers a character of [start, end)."""
    batch = model.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    found = [
        position
        for position, ((low, high), special) in enumerate(
            zip(batch["offset_mapping"], batch["special_tokens_mask"], strict=True)
        )
        if not special and text[low:high].strip() and low < end and high > start
        and text[max(low, start) : min(high, end)].strip()
    ]  # fmt: skip
    return found[-1]


def run(
    model: Model, module: torch.nn.Module, ids: list[int], position: int, delta: Tensor | None
) -> dict[str, Tensor]:
    """One row through the model: the module's input and output at a position, and all logits."""
    seen: dict[str, Tensor] = {}

    def hook(_module: Any, args: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        flat = tensor.ndim == 2
        place = (position,) if flat else (0, position)
        seen["key"] = args[0][place]
        seen["value"] = tensor[place].clone()
        if delta is None:
            return None
        changed = tensor.clone()
        changed[place] = changed[place] + delta
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(hook)
    try:
        seen["logits"] = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        handle.remove()
    return seen


def rows_of_fact(model: Model, fact: Fact, prefixes: list[str]) -> list[tuple[list[int], list[int], int]]:
    """(prompt, target, position of the subject's last token) for the prompt and the prompt after each text."""
    rows = []
    for prefix in ["", *prefixes]:
        text = prefix + fact.prompt
        start = len(prefix) + fact.prompt.index(fact.subject)
        position = last_token_of(model, text, start, start + len(fact.subject))
        rows.append((token_ids(model, text), token_ids(model, " " + fact.target, specials=False), position))
    return rows


def value_loss(
    model: Model, module: torch.nn.Module, rows: list[tuple[list[int], list[int], int]],
    essence: tuple[list[int], int], delta: Tensor, size: float, kl: float, decay: float,
) -> Tensor:  # fmt: skip
    losses = []
    for prompt, target, position in rows:
        logits = run(model, module, [*prompt, *target[:-1]], position, delta)["logits"]
        log_probs = logits.log_softmax(-1)
        scored = [-log_probs[len(prompt) - 1 + place, token] for place, token in enumerate(target)]
        losses.append(torch.stack(scored).mean())
    ids, position = essence
    before = run(model, module, ids, position, None)["logits"][position].log_softmax(-1).detach()
    after = run(model, module, ids, position, delta)["logits"][position].log_softmax(-1)
    divergence = torch.nn.functional.kl_div(before, after, log_target=True, reduction="sum")
    return torch.stack(losses).mean() + kl * divergence + decay * delta.norm() / size**2


def optimised(
    model: Model, module: torch.nn.Module, fact: Fact, prefixes: list[str], *, steps: int = 20, lr: float = 0.5,
    clamp: float = 4.0, kl: float = 0.0625, decay: float = 0.5, stop: float = 0.05,
    at_the_end: bool = False,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """(delta, losses); at the subject's last token, or at the end of the prompt."""
    rows = rows_of_fact(model, fact, prefixes)
    text = f"{fact.subject} is a"
    essence = token_ids(model, text), last_token_of(model, text, 0, len(fact.subject))
    if at_the_end:
        rows = [(prompt, target, len(prompt) - 1) for prompt, target, _ in rows]
        essence = essence[0], len(essence[0]) - 1
    start = run(model, module, rows[0][0], rows[0][2], None)["value"].detach()
    size = float(start.norm())
    delta = torch.zeros_like(start, requires_grad=True)
    stepper = torch.optim.Adam([delta], lr=lr)
    losses = []
    for step in range(steps):
        loss = value_loss(model, module, rows, essence, delta, size, kl, decay)
        losses.append(float(loss.detach()))
        if losses[-1] < stop or step == steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        stepper.step()
        with torch.no_grad():
            if delta.norm() > clamp * size:
                delta *= clamp * size / delta.norm()
    return delta.detach(), losses


def keys_of(model: Model, module: torch.nn.Module, fact: Fact, prefixes: list[str]) -> list[Tensor]:
    with torch.no_grad():
        rows = rows_of_fact(model, fact, prefixes)
        return [run(model, module, prompt, position, None)["key"] for prompt, _, position in rows]


def second_moment(model: Model, module: torch.nn.Module, texts: list[str], tokens: int, context: int) -> Tensor:
    """One text at a time, one token at a time."""
    seen: list[Tensor] = []
    for text in [text for text in texts if token_ids(model, text)]:
        handle = module.register_forward_pre_hook(lambda _, args: seen.extend(args[0].reshape(-1, args[0].shape[-1])))
        with torch.no_grad():
            model.hf(input_ids=torch.tensor([token_ids(model, text)[:context]]), use_cache=False)
        handle.remove()
    total = torch.zeros(seen[0].shape[0], seen[0].shape[0], dtype=torch.float64)
    for key in seen[:tokens]:
        total += torch.outer(key.double(), key.double())
    return total / len(seen[:tokens])


def matrix_change(model: Model, module: Any, fact: Fact, prefixes: list[str], moment: Tensor, eps: float,
                  denominator: str, **settings: Any) -> Tensor:  # fmt: skip
    """ΔW [n_in, n_out], float64."""
    delta, _ = optimised(model, module, fact, prefixes, **settings)
    keys = torch.stack(keys_of(model, module, fact, prefixes)).double()
    mean, plain = keys.mean(0), keys[0]
    regular = moment + eps * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    u = torch.linalg.inv(regular) @ mean
    return torch.outer(u, delta.double()) / (u @ (mean if denominator == "mean" else plain))
