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

from engramscope.errors import CheckError, InputError
from engramscope.finetune.settings import LoraSettings
from engramscope.models import Model, load_config, load_model, load_tokenizer
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


def write_random_base(name: str, seed: int, into: Path) -> None:
    """Write the model that a training of random weights begins from.

    Args:
        name: whose configuration and tokenizer are taken, as in `base_model`.
        seed: of the training.
        into: the folder that becomes a model, or is one after an earlier call.

    Raises:
        ModelError: there is no such model.
        OSError, SafetensorError: the disk refuses.
    """
    if (into / "config.json").is_file():  # which is written last
        return
    tokenizer = load_tokenizer(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        hf, _ = base_model(name, random_weights=True, tokenizer=tokenizer)
    into.mkdir(parents=True, exist_ok=True)
    write_checkpoint(hf, tokenizer, into / "work", into)


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
    """The weights of a checkpoint, or of the finished folder, put into the model that was trained.

    Into its adapters, where it has any.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if isinstance(hf, PeftModel):
        found = set_peft_model_state_dict(hf, load_file(checkpoint / "adapter_model.safetensors"))
        _ensure_all(checkpoint, [*found.unexpected_keys, *(key for key in found.missing_keys if "lora_" in key)])
        return hf
    file = checkpoint / "model.safetensors"
    if file.is_file():
        found = hf.load_state_dict(load_file(file), strict=False)
        tied = set(getattr(hf, "all_tied_weights_keys", None) or ())
        if not found.unexpected_keys and set(found.missing_keys) <= tied:
            return hf
    # in several files, or under other names than those of the modules (experts that a layer holds as one tensor)
    whole, told = type(hf).from_pretrained(str(checkpoint), dtype=torch.float32, output_loading_info=True)
    _ensure_all(checkpoint, sorted({*told["missing_keys"], *told["unexpected_keys"]}))
    hf.load_state_dict(whole.state_dict())
    return hf


def _ensure_all(checkpoint: Path, wrong: Sequence[str]) -> None:
    if wrong:
        raise CheckError(
            f"The weights in {checkpoint} are not those of the model: {', '.join(list(wrong)[:3])} "
            f"{'is' if len(wrong) == 1 else 'are'} missing or too much."
        )


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
