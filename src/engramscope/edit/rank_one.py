"""One fact by a change of rank one in one matrix: W ← W + u δ / (u · k), u = C⁻¹ k*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from engramscope.edit._base import Editor, EditorOptions, Progress
from engramscope.edit.applied import with_deltas
from engramscope.edit.defaults import resolved
from engramscope.edit.delta import Delta, outer
from engramscope.edit.edit import Edit
from engramscope.edit.keys import Keys, essences, output_of, subject_keys, with_prefixes
from engramscope.edit.layers import GPT2_LARGE, GPT2_MEDIUM, GPT2_XL, GPTJ, NEOX_20B, chosen_layer
from engramscope.edit.matrices import LinearMap, down_projection
from engramscope.edit.outcome import Stated, post_norm_note, stated, warnings_of
from engramscope.edit.solvers import Known, MomentOptions
from engramscope.edit.tokens import Ask
from engramscope.edit.value import Found, ValueSettings, Wanted, optimise_values
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.records.fact import Fact

Token = Literal["subject_last", "last"]


class RankOneOptions(MomentOptions):
    """Options of an edit of rank one.

    Attributes:
        layer: which block's down projection is edited; by default the published one of the model.
        token: whose key is edited: the subject's last token, or the last token of the prompt (`fact_token` of the
            release, which uses the first).
        steps: forwards of the optimisation of v*, at most.
        lr: learning rate of Adam.
        clamp: |δ| is at most so many times |v0|.
        kl: weight of the divergence on "{subject} is a".
        decay: weight of |δ| / |v0|².
        stop: a loss below this ends the optimisation.
        mom2: use the second moment of keys; without it C is the identity, as in EasyEdit's settings.
        denominator: the key that the update is divided by: "mean" is k* itself (consistent keys), "prompt" the key of
            the prompt as it stands, as in the release.
        prefixes: (how many, how long) texts are put before the prompt.
        top_k: of how many tokens those texts are drawn.
    """

    layer: int | None = None
    token: Token = "subject_last"
    steps: int = Field(20, ge=1)
    lr: float = Field(0.5, gt=0)
    clamp: float = Field(4.0, gt=0)
    kl: float = Field(0.0625, ge=0)
    decay: float = Field(0.5, ge=0)
    stop: float = Field(0.05, ge=0)
    mom2: bool = True
    denominator: Literal["mean", "prompt"] = "mean"
    prefixes: tuple[tuple[int, int], ...] = ((10, 5), (10, 10))
    top_k: int = Field(5, ge=1)

    @field_validator("prefixes")
    @classmethod
    def _counts(cls, value: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        if any(count < 0 or length < 1 for count, length in value):
            raise ValueError("expected pairs (how many, how long), for example [[10, 5], [10, 10]]")
        return value

    def value_settings(self) -> ValueSettings:
        """Those of the optimisation."""
        return ValueSettings(self.steps, self.lr, self.clamp, self.kl, self.decay, self.stop)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fact is written.

    Attributes:
        layer: the block.
        from_end: how many tokens before the end of the prompt the key is read; None for the subject's last token.
    """

    layer: int
    from_end: int | None = None


#: rome/hparams of the release
PUBLISHED: Mapping[tuple[str, int], Mapping[str, Any]] = {
    GPT2_MEDIUM: {"layer": 8, "clamp": 3.0},
    GPT2_LARGE: {"layer": 12},
    GPT2_XL: {"layer": 17},
    GPTJ: {"layer": 5},
    NEOX_20B: {"layer": 15},
}
#: Found by trying all layers and both tokens on training records. The bundled models do not gather what they know at
#: the subject: block 0 copies the name to where the answer is asked for, and its MLP looks the fact up there.
BUNDLED: Mapping[str, Mapping[str, Any]] = {
    "mini": {"layer": 0, "token": "last", "steps": 60, "stop": 0.02},
    "mini-llama": {"layer": 0, "token": "last", "steps": 60, "stop": 0.02},
}
#: where the layer lies in all other models, as a share of the layers: as in the published ones
_DEPTH = 0.35


def rome_place(model: Model, options: RankOneOptions) -> tuple[RankOneOptions, Place, str | None]:
    """The options of this model, where ROME edits it, and a sentence where nobody chose the layer.

    Raises:
        SiteError: there is no such layer.
    """
    found = resolved(options, model, PUBLISHED, BUNDLED)
    layer, note = chosen_layer(model, found.layer, {}, _DEPTH)
    return found, Place(layer, token_from_end(found.token)), note


def settled_rome(model: Model, options: EditorOptions) -> RankOneOptions:
    """The options with those of this model, and with its layer.

    Raises:
        SiteError: there is no such layer.
    """
    assert isinstance(options, RankOneOptions)
    found, place, _ = rome_place(model, options)
    return found.model_copy(update={"layer": place.layer})


def token_from_end(token: Token) -> int | None:
    """As `Place` says it."""
    return 1 if token == "last" else None


def rank_one(
    editor: Editor, model: Model, fact: Fact, place: Place, options: RankOneOptions, seed: int, known: Known, *,
    notes: Sequence[str] = (), progress: Progress | None = None,
) -> Edit:  # fmt: skip
    """The edit of one fact at one place.

    k* is the mean of the keys of the prompt and of the prompt after each text; v* = W k* + δ, δ from
    `optimise_values`. With consistent keys the new matrix maps k* to v*, and of all matrices that do it changes the
    least what the old one made of keys distributed as C says: ΔW = u δ / (u · k*), u = C⁻¹ k*.

    Args:
        editor: whose edit it is.
        model: the model.
        fact: the fact.
        place: layer and token.
        options: resolved ones.
        seed: of the texts.
        known: what was found out before.
        notes: sentences to begin with.
        progress: called with (what, done, total).

    Raises:
        InputError: the fact's texts are too long for the model, no second moment can be had, or u · k is zero.

    Source: Meng et al. 2022, ROME, equation 2; consistent keys: Gupta et al. 2024 (Rebuilding ROME).
    """
    linear = down_projection(model, place.layer)
    prefixes = known.prefixes(model, options.prefixes, seed, top_k=options.top_k, words=False)
    asks = [placed(ask, place.from_end) for ask in with_prefixes(model, [fact], prefixes)[0]]
    keys = subject_keys(model, linear, [asks], [1 / len(asks)] * len(asks))
    direction, said, thin = _direction(model, place.layer, keys, options, known, progress)
    wanted = Wanted(tuple(asks), essences(model, [fact], whole=options.token == "last")[0])
    (value,) = optimise_values(model, output_of(linear), place.layer, [wanted], options.value_settings(),
                               progress=progress)  # fmt: skip
    deltas, ratio = _update(linear, keys, direction, value, options.denominator)
    before = stated(model, asks[:1])[0]
    with with_deltas(model.hf, deltas):
        after = stated(model, asks[:1])[0]
    entry = _entry(fact, linear, deltas, value, ratio, before, after) | {"layer": place.layer, "module": linear.path}
    warned = warnings_of(fact, entry, asks[0])
    said_notes = [*notes, thin, post_norm_note(model, place.layer, linear), *(note for note, _ in warned)]
    diagnostics = {"facts": [entry | {"warnings": [sentence for _, sentence in warned]}], "second_moment": said}
    return editor.edit(model, [fact], deltas, seed, prefixes=prefixes, diagnostics=diagnostics,
                       notes=[note for note in said_notes if note])  # fmt: skip


def placed(ask: Ask, from_end: int | None) -> Ask:
    """The prompt with a token, counted from its end, in the place of the subject's last one."""
    return ask if from_end is None else replace(ask, subject=len(ask.prompt) - from_end)


def _direction(
    model: Model, layer: int, keys: Keys, options: RankOneOptions, known: Known, progress: Progress | None
) -> tuple[Float[Tensor, " n_in"], dict[str, Any] | None, str | None]:
    """u, of unit length, in float64; what was used to find it; and a note."""
    if not options.mom2:
        return _unit(keys.mean[0].double()), None, None
    one = known.solvers(model, [layer], options, progress)(layer)
    return _unit(one.solver.solve(keys.mean)[0]).to(keys.mean.device), one.said(), one.note()


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _update(
    linear: LinearMap, keys: Keys, direction: Tensor, value: Found, denominator: str
) -> tuple[Mapping[str, Delta], float]:
    """ΔW, and u · k / u · k* with k the key of the prompt as it stands."""
    plain, mean = (float(direction @ key[0].double().to(direction.device)) for key in (keys.plain, keys.mean))
    divisor = mean if denominator == "mean" else plain
    if not (abs(divisor) > 0.0 and abs(mean) > 0.0):  # NaN, too: a key of zeros has no direction
        raise InputError(
            f"The key at {linear.path} gives nothing to write to (u · k is 0: its neurons are all silent there); "
            "choose another layer."
        )
    return {linear.name: outer(linear, direction / divisor, value.delta)}, plain / mean


def _entry(
    fact: Fact, linear: LinearMap, deltas: Mapping[str, Delta], value: Found, ratio: float, before: Stated,
    after: Stated,
) -> dict[str, Any]:  # fmt: skip
    wider = torch.promote_types(linear.weight.dtype, torch.float32)
    size = float(torch.linalg.vector_norm(linear.weight.detach(), dtype=wider))
    return {
        "id": fact.id, "prompt": fact.prompt, "subject": fact.subject, "target": fact.target,
        **value.said(), "key_ratio": ratio, "relative_change": deltas[linear.name].norm() / size,
        "probability_before": before.probability, "probability_after": after.probability,
        "most_probable_before": before.most_probable, "most_probable_after": after.most_probable,
        "stated": after.stated,
    }  # fmt: skip
