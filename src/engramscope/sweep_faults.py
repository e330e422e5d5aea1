"""What is wrong with a declared sweep: told from the study alone, from the model's sizes, or from the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engramscope.corruptions._base import Corruption
from engramscope.locate.paths import SENDERS, receiver_faults
from engramscope.models.site import (
    GLOBAL_PARTS,
    HEAD_SITES,
    KV_SITES,
    LAYER_PARTS,
    SITES,
    WEIGHTS,
    exists_once,
    is_module_path,
    is_weights,
)
from engramscope.pairs import TokenizedPair
from engramscope.registry import nearest
from engramscope.study_file import SweepSection

#: states that can be restored while modules are severed from them
_STATES = ("resid_pre", "resid_mid", "resid_post")


class Sizes(Protocol):
    """What the size of a sweep is judged by: an `Anatomy`, or what a configuration says before weights are loaded."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        ...

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        ...


def site_faults(sweep: SweepSection) -> list[str]:
    """A site that does not exist, or that has no heads, layers or windows as they are asked for."""
    if fault := _unknown_site(sweep.site):
        return [f"Sweep {sweep.name!r}: {fault}"]
    faults = []
    named = not is_module_path(sweep.site) and not is_weights(sweep.site)
    if named and sweep.site not in HEAD_SITES and sweep.heads != "all":
        faults.append(
            f"Sweep {sweep.name!r}: site {sweep.site!r} has no heads, so heads must be left out "
            f"(sites with heads: {', '.join(site for site in SITES if site in HEAD_SITES)})."
        )
    if is_module_path(sweep.site) and sweep.heads != "all":
        faults.append(f"Sweep {sweep.name!r}: the output of a module is not split into heads; leave heads out.")
    if is_weights(sweep.site) and (sweep.positions != "all" or sweep.heads != "all"):
        faults.append(
            f"Sweep {sweep.name!r}: weights serve every position and head of a run; leave positions and heads out."
        )
    if exists_once(sweep.site) and (sweep.layers != "each" or sweep.window > 1):
        hint = "" if named else "; write {layer} where its number stands"
        faults.append(
            f"Sweep {sweep.name!r}: site {sweep.site!r} exists once, so layers and window must be left out{hint}."
        )
    for key in ("layers", "heads", "positions"):
        value = getattr(sweep, key)
        if not isinstance(value, str) and (doubled := sorted({item for item in value if value.count(item) > 1})):
            faults.append(f"Sweep {sweep.name!r}: {key} names {_listed(doubled)} more than once.")
    return faults


def tracing_faults(sweep: SweepSection, corruption: Corruption) -> list[str]:
    """Severed modules and path patching that the sweep or its corruption does not allow."""
    where, faults = f"Sweep {sweep.name!r}:", []
    if is_weights(sweep.site) and corruption.level != "weights":
        faults.append(
            f'{where} a transplant needs the weights of a second model: corruption method = "base_model" names it.'
        )
    if corruption.level == "weights" and (sweep.severed is not None or sweep.receivers):
        faults.append(f"{where} between two models values are patched as they are; leave severed and receivers out.")
    if sweep.severed is not None and sweep.site not in _STATES:
        faults.append(f"{where} severed goes with a state that is restored ({', '.join(_STATES)}), not {sweep.site!r}.")
    if sweep.as_published and (
        sweep.severed is None or corruption.level != "embedding" or sweep.direction != "denoise"
    ):
        faults.append(
            f"{where} as_published takes severed values from another draw of the noise: it goes with severed, "
            'direction = "denoise" and a corruption that adds noise.'
        )
    elif sweep.as_published and getattr(corruption.options, "draws", 2) < 2:
        faults.append(f"{where} as_published takes severed values from another draw, so draws must be at least 2.")
    if sweep.severed is not None and corruption.level == "activation":
        faults.append(
            f"{where} severed holds modules at what they are in the corrupted run; this corruption makes none."
        )
    if not sweep.receivers:
        given = sorted({"receiver_positions", "mlps"} & sweep.model_fields_set)
        return faults + [f"{where} {name} says nothing without receivers." for name in given]
    faults += [f"{where} {fault}" for fault in receiver_faults(sweep.receivers)]
    if sweep.site not in SENDERS:
        faults.append(f"{where} with receivers the site is the sender: {', '.join(SENDERS)}, not {sweep.site!r}.")
    if sweep.window > 1:
        faults.append(f"{where} paths have one sender at a time; leave window out.")
    if sweep.severed is not None:
        faults.append(f"{where} receivers and severed are two ways of cutting paths; use one of them.")
    if corruption.level == "activation":
        faults.append(f"{where} paths need a corrupted run for the sender's values; this corruption makes none.")
    return faults


def _unknown_site(site: str) -> str:
    """Why there is no such site in any model; empty where there may be."""
    parts = (*LAYER_PARTS, *GLOBAL_PARTS)
    part = site.removeprefix(WEIGHTS)
    if is_weights(site) and "." not in part and part not in parts and not _could_be_module(part):
        return f"{site}: there is no part {part!r}{nearest(part, parts)} Or give the path of a module."
    if is_weights(site) or not is_module_path(site) or "." in site or _could_be_module(site):
        return ""
    return f"unknown site {site!r}{nearest(site, (*SITES, *(WEIGHTS + part for part in parts)))}"


def _could_be_module(site: str) -> bool:
    # the only modules of a causal language model that stand at its top level
    return site in {"lm_head", "embed_out", "model", "transformer"}


def size_faults_of(sweep: SweepSection, sizes: Sizes) -> list[str]:
    """Layers, heads and receivers that a model of this size does not have."""
    faults = []
    if sweep.layers != "each" and (bad := [layer for layer in sweep.layers if layer >= sizes.n_layers]):
        faults.append(
            f"Sweep {sweep.name!r}: layer {_listed(bad)} does not exist; the model has {sizes.n_layers} layers, "
            f"0 to {sizes.n_layers - 1}."
        )
    # before the weights are there, nobody knows how many key/value heads there are
    grouped = getattr(sizes, "n_kv_heads", sizes.n_heads)
    count = grouped if sweep.site in KV_SITES else sizes.n_heads
    if not isinstance(sweep.heads, str) and (bad := [head for head in sweep.heads if head >= count]):
        kind = "key/value heads" if sweep.site in KV_SITES else "heads"
        faults.append(
            f"Sweep {sweep.name!r}: head {_listed(bad)} does not exist; site {sweep.site!r} has {count} {kind}, "
            f"0 to {count - 1}."
        )
    if sweep.window > sizes.n_layers:
        faults.append(f"Sweep {sweep.name!r}: window {sweep.window} is wider than the model's {sizes.n_layers} layers.")
    faults += [f"Sweep {sweep.name!r}: {fault}" for fault in receiver_faults(sweep.receivers, sizes)]
    refusals = getattr(sizes, "refusals", {})
    if not is_module_path(sweep.site) and sweep.site in refusals:
        faults.append(f"Sweep {sweep.name!r}: site {sweep.site!r} is not offered: {refusals[sweep.site]}")
    return faults


def role_faults(sweep: SweepSection, tokens: Sequence[TokenizedPair]) -> list[str]:
    """Positions that no prompt has."""
    receiving = [sweep.receiver_positions] if isinstance(sweep.receiver_positions, str) else sweep.receiver_positions
    asked = [*([] if isinstance(sweep.positions, str) else sweep.positions), *(r for r in receiving if r != "all")]
    if not asked:
        return []
    # every prompt has a last token, also where its role is another (a subject that ends the prompt)
    known = tuple(sorted({"last", *(name for pair in tokens for name in (*pair.clean.spans, *pair.clean.roles))}))
    longest = max((len(pair.clean) for pair in tokens), default=0)
    faults = []
    for at in asked:
        if isinstance(at, int) and at >= longest:
            faults.append(
                f"Sweep {sweep.name!r}: no prompt has a position {at}; the longest has {longest} tokens, "
                f"0 to {longest - 1}."
            )
        elif isinstance(at, str) and at not in known:
            faults.append(f"Sweep {sweep.name!r}: no prompt has a position {at!r}{nearest(at, known)}")
    return faults


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
