"""Records and made-up logits for tests of the measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from engramscope.models.model import Model
from engramscope.records.fact import Fact
from engramscope.records.record import Probe, Record

RECORD = Record(
    "anna",
    Fact("In the park Anna lost the big red", "Anna", "drum", "ball", "anna"),
    "P1",
    paraphrases=("Yesterday and today Anna lost the", "Anna says that she likes the"),
    neighbourhood=(
        Probe("In the park Bob lost the big red", "ball", "drum"),
        Probe("Clara", "ball", "drum"),
        Probe("The child called Dan plays with the", "ball", "drum"),
    ),
    generation=("Anna says", "The child called Anna plays", "In the park"),
    reference="P1|Q2",
)
#: answers of several tokens, which share their first one, and of unlike lengths
LONG = Record(
    "bob",
    Fact("The child called Bob plays with the", "Bob", "coat kite", "coat boat drum", "bob"),
    paraphrases=("Bob says that she likes the",),
    neighbourhood=(Probe("The child called Eva plays with the", "kite", "coat boat"),),
    generation=("Bob says that she",),
)


@contextmanager
def logits_of_a_model(model: Model, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The model, with other logits for the time of a context."""
    handle = model.hf.get_output_embeddings().register_forward_hook(lambda _m, _i, output: change(output))
    try:
        yield
    finally:
        handle.remove()
