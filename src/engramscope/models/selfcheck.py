"""Self-checks at load: does reading and writing at the sites of this model do what it should?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engramscope.errors import CheckError
from engramscope.models.hooks import Tap, taps
from engramscope.models.probe import random_tokens
from engramscope.models.site import GLOBAL_SITES, AttentionPattern, Port, SiteAccess
from engramscope.models.writes import additivity_error

if TYPE_CHECKING:
    from engramscope.models.model import Model

#: rounding that may add up over the depth of a model, relative to the largest logit
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
#: sites behind which weights may be zero (a head or neuron that is switched off), so that nothing reaches the logits
_MAY_BE_DEAD = frozenset({"q", "k", "v", "z", "pattern", "mlp_act"})
_SEQ = 4


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The outcome of one check.

    Attributes:
        name: what was checked.
        value: the figure that was found.
        tolerance: what it was held to.
        passed: whether it was within.
        detail: a sentence, where there is more to say.
        sites: the sites that cannot be trusted if it failed; empty where nothing could be.
    """

    name: str
    value: float
    tolerance: float
    passed: bool
    detail: str = ""
    sites: tuple[str, ...] = ()


def self_checks(model: Model) -> list[SelfCheck]:
    """Run every check on a few random tokens: about ten forwards of at most a few hundred tokens.

    Returns:
        One entry per check: causality, batch against single, and for each offered site shape, write-back identity and
        whether it reaches the logits; the sum of the writes; attention rows; q, k and v together against z.
    """
    tokens = random_tokens(model.hf, 2, _SEQ, seed=11)
    base = model.logits(tokens)
    checks = [_causal(model, tokens, base), _batch(model, tokens, base)]
    checks += _write_back(model, tokens, base)
    checks += _reaches(model, tokens[:1])
    if "attn_out" in model.sites:
        checks.append(_additive(model, tokens))
    if "pattern" in model.sites:
        checks.append(_rows(model, tokens))
    if {"q", "k", "v", "z"} <= set(model.sites):
        checks.append(_heads_agree(model, tokens, base))
    return checks


def ensure_sound(name: str, checks: Sequence[SelfCheck]) -> None:
    """Raise if a check failed that casts doubt on every site.

    Raises:
        CheckError: names each failed check with its figures.
    """
    failed = [check for check in checks if not check.passed and not check.sites]
    if failed:
        shown = "; ".join(
            f"{check.name}: {check.value:.3g}, at most {check.tolerance:.3g} expected ({check.detail})"
            for check in failed
        )
        raise CheckError(f"{name} fails a self-check, so results on it could not be trusted: {shown}.")


def unsound_sites(checks: Sequence[SelfCheck]) -> dict[str, str]:
    """Sites that failed a check of their own, with a sentence that says which."""
    return {
        site: f"It fails the self-check '{check.name}' here ({check.value:.3g}, {check.tolerance:.3g} allowed)."
        for check in checks
        if not check.passed
        for site in check.sites
    }


def layers_of(model: Model, site: str) -> tuple[int | None, ...]:
    """All layers of a site, or (None,) for one that exists once."""
    return (None,) if site in GLOBAL_SITES else tuple(range(model.anatomy.n_layers))


def _tolerance(value: Tensor) -> float:
    return _TOLERANCE.get(value.dtype, 1e-4)


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value; infinite where something is not a number."""
    value = float((a - b).abs().amax() / b.abs().amax().clamp(min=torch.finfo(b.dtype).tiny))
    return value if value == value else float("inf")


def _causal(model: Model, tokens: Tensor, base: Tensor) -> SelfCheck:
    other = tokens.clone()
    other[:, -1] = tokens.flip(0)[:, 0]
    value = _difference(model.logits(other)[:, :-1], base[:, :-1])
    return _check("causal", value, _tolerance(base), "a later token must not change earlier logits")


def _batch(model: Model, tokens: Tensor, base: Tensor) -> SelfCheck:
    single = torch.cat([model.logits(row[None]) for row in tokens])
    return _check("batch = single", _difference(single, base), _tolerance(base), "a row alone gives the same logits")


def _write_back(model: Model, tokens: Tensor, base: Tensor) -> list[SelfCheck]:
    """Writing back what was read changes nothing, and what was read has the declared shape."""
    shapes: dict[str, set[tuple[int, ...]]] = {site: set() for site in model.sites}

    def same(site: str, access: SiteAccess) -> Tap:
        def write(value: Tensor) -> Tensor:
            shapes[site].add(_site_shape(access, value))
            return value.clone()

        return write

    def written(sites: Sequence[str]) -> float:
        wanted = [
            (access, same(site, access))
            for site in sites for layer in layers_of(model, site) for access in [model.site(site, layer)]
        ]  # fmt: skip
        with taps(model, wanted):
            return _difference(model.logits(tokens), base)

    exact = written(model.sites) == 0
    checks = []
    for site in model.sites:
        value = 0.0 if exact else written([site])
        checks.append(_check(f"write-back {site}", value, _tolerance(base), "the same value changes nothing", site))
    for site in model.sites:
        declared = _declared(model, site, tokens)
        wrong = sum(shape != declared for shape in shapes[site]) + (not shapes[site])
        checks.append(_check(f"shape {site}", float(wrong), 0.0, f"{declared}", site))
    return checks


def _site_shape(access: SiteAccess, value: Tensor) -> tuple[int, ...]:
    if isinstance(access, Port) and access.head_columns is not None:
        columns = access.head_columns.to(value.device)
        return tuple(value[..., columns].shape)
    return tuple(value.shape)


def _declared(model: Model, site: str, tokens: Tensor) -> tuple[int, ...]:
    words: dict[str | int, int] = {"batch": tokens.shape[0], "seq": tokens.shape[1]}
    return tuple(words.get(size, size if isinstance(size, int) else -1) for size in model.shape(site))


def _reaches(model: Model, token_row: Tensor) -> list[SelfCheck]:
    """Change each site in the first, middle and last layer, each in a row of its own of one forward."""
    cases = [
        (site, layer)
        for site in model.sites
        for layer in sorted({layers_of(model, site)[i] for i in (0, len(layers_of(model, site)) // 2, -1)}, key=str)
    ]
    generator = torch.Generator().manual_seed(12)
    wanted: list[tuple[SiteAccess, Tap]] = []
    for row, (site, layer) in enumerate(cases, start=2):
        wanted.append((model.site(site, layer), _disturb(model.site(site, layer), row, generator)))
    with taps(model, wanted):
        logits = model.logits(token_row.expand(len(cases) + 2, -1)).double()
    moved = (logits - logits[:1]).abs().amax(dim=(1, 2)) / logits[0].abs().amax()
    # row 1 is not disturbed: what it differs by is rounding
    noise = 4 * float(moved[1])
    checks = []
    for site in model.sites:
        value = max(float(moved[row]) for row, case in enumerate(cases, start=2) if case[0] == site)
        detail = "a changed value must change the logits (more than the tolerance)"
        passed = value > noise
        if not passed and site in _MAY_BE_DEAD:
            passed, detail = True, "nothing written here reaches the logits: the weights after it are zero"
        checks.append(SelfCheck(f"reaches logits {site}", value, noise, passed, detail, (site,)))
    return checks


def _disturb(access: SiteAccess, row: int, generator: torch.Generator) -> Tap:
    def change(value: Tensor) -> Tensor:
        new = value.clone()
        if isinstance(access, AttentionPattern):
            new[row, :, -1] = new[row, :, -1].flip(-1)
            new[row, :, -1, 0] += 0.5
            return new
        columns = slice(None)
        if isinstance(access, Port) and access.head_columns is not None:
            columns = access.head_columns.flatten().to(value.device)
        part = new[row][:, columns]
        noise = torch.randn(part.shape, generator=generator) * float(part.float().std().clamp(min=1e-2))
        new[row, :, columns] = part + noise.to(part)
        return new

    return change


def _additive(model: Model, tokens: Tensor) -> SelfCheck:
    layers = range(model.anatomy.n_layers)
    values = _read(model, tokens, [(s, i) for i in layers for s in ("resid_pre", "attn_out", "mlp_out", "resid_post")])
    worst, allowed = 0.0, 0.0
    for layer in layers:
        pre, attn, mlp, post = (values[s, layer] for s in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        error, bound = additivity_error(pre, attn, mlp, post)
        size = post.double().abs().amax()
        if not float(error.amax() / size) <= worst:
            worst, allowed = float(error.amax() / size), float(bound.amax() / size)
    return SelfCheck(
        "residual adds up", worst, allowed, worst <= allowed,
        "resid_pre + attn_out + mlp_out = resid_post in every layer, relative to the residual's size",
        ("attn_out", "mlp_out", "resid_mid"),
    )  # fmt: skip


def _rows(model: Model, tokens: Tensor) -> SelfCheck:
    values = _read(model, tokens, [("pattern", layer) for layer in range(model.anatomy.n_layers)])
    stacked = torch.stack([value.double() for value in values.values()])
    sums, least = stacked.sum(dim=-1), float(stacked.amin())
    future = float(stacked.triu(1).abs().amax())
    # softmax is computed in float32 whatever the type of the model
    tolerance = 16 * max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)
    over, under = float((sums - 1).amax()), float((1 - sums).amax())
    detail = "attention weights are not negative, causal, and sum to 1"
    has_sink = under > tolerance
    if has_sink:
        detail = f"attention rows sum to 1 or less: a sink takes up to {under:.2g} of a row"
    sinks = any("sink" in name for name, _ in model.hf.named_parameters())
    value = max(over, future, -least, 0.0 if has_sink and sinks else under)
    return _check("attention rows", value, tolerance, detail, "pattern")


def _heads_agree(model: Model, tokens: Tensor, base: Tensor) -> SelfCheck:
    """q, k and v of another prompt together give what z of the other prompt gives (one layer)."""
    layer = model.anatomy.n_layers // 2
    other = tokens.flip(0)
    values = _read(model, other, [(site, layer) for site in ("q", "k", "v", "z")])

    def patched(*sites: str) -> Tensor:
        wanted = [(model.site(site, layer), _put(model.site(site, layer), values[site, layer])) for site in sites]
        with taps(model, wanted):
            return model.logits(tokens)

    by_z = patched("z")
    value = float((patched("q", "k", "v") - by_z).abs().amax() / base.abs().amax())
    return _check("q + k + v = z", value, _tolerance(base), f"patched together in layer {layer}", "q", "k", "v")


def _put(access: SiteAccess, source: Tensor) -> Tap:
    def put(value: Tensor) -> Tensor:
        new = value.clone()
        columns = access.head_columns.flatten().to(value.device) if isinstance(access, Port) and (
            access.head_columns is not None) else slice(None)  # fmt: skip
        new[..., columns] = source[..., columns]
        return new

    return put


def _read(model: Model, tokens: Tensor, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Tensor]:
    values: dict[tuple[str, int], Tensor] = {}

    def keep(place: tuple[str, int]) -> Callable[[Tensor], None]:
        return lambda value: values.update({place: value})

    with taps(model, [(model.site(*place), keep(place)) for place in places]):
        model.logits(tokens)
    return values


def _check(name: str, value: float, tolerance: float, detail: str, *sites: str) -> SelfCheck:
    return SelfCheck(name, value, tolerance, value <= tolerance, detail, sites)
