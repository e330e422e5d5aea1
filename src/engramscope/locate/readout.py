"""The end of a model taken apart: norms with their scale frozen at a run, matrices, the head, its scale and its cap.

Nothing is assumed about a family. A norm is recognised by what it does to three vectors, a matrix by what it does to
the unit vectors (or by its weight, where its class is known), and the head's scale and cap by comparing what it returns
with the model's logits. What cannot be recognised is refused with a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engramscope.errors import SiteError
from engramscope.locate.questions import forward_last
from engramscope.models.model import Model
from engramscope.models.offload import held
from engramscope.models.probe import eps_of, random_tokens
from engramscope.models.site import Port

#: roundings that a norm may differ by from `gain * (x - mean) / scale + bias`, in units of its precision
_ULPS = 16.0
#: unit vectors that go through an unknown matrix at a time
_ROWS = 256


@dataclass(frozen=True)
class FrozenNorm:
    """A norm as the linear map that it is in one run, its scale held fixed: `N(x) = factors * (x - mean) + bias`.

    Attributes:
        factors: gain / scale of every row, float64 [rows, d_model]. Without mean subtraction `(N(x) - bias) / x`, which
            is the same up to the norm's own rounding, so that this rounding is part of what is frozen.
        centred: whether the mean is subtracted (LayerNorm) or not (RMSNorm).
        bias: what is added, float64 [d_model].
    """

    factors: Tensor
    centred: bool
    bias: Tensor

    def back(self, direction: Tensor) -> Tensor:
        """The direction before the norm for one behind it: `u . back(w) = (N(u) - bias) . w`, float64 [rows, d_model].

        Args:
            direction: float64 [rows, d_model].
        """
        scaled = self.factors * direction
        return scaled - scaled.mean(dim=-1, keepdim=True) if self.centred else scaled


@dataclass(frozen=True)
class _NormShape:
    gain: Tensor  # float64 [d_model], up to a factor
    centred: bool
    bias: Tensor  # float64 [d_model]


@dataclass(frozen=True)
class HeadForm:
    """How a model's logits come about from its head: `cap * tanh(scale * head / cap)`, or `scale * head` without a cap.

    Attributes:
        scale: a positive factor (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`), 1 for most.
        cap: the soft cap (Gemma 2); None for most.
    """

    scale: float
    cap: float | None


def wide(value: Tensor) -> Tensor:
    """The value in float64 on the CPU, where all sums are made."""
    return value.detach().to("cpu").double()


def frozen_norm(module: nn.Module, given: Tensor, returned: Tensor) -> FrozenNorm | None:
    """A norm with its scale frozen at these values.

    Args:
        module: the norm.
        given: what it was given [rows, d_model].
        returned: what it returned for that [rows, d_model].

    Returns:
        The linear map; None where the module does not act as `gain * (x - mean) / scale + bias`, or as the same without
        the mean, with one scale per row.
    """
    shape = _norm_shape(module, given)
    if shape is None:
        return None
    x, moved = wide(given), wide(returned) - shape.bias
    expected = shape.gain * (x - x.mean(dim=-1, keepdim=True) if shape.centred else x)
    inverse = (moved * expected).sum(dim=-1, keepdim=True) / expected.pow(2).sum(dim=-1, keepdim=True)
    # many norms compute in float32 whatever the type of the model
    tolerance = _ULPS * max(eps_of(returned), torch.finfo(torch.float32).eps)
    size = wide(returned).abs().amax(dim=-1, keepdim=True)
    if not bool(((moved - inverse * expected).abs() <= tolerance * size).all()):
        return None
    factors = shape.gain * inverse
    if not shape.centred and not bool(shape.bias.any()):
        factors = torch.where(x == 0, factors, moved / x)
    return FrozenNorm(factors, shape.centred, shape.bias)


def matrix_of(module: nn.Module, like: Tensor) -> Tensor:
    """The matrix that a module applies, float64 on the CPU [out, in].

    Of `nn.Linear` and `Conv1D` the weight; of anything else (quantised, adapted) what it makes of the unit vectors.

    Args:
        module: the module.
        like: something that it was given [..., in]: its width, type and device.
    """
    with held(module):
        weight = getattr(module, "weight", None)
        if type(module) is nn.Linear and isinstance(weight, Tensor):
            return wide(weight)
        if type(module) is Conv1D and isinstance(weight, Tensor):
            return wide(weight).T
        return torch.cat(list(_columns(module, like))).T


def constant_of(module: nn.Module, like: Tensor) -> Tensor:
    """What a module adds whatever it is given: its value at zero, float64 on the CPU [out]."""
    with held(module), torch.no_grad():
        return wide(module(like.new_zeros(1, like.shape[-1]))[0])


def head_rows(model: Model, like: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows of the unembedding matrix and of the head's bias, as the head applies them, before scale and cap.

    Args:
        model: the model.
        like: something that the head was given [..., width].
        tokens: token ids.

    Returns:
        (rows [len(tokens), width], bias [len(tokens)]), float64 on the CPU.
    """
    head = model.hf.get_submodule(model.anatomy.head)
    index = torch.tensor(list(tokens))
    bias = constant_of(head, like)[index]
    with held(head):
        if type(head) is nn.Linear:
            return wide(head.weight[index.to(head.weight.device)]), bias
        return torch.cat([columns[:, index] for columns in _columns(head, like)]).T, bias


def head_form(model: Model) -> HeadForm:
    """How the model makes its logits from what its head returns; found out by a short forward, and remembered.

    Raises:
        SiteError: the logits are neither a multiple of what the head returns, nor its multiple under a soft cap.
    """
    return model.remember("head form", lambda: _head_form(model))


def explains(form: HeadForm, given: Tensor, returned: Tensor, tolerance: float) -> bool:
    """Whether logits come about from what the head returned in this form.

    Args:
        form: scale and cap.
        given: what the head returned, float64.
        returned: the model's logits, float64.
        tolerance: relative to the largest logit.
    """
    expected = form.scale * given
    if form.cap is not None:
        expected = form.cap * torch.tanh(expected / form.cap)
    return bool(((expected - returned).abs() <= tolerance * returned.abs().amax()).all())


def final_norm_port(model: Model) -> Port:
    """The final norm.

    Raises:
        SiteError: the model has none whose output is the head's input, or it is not as wide as the residual stream.
    """
    access = model.site("final_norm")
    assert isinstance(access, Port)
    return access


def _columns(module: nn.Module, like: Tensor) -> list[Tensor]:
    """What a matrix makes of the unit vectors, float64 [some of in, out] at a time."""
    width, found = like.shape[-1], []
    constant = constant_of(module, like)
    for first in range(0, width, _ROWS):
        rows = like.new_zeros(min(_ROWS, width - first), width)
        rows[torch.arange(len(rows)), first + torch.arange(len(rows))] = 1
        with torch.no_grad():
            found.append(wide(module(rows)) - constant)
    return found


def _norm_shape(module: nn.Module, like: Tensor) -> _NormShape | None:
    """Gain, bias, and whether the mean is subtracted: from what a norm makes of 0, of 1 and of 1, -1, 1, -1, …"""
    width = like.shape[-1]
    ones, alternating = like.new_ones(width), like.new_ones(width)
    alternating[1::2] = -1
    with held(module), torch.no_grad():
        returned = wide(module(torch.stack([torch.zeros_like(ones), ones, alternating])[None])[0])
        weight = getattr(module, "weight", None)
        own = wide(weight) if isinstance(weight, Tensor) and weight.shape == (width,) else None
    if width < 2 or not bool(returned.isfinite().all()):
        return None
    bias, flat, spread = returned[0], returned[1] - returned[0], returned[2] - returned[0]
    centred = bool(flat.abs().amax() <= 1e-3 * spread.abs().amax())
    probe = wide(alternating)
    gain = spread / (probe - probe.mean() if centred else probe)
    tolerance = _ULPS * max(eps_of(like), torch.finfo(torch.float32).eps) * returned.abs().amax()
    for exact in () if own is None else (own, 1 + own):
        factor = (gain @ exact) / (exact @ exact)
        if bool(((gain - factor * exact).abs() <= tolerance).all()):
            # what the probe says up to its rounding
            return _NormShape(exact, centred, bias)
    return _NormShape(gain, centred, bias)


def _head_form(model: Model) -> HeadForm:
    seen: list[Tensor] = []
    path = model.anatomy.head
    port = Port(path, model.hf.get_submodule(path), "output")
    tokens = random_tokens(model.hf, 8, 4, seed=23)
    logits = forward_last(model, tokens, [(port, lambda value: seen.append(value[:, -1].clone()))])
    given, returned = wide(seen[0]), wide(logits)
    config = model.hf.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scales = [1.0, getattr(config, "logit_scale", None), _inverse(getattr(config, "logits_scaling", None))]
    for scale in dict.fromkeys(scale for scale in scales if isinstance(scale, int | float) and scale > 0):
        # the cap first: it cannot be seen where the logits of these tokens are small
        for form in ([] if cap is None else [HeadForm(float(scale), float(cap))]) + [HeadForm(float(scale), None)]:
            if given.shape == returned.shape and explains(form, given, returned, 8 * eps_of(logits)):
                return form
    raise SiteError(
        f"The logits of {model.name} are no multiple of what its head ({path}) returns, nor such a multiple under a "
        "soft cap, so they cannot be attributed to what the parts of the model write."
    )


def _inverse(value: object) -> float | None:
    return 1 / value if isinstance(value, int | float) and value else None
