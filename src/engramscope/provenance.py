"""Who computed what with what: the facts of a manifest."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engramscope.models.model import Model

_PACKAGES = ("engramscope", "torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "pyarrow")
#: keys of a configuration that say where a model came from or how it is held, not what it computes
_NO_MATTER = frozenset({
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "_attn_implementation", "attn_implementation", "_attn_implementation_internal", "auto_map", "architectures",
    "id2label", "label2id",
})  # fmt: skip
#: keys of a configuration that a forward in evaluation does not look at, and parts of such keys
_NOT_IN_A_FORWARD = frozenset({
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "gradient_checkpointing",
    "pretraining_tp", "problem_type", "finetuning_task", "initializer_range", "use_return_dict",
})  # fmt: skip
_NOT_IN_A_FORWARD_AT_ALL = ("dropout", "pdrop", "token_id", "summary_", "task_specific")
#: what a tokenizer's file remembers of how it was last called
_LAST_CALL = frozenset({"padding", "truncation"})


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Operating system, processor and threads; no host name."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def model_facts(model: Model) -> dict[str, Any]:
    """What identifies a model in a manifest."""
    anatomy = model.anatomy
    return {
        "name": model.name,
        "source": model.source,
        "model_type": anatomy.model_type,
        "revision": model.revision,
        "weight_hash": model.weight_hash(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "n_layers": anatomy.n_layers,
        "n_heads": anatomy.n_heads,
        "n_kv_heads": anatomy.n_kv_heads,
        "d_model": anatomy.d_model,
        "d_mlp": anatomy.d_mlp,
        "vocab": anatomy.vocab,
        "parameters": sum(parameter.numel() for parameter in model.hf.parameters()),
    }


def training_of(model: Model) -> dict[str, Any] | None:
    """What `training.json` beside a model's weights says of the weights that its training began from.

    Returns:
        `name` and `weights` (their hash); None where the model is no folder of a finished fine-tuning.
    """
    path = Path(model.name) / "training.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["model"]
        return {"name": str(told["name"]), "weights": str(told["base"]["weights"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_fingerprints(model: Model) -> dict[str, Any]:
    """What a model's numbers depend on: a hash of its weights, its configuration, and a hash of its tokenizer.

    Weights alone do not say it: the base of rotary positions, the epsilon of a norm, an attention window or a
    tokenizer that adds a BOS token change every number and no weight.
    """
    return {
        "weights": model.weight_hash(),
        "configuration": _what_matters(_plain_config(model.hf.config)),
        "tokenizer": tokenizer_hash(model.tokenizer),
    }


def matters_in_a_forward(model: Model) -> dict[str, Any]:
    """A configuration without what says nothing of a forward in evaluation: dropout, initialisation, special tokens."""
    kept = _what_matters(_plain_config(model.hf.config))
    return {
        key: value
        for key, value in kept.items()
        if key not in _NOT_IN_A_FORWARD and not any(word in key for word in _NOT_IN_A_FORWARD_AT_ALL)
    }


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of a fast tokenizer: its vocabulary, rules and added tokens, and its special-token settings.

    Returns:
        64 hexadecimal digits; "" where there is no tokenizer.
    """
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    settings = [
        {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        *(getattr(tokenizer, key, None) for key in ("add_bos_token", "add_eos_token", "add_prefix_space")),
    ]
    text = json.dumps([{k: v for k, v in rules.items() if k not in _LAST_CALL}, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain_config(config: Any) -> Any:
    # infinity and not-a-number have no place in JSON, so they are kept as words
    return json.loads(config.to_json_string(use_diff=False), parse_constant=str)


def _what_matters(value: Any) -> Any:
    """A configuration without its paths, versions and types, at any depth."""
    if isinstance(value, dict):
        return {key: _what_matters(part) for key, part in value.items() if key not in _NO_MATTER}
    return [_what_matters(part) for part in value] if isinstance(value, list) else value
