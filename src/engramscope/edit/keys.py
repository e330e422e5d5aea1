"""What a layer's MLP looks a subject up by: the input of its down projection at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from engramscope.edit.matrices import LinearMap
from engramscope.edit.passes import at_subjects
from engramscope.edit.tokens import Ask, encode, encode_facts
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.models.site import Port
from engramscope.records.fact import Fact


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of facts, on the CPU.

    Attributes:
        plain: of the prompt as it stands [facts, n_in].
        mean: over the prompt with each of the texts before it [facts, n_in].
    """

    plain: Float[Tensor, "facts n_in"]
    mean: Float[Tensor, "facts n_in"]


def input_of(linear: LinearMap) -> Port:
    """Where keys are read."""
    return Port(linear.path, linear.module, "input")


def output_of(linear: LinearMap) -> Port:
    """Where values are read and added to."""
    return Port(linear.path, linear.module, "output")


def with_prefixes(model: Model, facts: Sequence[Fact], prefixes: Sequence[str]) -> list[list[Ask]]:
    """Each fact as it stands, and then after each of the texts.

    Raises:
        InputError: as `encode`.
    """
    return encode_facts(model, facts, ["{}", *(f"{prefix}{{}}" for prefix in prefixes)])


def essences(model: Model, facts: Sequence[Fact], *, whole: bool = False) -> list[Ask]:
    """ "{subject} is a" for each fact, with the position at which its continuation is held.

    Args:
        model: the model.
        facts: the facts.
        whole: hold it at the end; otherwise at the subject's last token, and the rest, which nothing reads, is cut off.

    Raises:
        InputError: as `encode`.
    """
    texts = [f"{fact.subject} is a" for fact in facts]
    spans = [(0, len(fact.subject)) for fact in facts]
    found: list[Ask] = []
    for ask in encode(model, texts, [fact.target for fact in facts], spans):
        assert ask.subject is not None
        last = len(ask.prompt) - 1 if whole else ask.subject
        found.append(replace(ask, prompt=ask.prompt[: last + 1], target=ask.target[:1], subject=last))
    return found


def subject_keys(
    model: Model, linear: LinearMap, asks: Sequence[Sequence[Ask]], weights: Sequence[float]
) -> Keys:  # fmt: skip
    """Keys of facts at a layer.

    Args:
        model: the model.
        linear: the down projection.
        asks: for each fact its prompts, the plain one first (`with_prefixes`).
        weights: of the prompts in the mean; they sum to 1.

    Raises:
        InputError: a key is not finite.
    """
    flat = [ask for prompts in asks for ask in prompts]
    (found,) = at_subjects(model, flat, [input_of(linear)])
    # on the CPU: what follows is in float64, which not every device knows, and keys are small
    each = found.cpu().view(len(asks), len(weights), -1)
    if not bool(torch.isfinite(each).all()):
        raise InputError(f"{linear.path} is given values that are not finite; the model is damaged or overflows.")
    share = torch.tensor(weights, dtype=each.dtype, device=each.device)
    return Keys(each[:, 0], (each * share[None, :, None]).sum(1))
