"""The model that is trained: where its weights come from, which of them move, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN_TARGETS
from transformers import AutoModelForCausalLM

from engramscope.errors import InputError
from engramscope.finetune.settings import LoraSettings
from engramscope.models import Model, load_config, load_model
from engramscope.models.checkpoint import write_checkpoint
from engramscope.provenance import model_fingerprints
from engramscope.registry import nearest


def base_model(name: str, *, random_weights: bool, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """The model that training begins from, in float32 on the CPU, and its fingerprints.

    Args:
        name: a bundled name, a folder, or a hub id.
        random_weights: take its configuration only. The weights are drawn from the process's generator, so the caller
            sets the seed before.
        tokenizer: for the fingerprints.

    Raises:
        ModelError: it cannot be found or loaded.
    """
    if random_weights:
        config = load_config(name)
        config.use_cache = True
        hf: Any = AutoModelForCausalLM.from_config(config).float()
        held = Model.from_parts(hf, tokenizer, name=name, check=False)
    else:
        held = load_model(name, device="cpu", check=False)
        hf = held.hf
        hf.config.use_cache = True
    fingerprints = model_fingerprints(held)
    # the loader prefers attention whose weights can be seen; training needs the faster one
    with suppress(ValueError, ImportError):
        hf.set_attn_implementation("sdpa")
    hf.requires_grad_(True)
    return hf, fingerprints


def refuse_unknown_modules(config: Any, modules: Sequence[str]) -> None:
    """Check the modules of `--only` by the configuration, before anything is written; no weights are made.

    Raises:
        InputError: see `keep_only`.
    """
    if modules:
        with torch.device("meta"):
            keep_only(AutoModelForCausalLM.from_config(config), modules)


def keep_only(hf: Any, modules: Sequence[str]) -> list[str]:
    """Freeze every parameter that does not lie in one of the modules.

    Returns:
        A sentence for each parameter that is trained and also used elsewhere, because its weights are tied.

    Raises:
        InputError: a module that the model does not have or that holds no parameters.
    """
    if not modules:
        return []
    places: dict[int, list[str]] = {}
    for name, parameter in hf.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    known = tuple(path for path, module in hf.named_modules() if path and any(True for _ in module.parameters()))
    faults = [
        f"--only {one!r}: the model has no such module with parameters{_hint(one, known)}"
        for one in modules
        if one not in known and not any(one in names for names in places.values())
    ]
    if faults:
        raise InputError(faults)
    notes = []
    for parameter in hf.parameters():
        names = places[id(parameter)]
        inside = [name for name in names if any(name == one or name.startswith(f"{one}.") for one in modules)]
        parameter.requires_grad_(bool(inside))
        if inside and len(inside) < len(names):
            others = ", ".join(sorted(set(names) - set(inside)))
            notes.append(f"{inside[0]} shares its weights with {others}, which therefore changes too.")
    return notes


def _hint(name: str, known: tuple[str, ...]) -> str:
    close = nearest(name, known).split(" Known:")[0]
    return close if close != "." else f"; its modules are, for example, {', '.join(known[:4])}."


def with_adapters(hf: Any, lora: LoraSettings) -> Any:
    """Put low-rank adapters on a model; only they are trained.

    Raises:
        InputError: a target that no linear module is called by.
    """
    known = hf.config.model_type in KNOWN_TARGETS
    targets: Any = list(lora.targets) or (None if known else "all-linear")
    # GPT-2 keeps its matrices transposed
    transposed = any(type(module).__name__ == "Conv1D" for module in hf.modules())
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,  # pyright: ignore[reportArgumentType]
        fan_in_fan_out=transposed, task_type="CAUSAL_LM",
    )  # fmt: skip
    try:
        return get_peft_model(hf, config)
    except ValueError as error:
        names = sorted({path.rsplit(".", 1)[-1] for path, module in hf.named_modules()
                        if type(module).__name__ in ("Linear", "Conv1D")})  # fmt: skip
        raise InputError(
            f"LoRA cannot be put on {', '.join(lora.targets) or 'this model'}: {' '.join(str(error).split())[:200]} "
            f"Linear modules here: {', '.join(names)}."
        ) from None


def load_trained(hf: Any, checkpoint: Path) -> Any:
    """The weights of a checkpoint, put into the model that was trained (with its adapters, where it has any)."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if isinstance(hf, PeftModel):
        set_peft_model_state_dict(hf, load_file(checkpoint / "adapter_model.safetensors"))
        return hf
    state = load_file(checkpoint / "model.safetensors")
    missing = hf.load_state_dict(state, strict=False)
    tied = set(getattr(hf, "all_tied_weights_keys", None) or ())
    assert not missing.unexpected_keys, missing.unexpected_keys
    assert set(missing.missing_keys) <= tied, missing.missing_keys
    return hf


def write_model(hf: Any, tokenizer: Any, folder: Path, into: Path, base: str) -> None:
    """Write model (or adapters) and tokenizer: first into `folder`, then each file in its place in `into`.

    Args:
        hf: what was trained; adapters that are to be merged are merged already.
        tokenizer: goes beside it.
        folder: an empty one on the same disk, which is gone afterwards.
        into: where the files are wanted.
        base: what an adapter calls its base.

    Raises:
        OSError: the disk refuses; then nothing was moved.
    """
    if isinstance(hf, PeftModel):
        for config in hf.peft_config.values():
            config.base_model_name_or_path = base
    write_checkpoint(hf, tokenizer, folder, into)


def parameter_counts(hf: Any) -> Mapping[str, int]:
    """How many parameters there are, and how many of them are trained."""
    every = list(hf.parameters())
    return {
        "parameters": sum(one.numel() for one in every),
        "trained": sum(one.numel() for one in every if one.requires_grad),
    }
