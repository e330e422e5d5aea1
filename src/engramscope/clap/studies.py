"""The localisation studies of the whole study, as study files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engramscope.pairs import PairSet

#: study -> what it asks; the order of the page
STUDIES: Mapping[str, str] = {
    "as-published": "CLAP's own set-up: question and correct answer against question and wrong answer",
    "token-replacement": "Questions of the same kinds by best practice: another subject of as many tokens",
    "what-training-moved": "The trained model against the model before training: weights and activations exchanged",
}
#: CLAP's three tables -> (name of the sweep, kind of question that the table is about)
TABLES: Mapping[str, tuple[str, str]] = {
    "Table 3": ("first feed-forward layer", "associative"),
    "Table 4": ("final output layer", "definitional"),
    "Table 5": ("convolutional layer", "associative"),
}
_KIND = "kind"


def as_published(common: Mapping[str, Any], pairs: PairSet, file: str, modules: Sequence[str]) -> dict[str, Any]:
    """Tables 3 to 5: the first feed-forward layer, the final output layer, the first convolutional one; and all layers.

    GPT-2 calls its linear maps `Conv1D`; the paper does not say which of them its convolutional layer is, and it is
    taken to be the first attention's `c_attn`. A model without such a module has the first attention's output patched.

    Args:
        common: parts that all studies share.
        pairs: questions with whole answers.
        file: where they are.
        modules: paths of the model's modules.
    """
    conv = next((path for path in modules if path.endswith("h.0.attn.c_attn")), None)
    sweeps: list[dict[str, Any]] = [
        {"name": "first feed-forward layer", "site": "mlp_act", "layers": [0]},
        {"name": "final output layer", "site": "logits", "positions": "last"},
        {"name": "convolutional layer", **({"site": conv} if conv else {"site": "attn_out", "layers": [0]})},
        {"name": "feed-forward layers", "site": "mlp_out"},
        {"name": "attention layers", "site": "attn_out"},
    ]
    return _study(common, "as-published", pairs, file, {"method": "answer"}, sweeps, ["mean_logit_diff"])


def token_replacement(common: Mapping[str, Any], pairs: PairSet, file: str) -> dict[str, Any]:
    """Heads, and MLP and attention at the subject and at the end, in both directions."""
    places = ["subject_last", "last"]
    sweeps: list[dict[str, Any]] = [
        {"name": "heads", "site": "z", "heads": "each", "direction": "both"},
        {"name": "MLPs", "site": "mlp_out", "positions": places, "direction": "both"},
        {"name": "attention", "site": "attn_out", "positions": places, "direction": "both"},
        {"name": "residual stream", "site": "resid_post", "positions": places},
    ]
    metrics = ["logit_diff", "prob"]
    return _study(common, "token-replacement", pairs, file, {"method": "str"}, sweeps, metrics)


def what_training_moved(common: Mapping[str, Any], pairs: PairSet, file: str, base: str, layers: int) -> dict[str, Any]:
    """Weights of every part, alone and in groups of blocks, in both directions; and activations across the models."""
    places = ["subject_last", "last"]
    groups = [{"name": "groups of blocks", "site": "weights:block", "window": 3, "direction": "both"}]
    sweeps: list[dict[str, Any]] = [
        {"name": "MLP weights", "site": "weights:mlp", "direction": "both"},
        {"name": "attention weights", "site": "weights:attn", "direction": "both"},
        {"name": "norm weights", "site": "weights:norms"},
        {"name": "embedding weights", "site": "weights:embed", "direction": "both"},
        *(groups if layers >= 3 else []),
        {"name": "MLP activations", "site": "mlp_out", "positions": places, "direction": "both"},
        {"name": "attention activations", "site": "attn_out", "positions": places, "direction": "both"},
        {"name": "residual stream", "site": "resid_post", "positions": places},
    ]
    corruption = {"method": "base_model", "base": base}
    return _study(common, "what-training-moved", pairs, file, corruption, sweeps, ["logit_diff", "kl"])


def _study(
    common: Mapping[str, Any], name: str, pairs: PairSet, file: str, corruption: Mapping[str, Any],
    sweeps: Sequence[Mapping[str, Any]], metrics: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    kinds = {pair.labels.get(_KIND) for pair in pairs} - {None}
    contrast = {"contrast": _KIND} if len(kinds) == 2 else {}
    return {
        "schema": 1,
        "name": name,
        "seed": common["seed"],
        "model": common["model"],
        "pairs": {"file": file},
        "corruption": dict(corruption),
        "metrics": {"names": list(metrics)},
        "stats": {"resamples": common["resamples"], "cluster": "group", **contrast},
        "sweep": [dict(sweep) for sweep in sweeps],
    }
