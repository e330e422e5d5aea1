"""Direct logit attribution: what every part of a model writes, read along correct answer minus incorrect answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from engramscope.engine.reference import Tap
from engramscope.errors import CheckError, SiteError
from engramscope.locate.contributions import Attribution, Contributions
from engramscope.locate.questions import Pairs, Question, Run, choose, forward_last, of_equal_length, questions_of
from engramscope.locate.readout import (
    FrozenNorm,
    HeadForm,
    constant_of,
    explains,
    final_norm_port,
    frozen_norm,
    head_form,
    head_rows,
    matrix_of,
    wide,
)
from engramscope.metrics import get_metric
from engramscope.models.model import Model
from engramscope.models.probe import close
from engramscope.models.site import Port

MetricName = Literal["logit_diff", "mean_logit_diff"]
Progress = Callable[[str, int, int], None]

#: what rounding may take from a sum, in units of the precision of the model's numbers
_ULPS = 8.0


@dataclass
class _Values:
    """What a forward left behind at the last position, and at all positions where sources are asked for."""

    at: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)

    def keep(self, name: str, layer: int | None, last: bool = True) -> Callable[[Tensor], None]:
        def store(value: Tensor) -> None:
            self.at[name, layer] = (value[:, -1] if last else value).clone()

        return store

    def keep_weights(self, layer: int) -> Callable[[Tensor], None]:
        def store(weights: Tensor) -> None:
            self.at["pattern", layer] = weights[:, :, -1].clone()

        return store

    def __getitem__(self, place: tuple[str, int | None]) -> Tensor:
        return self.at[place]


@dataclass(frozen=True)
class _Job:
    model: Model
    metric: MetricName
    by_source: bool
    form: HeadForm
    split: dict[int, bool]  # layer -> its heads can be told apart; found out with the first prompts


def direct_attribution(
    model: Model,
    pairs: Pairs,
    *,
    run: Run = "clean",
    metric: MetricName = "logit_diff",
    by_source: bool = False,
    cluster: str = "group",
    progress: Progress | None = None,
) -> Attribution:
    """What every part of the model writes directly into the logit difference at the last position of the prompt.

    The residual stream at the end is a sum of what its sources wrote, `x = Σ_u a_u`. With the scale `s` of the final
    norm held at its value in this run, the logit difference is linear in x, so that every source has its share:

        contribution(u) = ((a_u - mean a_u) / s) ⊙ gain · d,    d = scale (Σ_t w_t W_U[t])

    (without the mean for RMSNorm). `w` is 1 for the correct answer and -1 for the incorrect one; among several answers
    of a set `logit_diff` takes the one that the model prefers in this run, `mean_logit_diff` the mean over their
    tokens. `scale` is Cohere's or Granite's factor on the logits. Biases of norm and head are sources of their own. A
    head writes `z_h W_O`; the bias of `W_O` is a source. Where a norm follows the attention (Gemma 2 and 3, OLMo 2) its
    scale is frozen, too, so heads add up in these models as well. With `by_source` a head's share is split by the
    position that it came from, `A_ij v_j W_O`, i the last position.

    The shares add up to the logit difference, before a soft cap where there is one (Gemma 2: a cap is not linear; the
    `totals` hold both). This is checked in every pair. In float64 the sum is exact to 1e-9, or to about 1e-7 of its
    terms where the architecture computes its norms in float32 all the same; in bfloat16 the residual stream itself is
    rounded with every addition, and `totals.error` says by how much.

    It is the *direct* effect only. What a part does by way of later parts is missing, and so is its effect on the
    norm's scale.

    Args:
        model: the model.
        pairs: the pairs; or pairs in tokens, for a model without a tokenizer.
        run: the clean or the corrupted prompt (as tokens; noise is not applied).
        metric: "logit_diff" or "mean_logit_diff".
        by_source: split heads by source position (needs the sites `pattern` and `v`).
        cluster: what makes pairs dependent, for the intervals: "group", "pair" or the name of a label.
        progress: called with (what, done, total).

    Returns:
        The contributions, their sums, and notes.

    Raises:
        PairsError: pairs at fault, one sentence each.
        UnknownNameError: no such metric, run or cluster.
        SiteError: the model's parts do not add up in a way that is known here; says which and why.
        CheckError: the contributions do not add up to the logit difference, so they could not be trusted.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (direct paths to the logits); the
        frozen scale as in `apply_ln_to_stack` of TransformerLens.
    Deviation: nothing is folded or centred in the weights; biases are listed as sources; the bias of an MLP is part of
        the MLP.
    """
    choose("metric for attribution", metric, get_args(MetricName))
    questions = questions_of(model, pairs, [metric], run, cluster)
    final_norm_port(model)
    for site in ("attn_out", "mlp_out", *(("pattern", "v", "z") if by_source else ())):
        model.site(site, 0)
    job = _Job(model, metric, by_source, head_form(model), {})
    frames: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    done = 0
    for members in of_equal_length(questions, _token_bytes(job)):
        frames.append(_attribute(job, [questions[index] for index in members]))
        done += len(members)
        if progress:
            progress("attribution", done, len(questions))
    order = {question.id: place for place, question in enumerate(questions)}
    table, totals = (pd.concat(tables, ignore_index=True) for tables in zip(*frames, strict=True))
    totals = totals.sort_values("pair", key=lambda ids: ids.map(order), ignore_index=True)
    table = table.sort_values("pair", key=lambda ids: ids.map(order), kind="stable", ignore_index=True)
    return Attribution(table, totals, _notes(job))


def _attribute(job: _Job, questions: Sequence[Question]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Contributions and totals of prompts of equal length."""
    model = job.model
    tokens = torch.tensor([question.prompt.ids for question in questions])
    values = _Values()
    logits = wide(forward_last(model, tokens, _taps(job, values)))
    given, head_in, head_out = (values[name, None] for name in ("norm in", "norm out", "head out"))
    norm = frozen_norm(final_norm_port(model).module, given, head_in)
    if norm is None:
        raise SiteError(
            f"The final norm of {model.name} ({model.anatomy.final_norm}) does not act as gain * (x - mean) / scale + "
            "bias with one scale for each position, so what goes into it cannot be split into contributions."
        )
    scored = sorted({token for question in questions for token in _tokens(question)})
    if not explains(job.form, wide(head_out), logits, _ULPS * _eps(model)):
        raise CheckError(
            f"The logits of {model.name} do not come about from what its head returns as they did in a trial "
            f"({job.form}), so contributions to them could not be trusted."
        )
    weights = job.form.scale * _weights(job.metric, questions, wide(head_out), scored)  # [pairs, scored]
    rows, bias = head_rows(model, head_in, scored)
    behind = weights @ rows  # [pairs, d_model]
    before = norm.back(behind)
    parts = Contributions(job.by_source)
    parts.add("embed", None, _dot(values["embed", None], before))
    for layer in range(model.anatomy.n_layers):
        _attention(job, values, layer, before, parts)
        parts.add("mlp", layer, _dot(values["mlp_out", layer], before))
    parts.add("norm_bias", None, behind @ norm.bias, needed=bool(norm.bias.any()))
    parts.add("unembed_bias", None, weights @ bias, needed=bool(bias.any()))
    totals = _totals(job, questions, logits, (weights * wide(head_out)[:, scored]).sum(dim=1), parts)
    _check(job, totals, parts, values, before)
    return parts.frame(questions), totals


def _taps(job: _Job, values: _Values) -> list[Tap]:
    model, norm = job.model, final_norm_port(job.model)
    head = Port(model.anatomy.head, model.hf.get_submodule(model.anatomy.head), "output")
    wanted: list[Tap] = [
        (model.site("resid_pre", 0), values.keep("embed", None)),
        (Port(norm.path, norm.module, "input"), values.keep("norm in", None)),
        (Port(norm.path, norm.module, "output"), values.keep("norm out", None)),
        (head, values.keep("head out", None)),
    ]
    for layer in range(model.anatomy.n_layers):
        wanted += [(model.site(site, layer), values.keep(site, layer)) for site in ("attn_out", "mlp_out")]
        if "z" not in model.sites:
            continue
        z = model.site("z", layer)
        assert isinstance(z, Port)
        wanted += [(z, values.keep("z", layer)), (Port(z.path, z.module, "output"), values.keep("projected", layer))]
        if job.by_source:
            wanted.append((model.site("v", layer), values.keep("v", layer, last=False)))
            wanted.append((model.site("pattern", layer), values.keep_weights(layer)))
    return wanted


def _attention(job: _Job, values: _Values, layer: int, before: Tensor, parts: Contributions) -> None:
    """The attention of a layer, head by head where its heads can be told apart."""
    model, written = job.model, values["attn_out", layer]
    norm: FrozenNorm | None = None
    apart = job.split.get(layer, True) and "z" in model.sites
    if apart and not close(values["projected", layer], written):
        norm = _post_norm(model, layer, values["projected", layer], written)
        apart = norm is not None
    if job.split.setdefault(layer, apart) and not apart:
        raise CheckError(f"In layer {layer} of {model.name} heads add up in some prompts and not in others.")
    if not apart:
        if job.by_source:
            raise SiteError(f"The heads of layer {layer} of {model.name} cannot be told apart in what attention adds.")
        parts.add("attn", layer, _dot(written, before))
        return
    z = model.site("z", layer)
    assert isinstance(z, Port)
    assert z.head_columns is not None
    direction = before if norm is None else norm.back(before)
    read = (direction @ matrix_of(z.module, values["z", layer]))[:, z.head_columns]  # [pairs, n_heads, d_head]
    heads = (wide(values["z", layer])[:, z.head_columns] * read).sum(dim=-1)  # [pairs, n_heads]
    if job.by_source:
        parts.add_sources(layer, _by_source(job, values, layer, read, heads))
    else:
        parts.add_heads(layer, heads)
    constant = constant_of(z.module, values["z", layer])
    bias = direction @ constant + (0 if norm is None else before @ norm.bias)
    parts.add("attn_bias", layer, bias, needed=bool(constant.any()) or (norm is not None and bool(norm.bias.any())))


def _post_norm(model: Model, layer: int, projected: Tensor, written: Tensor) -> FrozenNorm | None:
    """The norm between the output projection and the residual stream, frozen; None where there is something else."""
    access = model.site("attn_out", layer)
    assert isinstance(access, Port)
    return None if access.side != "output" else frozen_norm(access.module, projected, written)


def _by_source(job: _Job, values: _Values, layer: int, read: Tensor, heads: Tensor) -> Tensor:
    """`A_ij v_j W_O` of every head along the direction: [pairs, n_heads, seq]."""
    access = job.model.site("v", layer)
    assert isinstance(access, Port)
    assert access.head_columns is not None
    weights = wide(values["pattern", layer])  # [pairs, n_heads, seq]
    moved = wide(values["v", layer])[..., access.head_columns]  # [pairs, seq, n_kv_heads, d_head]
    grouped = read.unflatten(1, (access.head_columns.shape[0], -1))  # [pairs, n_kv_heads, heads in a group, d_head]
    shares = weights * torch.einsum("ptgd,pgrd->pgrt", moved, grouped).flatten(1, 2)
    allowed = 8 * _ULPS * _eps(job.model) * shares.abs().sum(dim=-1).amax()
    if not bool(((shares.sum(dim=-1) - heads).abs() <= allowed + 1e-12).all()):
        raise SiteError(
            f"In layer {layer} of {job.model.name} the weighted values of the source positions do not add up to what a "
            "head moves, so heads cannot be split by source; leave by_source out."
        )
    return shares


def _tokens(question: Question) -> set[int]:
    return {token for answer in (*question.target.correct, *question.target.incorrect) for token in answer}


def _weights(metric: MetricName, questions: Sequence[Question], logits: Tensor, scored: Sequence[int]) -> Tensor:
    """With what weight every scored token enters the metric of every pair in this run, float64 [pairs, scored].

    Which answer of a set is the preferred one is told before a soft cap, behind which two may be equal.
    """
    place = {token: number for number, token in enumerate(scored)}
    weights = torch.zeros(len(questions), len(scored), dtype=torch.float64)
    for row, question in enumerate(questions):
        for answers, sign in ((question.target.correct, 1.0), (question.target.incorrect, -1.0)):
            tokens = list(dict.fromkeys(token for answer in answers for token in answer))
            if metric == "logit_diff":
                tokens = [max(tokens, key=lambda token: float(logits[row, token]))]
            for token in tokens:
                weights[row, place[token]] += sign / len(tokens)
    return weights


def _totals(
    job: _Job, questions: Sequence[Question], logits: Tensor, before_cap: Tensor, parts: Contributions
) -> pd.DataFrame:
    own = get_metric(job.metric).score(logits[:, None], [question.target for question in questions])
    whole = parts.stacked().sum(dim=1)
    return pd.DataFrame({
        "pair": [question.id for question in questions], "cluster": [question.cluster for question in questions],
        job.metric: own.numpy(), "before_cap": before_cap.numpy(), "sum": whole.numpy(),
        "error": (whole - before_cap).numpy(),
    })  # fmt: skip


def _check(job: _Job, totals: pd.DataFrame, parts: Contributions, values: _Values, before: Tensor) -> None:
    """Raise where contributions do not add up, to the precision in which the model computes.

    Every addition to the residual stream rounds each of its entries; along a direction these errors add up like
    independent ones.
    """
    writes = [value for (name, _), value in values.at.items() if name in ("embed", "attn_out", "mlp_out", "norm in")]
    rounding = sum((wide(value) * before).pow(2).sum(dim=1) for value in writes)
    size = parts.stacked().abs().sum(dim=1) + job.form.scale * wide(values["head out", None]).abs().amax(dim=1)
    allowed = (_ULPS * _eps(job.model) * (size + torch.as_tensor(rounding).sqrt())).numpy()
    error = totals["error"].to_numpy(dtype=float)
    wrong = ~(np.abs(error) <= allowed)
    if wrong.any():
        first = int(np.argmax(wrong))
        pair, whole, own = (totals[name].iloc[first] for name in ("pair", "sum", "before_cap"))
        raise CheckError(
            f"The contributions of the parts of {job.model.name} do not add up to the logit difference in "
            f"{wrong.sum()} of {len(totals)} pairs; for example pair {pair!r}: {whole:.6g} instead of {own:.6g}. "
            "Something writes into its residual stream that is no attention and no MLP, so its parts cannot be "
            "attributed."
        )


def _eps(model: Model) -> float:
    # norms, softmax and others are computed in float32 whatever the type of the model
    return max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)


def _dot(written: Tensor, direction: Tensor) -> Tensor:
    return (wide(written) * direction).sum(dim=-1)


def _token_bytes(job: _Job) -> float:
    """Bytes that are kept for one token during a forward: next to nothing, unless sources are asked for."""
    anatomy = job.model.anatomy
    return anatomy.n_layers * anatomy.n_kv_heads * anatomy.d_head * job.model.dtype.itemsize if job.by_source else 0.0


def _notes(job: _Job) -> tuple[str, ...]:
    notes: list[str] = []
    whole = [layer for layer, apart in job.split.items() if not apart]
    if whole:
        reason: Mapping[str, str] = job.model.anatomy.refusals
        why = reason.get("z", "What attention adds is no linear function of what its heads put out.")
        notes.append(f"Attention is given as a whole in layers {', '.join(map(str, whole))}: {why}")
    if job.form.cap is not None:
        notes.append(
            f"The logits are soft-capped at {job.form.cap:g}, which is not linear: contributions add up to the "
            "difference before the cap (before_cap)."
        )
    return tuple(notes)
