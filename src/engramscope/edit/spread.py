"""Many facts at once, their changes shared out over several layers: what MEMIT and AlphaEdit have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from engramscope.edit._base import Editor, Progress
from engramscope.edit.applied import with_deltas
from engramscope.edit.delta import Delta, outer, total
from engramscope.edit.edit import Edit
from engramscope.edit.keys import essences, subject_keys, with_prefixes
from engramscope.edit.layers import GPT2_XL, GPTJ
from engramscope.edit.matrices import down_projection
from engramscope.edit.outcome import Stated, stated, warnings_of
from engramscope.edit.passes import at_subjects
from engramscope.edit.rank_one import Token, placed, token_from_end
from engramscope.edit.solvers import Known, MomentOptions
from engramscope.edit.value import Found, ValueSettings, Wanted, optimise_values
from engramscope.errors import SiteError
from engramscope.models.model import Model
from engramscope.models.site import Port
from engramscope.records.fact import Fact

#: hparams/MEMIT of the release
PUBLISHED_LAYERS: Mapping[tuple[str, int], tuple[int, ...]] = {
    GPT2_XL: (13, 14, 15, 16, 17),
    GPTJ: (3, 4, 5, 6, 7, 8),
}
#: for other models: so many layers, ending at this share of the depth, as in the published ones
_COUNT, _DEPTH = 5, 0.36


@dataclass(frozen=True, slots=True)
class KeySide:
    """What a layer has for each key.

    Attributes:
        written: X [facts, n_in], float64.
        said: what the diagnostics say of the layer; None for nothing.
        note: a sentence for the user.
    """

    written: Tensor
    said: Any = None
    note: str | None = None


#: (layer, keys [facts, n_in]) -> what is written for each of them; asked layer by layer, from the first up
KeySides = Callable[[int, Tensor], KeySide]


class SpreadOptions(MomentOptions):
    """Options of an edit that is shared out over layers.

    Attributes:
        layers: which blocks' down projections are edited; by default the published ones of the model.
        token: at whose position: the subject's last token, or the last token of the prompt.
        steps: forwards of the optimisation of z, at most.
        lr: learning rate of Adam.
        clamp: |δ| is at most so many times |h|, h the block's output before.
        kl: weight of the divergence on "{subject} is a".
        decay: weight of |δ| / |h|².
        stop: a loss below this ends the optimisation.
        prefixes: (how many, how long) texts are put before the prompt; they begin with the five words of the release.
        top_k: of how many tokens those texts are drawn.
    """

    layers: tuple[int, ...] | None = None
    token: Token = "subject_last"
    steps: int = Field(20, ge=1)
    lr: float = Field(0.5, gt=0)
    clamp: float = Field(0.75, gt=0)
    kl: float = Field(0.0625, ge=0)
    decay: float = Field(0.5, ge=0)
    stop: float = Field(0.05, ge=0)
    prefixes: tuple[tuple[int, int], ...] = ((5, 10),)
    top_k: int = Field(5, ge=1)

    @field_validator("layers")
    @classmethod
    def _rising(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or list(value) != sorted(set(value))):
            raise ValueError("expected layers in rising order, each once")
        return value

    def value_settings(self) -> ValueSettings:
        """Those of the optimisation."""
        return ValueSettings(self.steps, self.lr, self.clamp, self.kl, self.decay, self.stop)


@dataclass(frozen=True, slots=True)
class Spread:
    """One edit that is shared out.

    Attributes:
        layers: rising.
        options: resolved.
        seed: of the texts.
        notes: sentences to begin with.
    """

    layers: tuple[int, ...]
    options: SpreadOptions
    seed: int
    notes: tuple[str, ...] = ()


def chosen_layers(model: Model, options: SpreadOptions) -> tuple[tuple[int, ...], str | None]:
    """The layers to edit, and a sentence where nobody chose them.

    Raises:
        SiteError: there is no such layer.
    """
    count = model.anatomy.n_layers
    if options.layers is not None:
        if missing := [layer for layer in options.layers if not 0 <= layer < count]:
            raise SiteError(f"There is no layer {missing[0]}: {model.name} has {count} layers, 0 to {count - 1}.")
        return options.layers, None
    if (known := PUBLISHED_LAYERS.get((model.anatomy.model_type, count))) is not None:
        return known, None
    last = round(_DEPTH * (count - 1))
    layers = tuple(range(max(0, last - _COUNT + 1), last + 1))
    names = ", ".join(map(str, layers))
    return layers, f"No layers are published for {model.name}: layers {names} of {count} were edited. Try others."


def spread(
    editor: Editor, model: Model, facts: list[Fact], what: Spread, key_side: KeySides, known: Known, *,
    about: str, progress: Progress | None,
) -> Edit:  # fmt: skip
    """The edit of many facts at several layers.

    For each fact z = h + δ is optimised at the output of the last layer's block. Then, from the first layer up, each
    with those below in place: keys K of that layer, the residual E = (z − h now) / (layers that are left), ΔW = Xᵀ E.

    Args:
        editor: whose edit it is.
        model: the model.
        facts: the facts.
        what: layers, options, seed.
        key_side: X for a layer's K, and what is to be said about it.
        known: what was found out before.
        about: under which name the diagnostics have what was said of each layer.
        progress: called with (what, done, total).

    Source: Meng et al. 2023, MEMIT, algorithm 1.
    """
    options, last = what.options, what.layers[-1]
    prefixes = known.prefixes(model, options.prefixes, what.seed, top_k=options.top_k, words=True)
    from_end = token_from_end(options.token)
    asks = [[placed(ask, from_end) for ask in prompts] for prompts in with_prefixes(model, facts, prefixes)]
    bare = [prompts[0] for prompts in asks]
    wanted = [
        Wanted(tuple(prompts), essence)
        for prompts, essence in zip(asks, essences(model, facts, whole=options.token == "last"), strict=True)
    ]
    port = model.site("resid_post", last)
    assert isinstance(port, Port)
    values = optimise_values(model, port, last, wanted, options.value_settings(), progress=progress)
    goal = torch.stack([value.start + value.delta.to(value.start) for value in values])
    deltas: dict[str, Delta] = {}
    said: dict[str, Any] = {}
    thin: list[str] = []
    with ExitStack() as stack:
        for place, layer in enumerate(what.layers):
            if progress:
                progress("layers", place, len(what.layers))
            linear = down_projection(model, layer)
            keys = subject_keys(model, linear, asks, _by_kind([count for count, _ in options.prefixes])).mean
            (now,) = at_subjects(model, bare, [port])
            residual = (goal.to(now) - now) / (len(what.layers) - place)
            side = key_side(layer, keys)
            thin += [side.note] if side.note else []
            said |= {} if side.said is None else {str(layer): side.said}
            delta = total([outer(linear, side.written, residual)])
            deltas[linear.name] = delta
            stack.enter_context(with_deltas(model.hf, {linear.name: delta}))
        (now,) = at_subjects(model, bare, [port])
        left = (goal.to(now) - now).norm(dim=1)
        after = stated(model, bare)
    if progress:
        progress("layers", len(what.layers), len(what.layers))
    entries = _entries(facts, values, left, stated(model, bare), after)
    warned = [warnings_of(fact, entry, ask) for fact, entry, ask in zip(facts, entries, bare, strict=True)]
    told = [entry | {"warnings": [one for _, one in warnings]} for entry, warnings in zip(entries, warned, strict=True)]
    notes = dict.fromkeys([*what.notes, *thin, *(note for warnings in warned for note, _ in warnings)])
    diagnostics = {"facts": told, about: said, "layers": list(what.layers)}
    edit = editor.edit(model, facts, deltas, what.seed, prefixes=prefixes, diagnostics=diagnostics, notes=tuple(notes))
    return replace(edit, diagnostics={**diagnostics, "relative_change": edit.norms(model)})


def _by_kind(counts: Sequence[int]) -> list[float]:
    """Weights of the prompt and of the prompt after each text: the mean within a kind, then over the kinds.

    Args:
        counts: how many texts there are of each length; the prompt as it stands is a kind of its own.
    """
    kinds = [1, *(count for count in counts if count)]
    return [1 / (len(kinds) * count) for count in kinds for _ in range(count)]


def _entries(
    facts: Sequence[Fact], values: Sequence[Found], left: Float[Tensor, " facts"], before: Sequence[Stated],
    after: Sequence[Stated],
) -> list[dict[str, Any]]:  # fmt: skip
    found = []
    for fact, value, rest, was, now in zip(facts, values, left.tolist(), before, after, strict=True):
        size = float(value.delta.norm())
        found.append({
            "id": fact.id, "prompt": fact.prompt, "subject": fact.subject, "target": fact.target, **value.said(),
            "residual_left": rest / size if size else 0.0,
            "probability_before": was.probability, "probability_after": now.probability,
            "most_probable_before": was.most_probable, "most_probable_after": now.most_probable,
            "stated": now.stated,
        })  # fmt: skip
    return found
