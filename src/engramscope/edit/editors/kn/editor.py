"""The editor: attribution, choice of neurons, and what is added to their value rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engramscope.edit._base import Editor, EditorOptions, Progress
from engramscope.edit.delta import Delta, outer
from engramscope.edit.edit import Edit
from engramscope.edit.editors.kn.attribution import Attribution, Points, Question, attributions, points_of
from engramscope.edit.frozen import frozen
from engramscope.edit.matrices import LinearMap, down_projection, linear_map
from engramscope.edit.outcome import stated
from engramscope.edit.passes import logits_where, wide
from engramscope.edit.tokens import Ask, encode, rows_of
from engramscope.errors import InputError, shortened
from engramscope.models.hooks import Hook, attached
from engramscope.models.model import Model
from engramscope.models.site import Port
from engramscope.records.fact import Fact

#: neurons that the diagnostics name, those with the largest attributions
_NAMED = 50


class KnowledgeNeuronsOptions(EditorOptions):
    """Options of KN; the defaults are the corrected method.

    Attributes:
        steps: M, points of the integral.
        points: where they are: "right" (s/M, the paper), "midpoint" ((s − ½)/M, closer to the integral for the same
            cost) or "linspace" (0 and 1 included, the release).
        threshold: a neuron is chosen if its attribution is above this share of the largest one in the model.
        activation: "post" attributes the input of the down projection; "pre" what comes out of the first matrix,
            before the activation function (the release).
        old: which token is taken away: the first of the true answer, or the one that the model predicts (the release).
        old_factor, target_factor: how many times the old embedding is subtracted, and the target's added.
        multi_token: answers of several tokens. "sequence": the probability is that of the whole answer,
            teacher-forced, and the target's first token is added. "same_position": every token is scored at the last
            token of the prompt, and every token of the target is added (the release).
        leading_space: encode answers as they continue the prompt; False encodes them without the space (the release).
    """

    steps: int = Field(default=20, ge=1)
    points: Points = "right"
    threshold: float = Field(default=0.2, ge=0, lt=1, allow_inf_nan=False)
    activation: Literal["post", "pre"] = "post"
    old: Literal["true", "predicted"] = "true"
    old_factor: float = Field(default=2.0, allow_inf_nan=False)
    target_factor: float = Field(default=2.0, allow_inf_nan=False)
    multi_token: Literal["sequence", "same_position"] = "sequence"
    leading_space: bool = True


class KnowledgeNeurons(Editor):
    """KN: W_l[j] ← W_l[j] − 2 e(old) + 2 e(target) for every knowledge neuron (l, j).

    W_l[j] is its row of the down projection. A knowledge neuron is one with A(l, j) > 0.2 max A over the model, where
    A(l, j) = (w_j/M) Σ_s ∂P(true | prompt, neurons of layer l set to (s/M) w)/∂w_j and w are the neurons at the last
    token of the prompt. e is the row of the unembedding, which is what the residual stream is read with; where it is
    tied, it is the word embedding. The neurons are what comes into the down projection, in a gated MLP act(gate) · up.
    Every neuron of a layer gets the same vector, so the delta of a layer is of rank one.

    The fact's true answer is needed. Sharing over paraphrases (refinement) is not done: there is one prompt, and the
    release has it switched off. In models with a norm behind the MLP (Gemma 2) the vector passes that norm.

    Source: Dai et al. 2022, "Knowledge neurons in pretrained transformers", equations 3 to 5 and section 5; the factor
    2, the threshold 0.2 and M = 20 from the release of Meng et al. 2022 (`baselines/kn`, hparams of GPT-2 XL).
    Deviations of the default: the token taken away is the first of the true answer, to which the neurons are
    attributed, and not what the model predicts; they are the same where the model knows the fact.

    The preset `kn-2022` does what the release does:
    - neurons are taken before the activation function (`mlp.c_fc`), although rows are changed behind it;
    - the points are linspace(0, 1, M): their spacing is 1/(M − 1), and 0 is one of them;
    - answers are encoded without the leading space, so that many fall apart into several tokens;
    - each of these tokens is scored after the bare prompt (the prompt is to be lengthened where the model's type is
      "gpt", which it never is) and their attributions are averaged;
    - the embedding of every token of the target is added once, while the old one is subtracted twice;
    - the old token is the one that the model predicts.
    It is defined where one matrix leads into the neurons, not for gated MLPs. Special tokens that a tokenizer puts in
    front of an answer are left out. That the release's entry points do not fit together is not reproduced.
    """

    Options = KnowledgeNeuronsOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "kn-2022": {
            "points": "linspace", "activation": "pre", "old": "predicted", "target_factor": 1.0,
            "multi_token": "same_position", "leading_space": False,
        }
    }  # fmt: skip
    source = "Dai et al. 2022, equations 3 to 5"

    def _ensure(self, model: Model, facts: Sequence[Fact]) -> None:
        faults = [
            f"The fact {fact.id or fact.prompt!r} has no true answer, and KN looks for the neurons that express it; "
            "give the true answer, too."
            for fact in facts
            if fact.true is None or not fact.true.strip()
        ]
        if faults:
            raise InputError(shortened(faults))
        assert isinstance(self.options, KnowledgeNeuronsOptions)
        _ports(model, self.options.activation)

    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        options, (fact,) = self.options, facts
        assert isinstance(options, KnowledgeNeuronsOptions)
        assert fact.true is not None
        true = _ask(model, fact, fact.true, options.leading_space)
        target = _ask(model, fact, fact.target, options.leading_space)
        ports = _ports(model, options.activation)

        def done(count: int) -> None:
            if progress:
                progress("KN: layers", count, len(ports))

        with frozen(model.hf):
            found = attributions(
                model, Question(true, options.multi_token == "same_position"), ports,
                points_of(options.points, options.steps), done,
            )  # fmt: skip
            old = true.target[0] if options.old == "true" else _predicted(model, target)
            change = _change(model, old, target, options)
            chosen = knowledge_neurons(_scores(model, found), options.threshold)
            (before,) = stated(model, [target])
            with attached(_hooks(model, chosen, change)):
                (after,) = stated(model, [target])
        deltas: dict[str, Delta] = {}
        for layer in chosen.any(1).nonzero()[:, 0].tolist():
            linear = down_projection(model, layer)
            deltas[linear.name] = outer(linear, chosen[layer].float(), change)
        entry = {
            "id": fact.id, **_described(chosen, found), "old_token": old, "target_tokens": list(target.target),
            "probability_before": before.probability, "probability_after": after.probability,
            "most_probable_after": after.most_probable, "stated": after.stated,
            "probability_attributed": found[0].at_activation,
        }  # fmt: skip
        return self.edit(
            model, facts, deltas, seed, diagnostics={"facts": [entry]}, notes=_notes(fact, chosen, change, found)
        )


def knowledge_neurons(scores: Float[Tensor, "layers d_mlp"], threshold: float) -> Bool[Tensor, "layers d_mlp"]:
    """The neurons whose attribution is above a share of the largest one; none where no attribution is above 0."""
    largest = scores.max()
    return (scores > threshold * largest) & (largest > 0)


def _scores(model: Model, found: Sequence[Attribution]) -> Float[Tensor, "layers d_mlp"]:
    scores = torch.stack([one.neurons for one in found])
    if not bool(torch.isfinite(scores).all()):
        raise InputError(
            f"The attributions of neurons in {model.name} are not finite; the model is damaged, or it overflows: load "
            "it in float32."
        )
    return scores


def _ports(model: Model, activation: Literal["post", "pre"]) -> list[Port]:
    """Where the neurons of each layer are.

    Raises:
        SiteError: a layer's MLP has no single down projection.
        InputError: they are wanted before the activation function, and no single matrix leads there.
    """
    found: list[Port] = []
    for layer in range(model.anatomy.n_layers):
        down = down_projection(model, layer)
        if activation == "post":
            found.append(Port(down.path, down.module, "input"))
            continue
        into = _into_neurons(model, down)
        if len(into) != 1:
            raise InputError(
                f"KN before the activation function (preset kn-2022) is defined where one matrix leads into the "
                f"neurons; in {model.name} {len(into)} do{' (a gated MLP)' if len(into) == 2 else ''}. "
                "Leave the preset out."
            )
        found.append(Port(into[0].path, into[0].module, "output"))
    return found


def _into_neurons(model: Model, down: LinearMap) -> list[LinearMap]:
    parent, _, own = down.path.rpartition(".")
    beside = [f"{parent}.{name}" for name, _ in model.hf.get_submodule(parent).named_children() if name != own]
    found = [linear_map(model, path) for path in beside if isinstance(model.hf.get_submodule(path), nn.Linear | Conv1D)]
    return [linear for linear in found if (linear.n_in, linear.n_out) == (down.n_out, down.n_in)]


def _ask(model: Model, fact: Fact, answer: str, leading_space: bool) -> Ask:
    (ask,) = encode(model, [fact.prompt], [answer])
    if leading_space:
        return ask
    ids = model.tokenizer(answer.lstrip(), add_special_tokens=False)["input_ids"]
    return Ask(ask.prompt, tuple(ids), leading=ask.leading)


@torch.no_grad()
def _predicted(model: Model, ask: Ask) -> int:
    """The token that the model finds most probable after the prompt."""
    rows = rows_of([Ask(ask.prompt, ask.target[:1])], model.device)
    return int(logits_where(model, rows.ids, rows.mask, rows.labels != -100)[0].argmax())


def _change(model: Model, old: int, target: Ask, options: KnowledgeNeuronsOptions) -> Float[Tensor, " d_model"]:
    """What is added to the value row of each neuron."""
    head = linear_map(model, model.anatomy.head)
    width = down_projection(model, 0).n_out
    if head.n_in != width:
        raise InputError(
            f"KN adds rows of the unembedding to what MLPs write; in {model.name} the one has {head.n_in} "
            f"dimensions and the other {width}."
        )
    tokens = target.target if options.multi_token == "same_position" else target.target[:1]
    rows = wide(head.matrix.detach()[:, [*tokens, old]]).T
    return options.target_factor * rows[:-1].sum(0) - options.old_factor * rows[-1]


def _hooks(model: Model, chosen: Bool[Tensor, "layers d_mlp"], change: Float[Tensor, " d_model"]) -> list[Hook]:
    """The edit as hooks: the vector is added to the output as often as the chosen neurons are active."""

    def hooks(layer: int) -> list[Hook]:
        linear, given = down_projection(model, layer), list[Tensor]()

        def keep(value: Tensor) -> None:
            given[:] = [wide(value)[..., chosen[layer].to(value.device)].sum(-1, keepdim=True)]

        def add(value: Tensor) -> Tensor:
            return (wide(value) + given.pop() * change.to(value.device)).to(value.dtype)

        return [Hook(linear.module, "input", keep), Hook(linear.module, "output", add)]

    return [hook for layer in chosen.any(1).nonzero()[:, 0].tolist() for hook in hooks(layer)]


def _described(chosen: Tensor, found: list[Attribution]) -> dict[str, Any]:
    scores = torch.stack([one.neurons for one in found]).masked_fill(~chosen, -torch.inf)
    count = int(chosen.sum())
    values, places = scores.flatten().topk(min(count, _NAMED))
    width = chosen.shape[1]
    return {
        "neuron_count": count,
        "neurons_by_layer": chosen.sum(1).tolist(),
        "neurons": [[place // width, place % width, value]
                    for place, value in zip(places.tolist(), values.tolist(), strict=True)],
        "completeness_gap": max(one.gap for one in found),
    }  # fmt: skip


def _notes(fact: Fact, chosen: Tensor, change: Tensor, found: list[Attribution]) -> list[str]:
    notes: list[str] = []
    name = fact.id or fact.prompt
    if not chosen.any():
        notes.append(f"KN found no neuron that speaks for {fact.true!r} ({name}), so nothing was edited.")
    elif not change.any():
        notes.append(
            f"KN: {fact.true!r} and {fact.target!r} begin with the same token, and the first one is all that the "
            f"neurons are given ({name}), so nothing was edited."
        )
    moved = max(abs(one.at_activation - one.at_zero) for one in found)
    worst = max(one.gap for one in found)
    if worst > 0.1 * moved:
        notes.append(
            f"KN: the attributions of a layer miss the change of probability that they are to add up to by {worst:.2g} "
            f"({name}; the largest such change is {moved:.2g}). Take more steps, or the midpoint rule."
        )
    return notes
