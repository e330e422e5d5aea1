"""Find a model's parts and sites: sizes, paths, ports, and what it cannot offer and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from engramscope.errors import ModelError
from engramscope.models.anatomy import Anatomy
from engramscope.models.heads import HeadLayout, Projection, find_layouts
from engramscope.models.parts import Parts, find_parts
from engramscope.models.pattern import find_patterns
from engramscope.models.probe import Recording, below, close, linears
from engramscope.models.site import ModelLogits, Port, ResidMid, SiteAccess
from engramscope.models.writes import Writes, find_writes

Accesses = Mapping[tuple[str, int | None], SiteAccess]
Phase = int | Literal["stem", "tail", "between"]


@dataclass(frozen=True)
class Found:
    """What was found about a model.

    Attributes:
        anatomy: sizes, paths and refusals.
        accesses: access of each offered site and layer (None for sites that exist once).
        widths: width of the output [batch, seq, width] of each module that was called once and returned one; these are
            the modules that can be patched by their path.
        not_patchable: for each other module that was called, why not.
        phases: when each of these modules has its output: "stem" (before the first block), the number of the block
            that it is in, "tail" (after the last block), "between" (anything else).
    """

    anatomy: Anatomy
    accesses: Accesses
    widths: Mapping[str, int]
    not_patchable: Mapping[str, str]
    phases: Mapping[str, Phase]


@dataclass(frozen=True)
class _Blocks:
    """What was found in each block."""

    writes: Sequence[Writes | None]
    layouts: Sequence[HeadLayout]
    patterns: Sequence[SiteAccess | None]
    neurons: Sequence[str | None]


def find(hf: Any) -> Found:
    """Find the parts of a causal language model by its module graph and a few probe runs on random tokens.

    Raises:
        ModelError: the model is not a stack of blocks with an embedding and a head.
    """
    parts = find_parts(hf)
    n_heads = parts.query_heads or getattr(hf.config.get_text_config(), "num_attention_heads", None)
    if not isinstance(n_heads, int):
        raise ModelError(f"{type(hf).__name__} has no attention heads; Engramscope needs a transformer.")
    layouts = find_layouts(hf, parts, n_heads)
    writes = find_writes(hf, parts)
    neurons = [_down_projection(hf, parts, layer, write) for layer, write in enumerate(writes)]
    blocks = _Blocks(writes, layouts, find_patterns(hf, parts, layouts, n_heads), neurons)
    offered = _accesses(hf, parts, blocks, n_heads)
    refusals = _refusals(hf, parts, blocks, offered)
    accesses = {
        (site, layer): access
        for site, by_layer in offered.items()
        if site not in refusals
        for layer, access in by_layer.items()
        if access is not None
    }
    widths, others = _module_paths(parts.recording)
    phases: dict[str, Phase] = {path: _phase(path, parts) for path in widths}
    return Found(_anatomy(hf, parts, blocks, n_heads, refusals), accesses, widths, others, phases)


def without_sites(found: Found, reasons: Mapping[str, str]) -> Found:
    """The same, with these sites refused for these reasons."""
    refusals = {**reasons, **found.anatomy.refusals}
    accesses = {place: access for place, access in found.accesses.items() if place[0] not in reasons}
    return replace(found, anatomy=replace(found.anatomy, refusals=refusals), accesses=accesses)


def _anatomy(hf: Any, parts: Parts, blocks: _Blocks, n_heads: int, refusals: Mapping[str, str]) -> Anatomy:
    recording, config = parts.recording, hf.config.get_text_config()
    block_input = recording.input(parts.blocks[0])
    d_model = int(config.hidden_size) if block_input is None else block_input.shape[-1]
    layout, key = blocks.layouts[0], blocks.layouts[0].k
    configured = getattr(config, "num_key_value_heads", None) or n_heads
    neurons = blocks.neurons[0] if "mlp_act" not in refusals else None
    neuron_values = None if neurons is None else recording.input(neurons)
    return Anatomy(
        model_type=config.model_type,
        n_layers=len(parts.blocks),
        n_heads=n_heads,
        n_kv_heads=int(configured) if key is None else key.columns.shape[0],
        d_model=d_model,
        d_head=layout.d_head or d_model // n_heads,
        d_mlp=None if neuron_values is None else neuron_values.shape[-1],
        vocab=recording.logits.shape[-1],
        parallel=all(writes is not None and writes.parallel for writes in blocks.writes),
        embed=parts.embed,
        final_norm=parts.final_norm,
        head=parts.head,
        blocks=parts.blocks,
        attention=tuple(path or "" for path in parts.attention),
        attention_interface=all(parts.interface),
        refusals=dict(refusals),
    )


def _accesses(
    hf: nn.Module, parts: Parts, blocks: _Blocks, n_heads: int
) -> dict[str, dict[int | None, SiteAccess | None]]:
    """Access of every site and layer, None where there is none."""

    def port(path: str | None, side: Any, columns: Any = None) -> Port | None:
        return None if path is None else Port(path, hf.get_submodule(path), side, columns)

    def projection(found: Projection | None) -> Port | None:
        return None if found is None else port(found.path, "output", found.columns)

    def per_layer(make: Callable[[int], SiteAccess | None]) -> dict[int | None, SiteAccess | None]:
        return {layer: make(layer) for layer in range(len(parts.blocks))}

    def resid_mid(layer: int) -> ResidMid | None:
        writes, pre = blocks.writes[layer], port(parts.blocks[layer], "input")
        attn = port(writes.attn, "output") if writes is not None and not writes.parallel else None
        return None if attn is None or pre is None else ResidMid(pre, attn)

    def written(layer: int, which: str) -> str | None:
        writes = blocks.writes[layer]
        return None if writes is None else getattr(writes, which)

    layouts = blocks.layouts
    return {
        "embed": {None: port(parts.embed, "output")},
        "final_norm": {None: port(parts.final_norm, "output")},
        "logits": {None: ModelLogits()},
        "resid_pre": per_layer(lambda layer: port(parts.blocks[layer], "input")),
        "resid_post": per_layer(lambda layer: port(parts.blocks[layer], "output")),
        "resid_mid": per_layer(resid_mid),
        "attn_out": per_layer(lambda layer: port(written(layer, "attn"), "output")),
        "mlp_out": per_layer(lambda layer: port(written(layer, "mlp"), "output")),
        "mlp_act": per_layer(lambda layer: port(blocks.neurons[layer], "input")),
        "z": per_layer(lambda layer: _z(hf, layouts[layer], blocks.patterns[layer], n_heads)),
        "q": per_layer(lambda layer: projection(layouts[layer].q)),
        "k": per_layer(lambda layer: projection(layouts[layer].k)),
        "v": per_layer(lambda layer: projection(layouts[layer].v)),
        "pattern": per_layer(lambda layer: blocks.patterns[layer]),
    }


def _z(hf: nn.Module, layout: HeadLayout, pattern: SiteAccess | None, n_heads: int) -> Port | None:
    """The output projection's input, if queries or attention weights have shown that its heads lie side by side."""
    if layout.out is None or not (layout.verified or pattern is not None):
        return None
    columns = torch.arange(n_heads * layout.d_head).view(n_heads, layout.d_head)
    return Port(layout.out, hf.get_submodule(layout.out), "input", columns)


def _refusals(
    hf: Any, parts: Parts, blocks: _Blocks, offered: Mapping[str, Mapping[int | None, SiteAccess | None]]
) -> dict[str, str]:
    """For each site that some layer does not offer, a sentence that says why."""
    name = type(hf).__name__
    reasons: dict[str, str] = {}
    for site, by_layer in offered.items():
        missing = [layer for layer, access in by_layer.items() if access is None]
        if missing:
            where = "" if len(missing) == len(by_layer) else f" (layers {', '.join(map(str, missing))})"
            reasons[site] = _reason(site, name, where, blocks, missing[0])
    if parts.recording.output(parts.embed) is None or _width(parts, parts.embed) != _width(parts, parts.blocks[0]):
        reasons["embed"] = f"{name} projects its token embedding to another width before the first block."
    if "final_norm" not in reasons and _width(parts, parts.final_norm) != _width(parts, parts.blocks[0]):
        reasons["final_norm"] = f"{name} projects the residual stream to another width before the head."
    sizes = {layout.d_head for layout in blocks.layouts}
    if len(sizes) > 1:
        for site in ("q", "k", "v", "z"):
            reasons.setdefault(site, f"The blocks of {name} have heads of different widths.")
    return reasons


def _reason(site: str, name: str, where: str, blocks: _Blocks, layer: int | None) -> str:
    writes = None if layer is None else blocks.writes[layer]
    if site == "final_norm":
        return f"In {name} no module's output is the input of the language-model head."
    if site == "resid_mid" and writes is not None:
        return (
            f"The blocks of {name}{where} are parallel: attention and MLP read the same input, so there is no residual "
            "stream between them."
        )
    if site in {"attn_out", "mlp_out", "resid_mid"}:
        return (
            f"In {name}{where} no two module outputs a and m satisfy resid_post = resid_pre + a + m, so what attention "
            "and the MLP add cannot be told from the residual stream (a norm after the addition, or a scaled residual)."
        )
    if site == "mlp_act":
        return (
            f"The MLP of {name}{where} has no single down projection whose input is the neurons of every token "
            "(fused or routed experts)."
        )
    if site == "pattern":
        return f"In {name}{where} no module sees the attention weights, so they can be neither read nor replaced."
    if site == "z":
        return f"In {name}{where} no projection was found whose input is the outputs of the heads side by side."
    return (
        f"In {name}{where} the layout of queries, keys and values in the projections could not be verified by a probe "
        "run; module paths remain available."
    )


def _down_projection(hf: nn.Module, parts: Parts, layer: int, writes: Writes | None) -> str | None:
    """The matrix at the end of the MLP: the last one called outside the attention whose output is the whole MLP's.

    A matrix among others (an expert beside routed ones) is none: its output is not what the MLP writes.
    """
    attention, recording, block = parts.attention[layer], parts.recording, parts.blocks[layer]
    if attention is None:
        return None
    for path in reversed(linears(hf, block, recording)):
        returned, given = recording.output(path), recording.input(path)
        if below(path, attention) or returned is None or given is None:
            continue
        if writes is not None:
            # with a norm after the MLP the matrix's output is that norm's input
            whole = [recording.output(writes.mlp), recording.input(writes.mlp)]
        else:
            whole = [recording.output(_child_of(block, path))]
        if any(value is not None and close(returned, value) for value in whole):
            return path
    return None


def _child_of(block: str, path: str) -> str:
    """The direct child of `block` that holds `path`."""
    return f"{block}.{path.removeprefix(block + '.').split('.')[0]}"


def _phase(path: str, parts: Parts) -> Phase:
    for layer, block in enumerate(parts.blocks):
        if below(path, block):
            return layer
    call, first, last = (parts.recording.once(name) for name in (path, parts.blocks[0], parts.blocks[-1]))
    if call is None or first is None or last is None:
        return "between"
    if call.end < first.start:
        return "stem"
    return "tail" if call.end > last.end else "between"


def _module_paths(recording: Recording) -> tuple[dict[str, int], dict[str, str]]:
    widths: dict[str, int] = {}
    others: dict[str, str] = {}
    for path, calls in recording.calls.items():
        value = recording.output(path)
        if value is not None:
            widths[path] = value.shape[-1]
        elif len(calls) > 1:
            others[path] = f"it is called {len(calls)} times in one forward"
        else:
            others[path] = "its output is not [batch, seq, width]"
    return widths, others


def _width(parts: Parts, path: str | None) -> int:
    value = None if path is None else parts.recording.output(path)
    return 0 if value is None else value.shape[-1]
