"""From a corpus and a model's name to what is trained on: documents, sides, chunks, device; no weights are loaded."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from engramscope.corpus.table import read_corpus
from engramscope.errors import InputError
from engramscope.finetune.chunks import cut, ensure_in_vocabulary, pad_token, tokenise
from engramscope.finetune.documents import Documents, corpus_hash, read_documents
from engramscope.finetune.layout import Job
from engramscope.finetune.settings import Settings
from engramscope.finetune.split import SMALL, Split, split_documents
from engramscope.finetune.words import WARM_UP, shorter_warm_up
from engramscope.models import load_config, load_tokenizer
from engramscope.models.load import skeleton_sizes
from engramscope.provenance import tokenizer_hash


@dataclass(frozen=True)
class Prepared:
    """What training needs, and what is known of it before.

    Attributes:
        job: for the training process.
        documents, split: of the corpus.
        train, validation: chunks of token ids.
        facts: for the manifest.
        identity: what has to be the same where a run goes on.
        notes: sentences that are said aloud.
    """

    job: Job
    documents: Documents
    split: Split
    train: list[list[int]]
    validation: list[list[int]]
    facts: dict[str, Any]
    identity: dict[str, Any]
    notes: tuple[str, ...]


def prepare(settings: Settings, corpus: Path | pd.DataFrame, model: str) -> Prepared:
    """Read, split, tokenise and cut; refuse what cannot be trained.

    Raises:
        InputError: corpus, model, device or settings are at fault.
    """
    device, precision, notes = choose_hardware(settings)
    name = str(Path(model).expanduser().resolve()) if Path(model).expanduser().is_dir() else model
    table = corpus if isinstance(corpus, pd.DataFrame) else read_corpus(corpus)
    config, tokenizer = load_config(name), load_tokenizer(name)
    if settings.only:
        from engramscope.finetune.weights import refuse_unknown_modules  # here, because peft takes seconds to import

        refuse_unknown_modules(config, settings.only)
    documents = read_documents(table, settings.text, settings.terms, settings.limit, settings.seed)
    split = split_documents(documents, settings.terms, settings.validation, settings.seed)
    chunk, more = _chunk(settings, config, tokenizer)
    notes += more
    ids = tokenise(tokenizer, documents.texts, end_of_text=settings.end_of_text,
                   processes=settings.tokenizer_processes)  # fmt: skip
    ensure_in_vocabulary(ids, int(config.get_text_config().vocab_size), model)
    sides = {side: [piece for row, held_out in zip(ids, split.held_out, strict=True) if held_out == side
                    for piece in cut(row, chunk)] for side in (False, True)}  # fmt: skip
    _ensure_enough(sides[False], sides[True], settings)
    pad, pad_source = pad_token(tokenizer)
    steps = steps_per_epoch(len(sides[False]), settings)
    notes += _notes(settings, documents, split, len(sides[False]), pad_source, tokenizer)
    job = Job(settings, name, chunk, pad, device, precision)
    identity = {
        "settings": settings.what_matters(), "corpus": corpus_hash(documents), "model": name,
        "tokenizer": tokenizer_hash(tokenizer), "precision": precision,
    }  # fmt: skip
    facts = {
        "corpus": {
            "name": "a table" if isinstance(corpus, pd.DataFrame) else str(corpus), "hash": identity["corpus"],
            "documents": len(documents.ids), "without_text": documents.without_text,
            "same_text": len(documents.ids) - len(set(documents.groups.tolist())),
            "mentions": dict(zip(settings.terms, documents.mentions.sum(axis=0).tolist(), strict=True)),
        },
        "split": {side: _side(split, held_out, sides[held_out])
                  for side, held_out in (("train", False), ("validation", True))} | {"strata": _strata(split)},
        "chunk": chunk, "pad": {"id": pad, "from": pad_source}, "device": device,
        "precision": {"asked": settings.precision, "used": precision},
        "steps": {"per_epoch": steps, "most": steps * settings.epochs, "warmup": settings.warmup_steps},
    }  # fmt: skip
    return Prepared(job, documents, split, sides[False], sides[True], facts, identity, tuple(notes))


def choose_hardware(settings: Settings) -> tuple[str, str, list[str]]:
    """The device, the precision that it can do, and what is to be said about it.

    Raises:
        InputError: a device that is not there.
    """
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise InputError("Device 'cuda' was asked for, but this machine has no CUDA device that torch can use.")
    device = "cuda" if cuda and settings.device != "cpu" else "cpu"
    if settings.precision == "fp16" and device == "cpu":
        return device, "fp32", [
            "FP16 was asked for, but it needs a CUDA device and this training runs on the CPU: it is done in full "
            "precision (fp32). --set precision=bf16 is the half precision that a CPU can do."
        ]  # fmt: skip
    if settings.precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        return device, "fp32", ["BF16 was asked for, but this GPU cannot do it: full precision (fp32) is used."]
    return device, settings.precision, []


def ensure_gpus(job: Job) -> None:
    """Refuse more processes than this machine has GPUs; a `torchrun` by hand may have several machines.

    Raises:
        InputError: says how many there are.
    """
    processes = job.settings.processes
    if job.device == "cuda" and processes > torch.cuda.device_count():
        raise InputError(
            f"{processes} processes were asked for, one per GPU, but torch sees {torch.cuda.device_count()} here. For "
            "several machines that share a folder: --prepare, then torchrun by hand."
        )


def steps_per_epoch(chunks: int, settings: Settings) -> int:
    """Optimiser steps of one epoch; the last one may be of fewer batches."""
    batches = math.ceil(chunks / (settings.train_batch * settings.processes))
    return math.ceil(batches / settings.accumulation)


def room_note(folder: Path, parameters: int) -> list[str]:
    """A sentence where the disk may become full: two checkpoints while a third is written, and the result."""
    while not folder.exists():
        folder = folder.parent
    needed, free = 4 * parameters * (3 + 3 + 1 + 1), shutil.disk_usage(folder).free
    if needed <= free:
        return []
    return [f"The disk has {free / 1e9:.1f} GB left, and checkpoints may need {needed / 1e9:.1f} GB for a while."]


def _chunk(settings: Settings, config: Any, tokenizer: Any) -> tuple[int, list[str]]:
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    limits.append(tokenizer.model_max_length)
    context = min((int(limit) for limit in limits if limit), default=settings.chunk)
    if context >= settings.chunk:
        return settings.chunk, []
    if context < 2:
        raise InputError(f"The model's context is {context} token; at least 2 are needed to predict one from another.")
    return context, [f"The model's context is {context} tokens, so chunks have {context} instead of {settings.chunk}."]


def _ensure_enough(train: Sequence[Any], validation: Sequence[Any], settings: Settings) -> None:
    batch = settings.train_batch * settings.processes
    if not validation:
        raise InputError(
            "No held-out document has two tokens or more, so there is nothing to validate on; give more abstracts."
        )
    if len(train) < batch:
        raise InputError(
            f"The training side has {len(train)} chunks, fewer than one batch of {batch}; give more abstracts, or a "
            f"smaller batch, for example --set train_batch={max(1, len(train) // (2 * settings.processes))}."
        )


def _notes(
    settings: Settings, documents: Documents, split: Split, len_train: int, pad_source: str, tokenizer: Any
) -> list[str]:
    most = steps_per_epoch(len_train, settings) * settings.epochs
    found: list[str] = []
    if settings.warmup_steps >= most:
        last = settings.learning_rate * (most - 1) / settings.warmup_steps
        found.append(
            f"{WARM_UP}{settings.warmup_steps} steps is as long as this training or longer ({most} steps): the "
            f"learning rate rises to {last:.2g} and never reaches {settings.learning_rate:g}. {shorter_warm_up(most)}"
        )
    if fill := -len_train % (settings.train_batch * settings.processes) if settings.processes > 1 else 0:
        found.append(f"So that every process has whole batches, {fill} chunks are learned from twice in each epoch.")
    if documents.without_text:
        found.append(f"{documents.without_text} rows of the corpus have no abstract and are left out.")
    if same := len(documents.ids) - len(set(documents.groups.tolist())):
        found.append(f"{same} documents repeat the text of another; copies stay on the side of the first.")
    if SMALL in split.strata:
        found.append(f"{split.strata.count(SMALL)} documents are of strata too small to split, and form one stratum.")
    if pad_source == "id 0":
        found.append("The tokenizer has no pad and no end-of-text token: batches are filled up with id 0, and masked.")
    if settings.end_of_text and tokenizer.eos_token_id is None:
        found.append("The tokenizer has no end-of-text token, so none stands behind the documents.")
    return found


def _side(split: Split, held_out: bool, chunks: Sequence[Sequence[int]]) -> dict[str, int]:
    return {
        "documents": int((split.held_out == held_out).sum()),
        "chunks": len(chunks),
        "tokens": sum(len(chunk) - 1 for chunk in chunks),
    }


def _strata(split: Split) -> dict[str, dict[str, int]]:
    every = Counter(split.strata)
    held_out = Counter(name for name, held in zip(split.strata, split.held_out, strict=True) if held)
    return {
        name: {"train": count - held_out[name], "validation": held_out[name]} for name, count in every.most_common()
    }


def parameters_of(model: str) -> int:
    """How many parameters a model has, from its configuration."""
    sizes = skeleton_sizes(load_config(model))
    # an estimate is enough: matrices of the blocks and one embedding
    return 12 * sizes.n_layers * sizes.d_model**2 + sizes.vocab * sizes.d_model
