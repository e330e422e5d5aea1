"""A model for a person to read: its parts, its sites, its tokenizer, and its self-checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from engramscope.models.model import Model
from engramscope.models.selfcheck import SelfCheck, self_checks
from engramscope.models.site import GLOBAL_SITES, SITES, AttentionPattern, ModelLogits, Port, ResidMid, SiteAccess


def describe(model: Model) -> Group:
    """Everything that is known about a model, as something that rich can print."""
    parts: list[Table | Group] = [_facts(model), _sites(model)]
    if model.tokenizer is not None:
        parts.append(_table("Tokenizer", tokenizer_facts(model.tokenizer, model.anatomy.vocab)))
    parts.append(_checks(model))
    return Group(*parts)


def tokenizer_facts(tokenizer: Any, vocab: int) -> list[tuple[str, str]]:
    """What matters about a tokenizer when prompts are patched.

    Args:
        tokenizer: a fast tokenizer.
        vocab: width of the model's logits.

    Returns:
        (fact, value) pairs.
    """
    encoded = list(tokenizer("Paris")["input_ids"])
    plain = list(tokenizer("Paris", add_special_tokens=False)["input_ids"])
    added = [token for token in encoded if token not in plain]
    with_space = list(tokenizer(" Paris", add_special_tokens=False)["input_ids"])
    shown = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in added) or "none"
    facts = [
        ("class", type(tokenizer).__name__),
        ("vocabulary", f"{len(tokenizer)} tokens; the model's logits have {vocab}"),
        ("added to every prompt", f"{shown}" + (" (BOS)" if tokenizer.bos_token_id in added else "")),
        ("leading space", _leading_space(tokenizer, plain, with_space)),
    ]
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    facts.append(("special tokens", ", ".join(f"{name} {token!r}" for name, token in special.items()) or "none"))
    if len(tokenizer) > vocab:
        facts.append(("warning", "the tokenizer has tokens that the model has no row for"))
    return facts


def _leading_space(tokenizer: Any, plain: list[int], with_space: list[int]) -> str:
    pieces = [" ".join(map(repr, tokenizer.convert_ids_to_tokens(ids))) for ids in (plain, with_space)]
    if plain == with_space:
        return f"ignored: 'Paris' and ' Paris' are both {pieces[0]}"
    return f"counts: 'Paris' is {pieces[0]}, ' Paris' is {pieces[1]}"


def _facts(model: Model) -> Table:
    a = model.anatomy
    count = sum(parameter.numel() for parameter in model.hf.parameters())
    heads = f"{a.n_heads} of width {a.d_head}"
    if a.n_kv_heads != a.n_heads:
        heads += f", in {a.n_kv_heads} groups of {a.n_heads // a.n_kv_heads} that share keys and values"
    source = model.source + (f", revision {model.revision}" if model.revision else "")
    facts = [
        ("architecture", f"{a.model_type} ({type(model.hf).__name__})"),
        ("from", source),
        ("parameters", f"{count:,}"),
        ("layers", f"{a.n_layers}, {'attention beside MLP (parallel)' if a.parallel else 'attention, then MLP'}"),
        ("heads", heads),
        ("widths", f"d_model {a.d_model}, d_mlp {a.d_mlp or 'not separable'}, vocabulary {a.vocab}"),
        ("blocks", _range(a.blocks)),
        ("embedding, final norm, head", f"{a.embed}, {a.final_norm or 'none'}, {a.head}"),
        ("attention", "through the attention interface" if a.attention_interface else "written out in the module"),
        ("held as", f"{str(model.dtype).removeprefix('torch.')} on {model.device}"),
        ("weight hash (SHA-256)", model.weight_hash()),
    ]  # fmt: skip
    return _table(f"Model {model.name}", facts)


def _sites(model: Model) -> Table:
    table = Table(title="Sites", title_justify="left", show_lines=False)
    for column in ("site", "shape", "where it is read"):
        table.add_column(column, overflow="fold")
    for site in SITES:
        if site in model.anatomy.refusals:
            table.add_row(site, "not offered", Text(model.anatomy.refusals[site]))
            continue
        layer = None if site in GLOBAL_SITES else 0
        shape = " × ".join(map(str, model.shape(site)))
        table.add_row(site, shape, Text(_where(model.site(site, layer), model)))
    table.add_row("any module", "batch × seq × its width", f"{len(model.module_paths)} module paths, for example "
                  f"{_any_layer(model.module_paths[-2], model)}")  # fmt: skip
    return table


def _where(access: SiteAccess, model: Model) -> str:
    if isinstance(access, Port):
        heads = "" if access.head_columns is None else f", {_columns(access)}"
        return f"{access.side} of {_any_layer(access.path, model)}{heads}"
    if isinstance(access, ResidMid):
        return f"input of the block + attn_out; written through {_any_layer(access.attn_out.path, model)}"
    if isinstance(access, AttentionPattern):
        if access.dropout is not None:
            return f"output of {_any_layer(access.dropout.path, model)}"
        return f"attention interface, in {_any_layer(model.anatomy.attention[access.layer], model)}"
    assert isinstance(access, ModelLogits)
    return "what the model returns"


def _columns(port: Port) -> str:
    columns = port.head_columns
    assert columns is not None
    first = [int(head[0]) for head in columns]
    shown = ", ".join(map(str, first[:3])) + (", …" if len(first) > 3 else "")
    return f"heads begin at columns {shown}"


def _any_layer(path: str, model: Model) -> str:
    for layer, block in enumerate(model.anatomy.blocks):
        if path == block or path.startswith(f"{block}."):
            return f"{block.removesuffix(str(layer))}{{layer}}{path.removeprefix(block)}"
    return path


def _range(blocks: Sequence[str]) -> str:
    return " … ".join(dict.fromkeys((blocks[0], blocks[-1])))


def _checks(model: Model) -> Group:
    checks: tuple[SelfCheck, ...] = model.checks or tuple(self_checks(model))
    general = Table(title="Self-checks of the model", title_justify="left")
    for column in ("check", "value", "held to", "", "what it says"):
        general.add_column(column, overflow="fold")
    for check in checks:
        if not check.name.startswith(("shape ", "write-back ", "reaches ")):
            general.add_row(
                check.name, f"{check.value:.1e}", f"≤ {check.tolerance:.1e}", _mark(check), Text(check.detail)
            )
    by_site = Table(title="Self-checks of the sites", title_justify="left")
    for column in ("site", "shape", "write-back changes the logits by", "a change reaches the logits"):
        by_site.add_column(column)
    found = {check.name: check for check in checks}
    for site in SITES:
        if f"shape {site}" in found:
            shape, same, reach = (found[f"{kind} {site}"] for kind in ("shape", "write-back", "reaches logits"))
            cells = (_mark(shape), _mark(same, f"{same.value:.1e}"), _mark(reach, f"{reach.value:.1e}"))
            by_site.add_row(site, *cells)
    return Group(general, by_site)


def _mark(check: SelfCheck, shown: str = "") -> Text:
    if not check.passed:
        return Text(f"{shown} failed".strip(), style="bold red")
    silent = check.name.startswith("reaches") and check.value <= check.tolerance
    return Text(
        f"{shown} (its weights are zero)" if silent else shown or "passed", style="yellow" if silent else "green"
    )


def _table(title: str, facts: list[tuple[str, str]]) -> Table:
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for fact, value in facts:
        table.add_row(fact, Text(value))
    return table
