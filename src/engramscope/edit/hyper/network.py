"""What an editor network is given, and what it has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from engramscope.edit.hyper.factors import Factors
from engramscope.edit.hyper.gradients import TokenPairs
from engramscope.edit.tokens import Ask
from engramscope.models.model import Model


@dataclass(frozen=True, slots=True)
class Condition:
    """The words of edits, prompt and target, as the model embeds them.

    Attributes:
        vectors: [edits, seq, d], padded on the right; no gradient reaches the model's embedding.
        lengths: tokens of each edit [edits], on the CPU.
    """

    vectors: Float[Tensor, "edits seq d"]
    lengths: Int[Tensor, " edits"]


class EditorNetwork(nn.Module, ABC):
    """A network that turns gradients and words into changes of matrices."""

    @abstractmethod
    def forward(self, pairs: Sequence[TokenPairs], condition: Condition) -> list[Factors]:
        """The change of each matrix for each edit; a row of the pairs is an edit.

        What is given for one edit does not depend on the others in the call.
        """

    @abstractmethod
    def observe(self, pairs: Sequence[TokenPairs]) -> None:
        """Take note of gradients, in training only, before `forward` is called on them."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> None:
        """Draw the first weights."""

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Its parameters by the learning rate that they have: "main", and "alpha" for learned factors of the change."""


Network = TypeVar("Network", bound=EditorNetwork)


def condition_of(model: Model, asks: Sequence[Ask]) -> Condition:
    """The words of edits, prompt and whole target, special tokens in front included."""
    lengths = torch.tensor([len(ask.prompt) + len(ask.target) for ask in asks])
    ids = torch.zeros(len(asks), int(lengths.max()), dtype=torch.long)
    for row, ask in enumerate(asks):
        ids[row, : lengths[row]] = torch.tensor((*ask.prompt, *ask.target))
    with torch.no_grad():
        vectors = model.hf.get_input_embeddings()(ids.to(model.device))
    return Condition(vectors if vectors.dtype == torch.float64 else vectors.float(), lengths)


def seeded(build: Callable[[], Network], seed: int) -> Network:
    """A network whose first weights follow from a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):  # the modules of torch draw from it when they are made
        network = build()
    with torch.no_grad():
        network.draw(torch.Generator().manual_seed(seed))
    return network
