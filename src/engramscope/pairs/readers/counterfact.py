"""CounterFact, in the schema of ROME (`requested_rewrite`) or of EasyEdit (`prompt ground_truth target_new`).

Correct is what is true, incorrect what the edit is to make of it; both get a leading space. There is no corrupted
prompt: for noise and ablations, or see `engramscope.pairs.pairing`. Group: the relation, or where that is not given
the sentence without its subject; labels `template` and, where given, `relation`.

Source: kmeng01/rome, dsets/counterfact.py; zjunlp/EasyEdit.
"""

from __future__ import annotations

from collections.abc import Mapping

from engramscope.pairs.pair import CharSpan, Pair
from engramscope.pairs.readers._base import Faults, Reader, Source, objects_of, spaced, texts_of
from engramscope.pairs.readers._facts import subject_span


class CounterFact(Reader):
    """Reads CounterFact JSON files."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the names of its keys."""
        if not source.head.startswith("["):
            return 0
        rome = ("case_id", "requested_rewrite")
        easy = ("case_id", "ground_truth", "target_new")
        return 2 if any(all(f'"{key}"' in source.head for key in keys) for keys in (rome, easy)) else 0

    def read(self, source: Source) -> list[Pair]:
        """The pairs, called after their case; every fault is named."""
        faults = Faults(source.name)
        pairs: list[Pair] = []
        seen: set[str] = set()
        for index, entry in enumerate(objects_of(source.json(), "the file", faults)):
            where = f"record {index}"
            if isinstance(entry, dict) and "requested_rewrite" in entry:
                pair = _rome(entry, entry["requested_rewrite"], where, faults)
            else:
                pair = _easy(entry, where, faults)
            if pair is None:
                continue
            if pair.id in seen:
                faults.add(where, f"{pair.id!r} was given before")
            seen.add(pair.id)
            pairs.append(pair)
        faults.check()
        return pairs


def _rome(entry: Mapping[str, object], rewrite: object, where: str, faults: Faults) -> Pair | None:
    texts = texts_of(rewrite, ("prompt", "subject"), where, faults)
    if texts is None or not isinstance(rewrite, Mapping):
        return None
    true = texts_of(rewrite.get("target_true"), ("str",), f"{where}, target_true", faults)
    new = texts_of(rewrite.get("target_new"), ("str",), f"{where}, target_new", faults)
    template, subject = texts["prompt"], texts["subject"]
    if template.count("{}") != 1:
        faults.add(where, f"the prompt must hold {{}} once, where the subject goes: {template[:80]!r}")
        return None
    if true is None or new is None:
        return None
    # not str.format: other braces in the text are text
    start = template.index("{}")
    span = (start, start + len(subject))
    return _pair(entry, template.replace("{}", subject), span, template, str(rewrite.get("relation_id") or ""),
                 true["str"], new["str"], where)  # fmt: skip


def _easy(entry: object, where: str, faults: Faults) -> Pair | None:
    texts = texts_of(entry, ("prompt", "subject", "ground_truth", "target_new"), where, faults)
    span = subject_span(texts["prompt"], texts["subject"], where, faults) if texts else None
    if texts is None or span is None or not isinstance(entry, Mapping):
        return None
    template = texts["prompt"][: span[0]] + "{}" + texts["prompt"][span[1] :]
    return _pair(entry, texts["prompt"], span, template, "", texts["ground_truth"], texts["target_new"], where)


def _pair(
    entry: Mapping[str, object],
    prompt: str,
    span: CharSpan,
    template: str,
    relation: str,
    true: str,
    new: str,
    where: str,
) -> Pair:
    return Pair(
        id=f"case-{entry['case_id']}" if "case_id" in entry else where.replace(" ", "-"),
        clean=prompt, correct=(spaced(true),), incorrect=(spaced(new),), group=relation or template,
        spans={"subject": span}, labels={"template": template, **({"relation": relation} if relation else {})},
    )  # fmt: skip


COMPONENT = CounterFact
