"""What one edit did, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engramscope.editing.words import label_words
from engramscope.report.words import NARROW_SPACE, percent


def edit_sentences(manifest: Mapping[str, Any]) -> list[str]:
    """What an edit did, each sentence with its numbers; its warnings last."""
    facts = manifest["facts"]
    said = [_one(facts[0]) if manifest["n"] == 1 else _many(manifest)]
    said.append(f"{label_words(manifest['method'])}, {_where(manifest)}. {_upper(manifest['line'])}.")
    if manifest["checkpoint"]:
        said.append(_exported(manifest["checkpoint"], manifest["model"]["dtype"]))
    if manifest["adapter"]:
        said.append(f"The edit as an adapter is in {manifest['adapter']['folder']}.")
    return said


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """What is to be feared, a sentence each."""
    return [*manifest["health"]["warnings"], *_missed(manifest)]


def share(value: float) -> str:
    """A probability in percent; one that is nearly 0 or 1 is not written as if it were."""
    if 0 < value < 0.0005:
        return f"under 0.1{NARROW_SPACE}%"
    return f"over 99.9{NARROW_SPACE}%" if 0.9995 < value < 1 else percent(value)


def _one(fact: Mapping[str, Any]) -> str:
    before, after = fact["before"], fact["after"]
    several = f" (mean over its {after['tokens']} tokens)" if after["tokens"] > 1 else ""
    said = (
        f"After “{fact['prompt']}” the model gives “{fact['target']}” a probability{several} of "
        f"{share(after['target'])} with the edit, and of {share(before['target'])} without it"
    )
    if fact["true"] is None:
        return f"{said}."
    return f"{said}; “{fact['true']}” goes from {share(before['true'])} to {share(after['true'])}."


def _many(manifest: Mapping[str, Any]) -> str:
    facts = manifest["facts"]
    stated = {when: sum(fact[when]["stated"] for fact in facts) for when in ("before", "after")}
    shown = "" if len(facts) == manifest["n"] else f" looked at (of {manifest['n']:,} edited)"
    return (
        f"Of {len(facts)} facts{shown}, the model goes on with the new answer in {stated['after']} with the edit, and "
        f"in {stated['before']} without it."
    )


def _missed(manifest: Mapping[str, Any]) -> list[str]:
    missed = [fact for fact in manifest["facts"] if not fact["after"]["stated"]]
    if not missed:
        return []
    if manifest["n"] == 1:
        return [f"With the edit the model does not go on with “{missed[0]['target']}”: the edit did not take."]
    return [f"With the edit the model does not go on with the new answer in {len(missed)} facts: they did not take."]


def _exported(checkpoint: Mapping[str, Any], dtype: str) -> str:
    """Where the whole model is, and how much of the edit half precision has kept."""
    said, stored = f"The edited model is in {checkpoint['folder']}", checkpoint["stored"]
    if stored > 0.999:
        return f"{said}."
    return (
        f"{said}; in {dtype} it holds {percent(stored)} of the edit, the rest was rounded away. Load the model in "
        "float32 (--dtype float32) to keep it."
    )


def _where(manifest: Mapping[str, Any]) -> str:
    names = list(manifest["parameters"])
    if not names:
        return "nothing changed"
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"in {names[0]}{rest}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
