"""The questions of a whole study: proposed from what the model was trained on, or a person's own."""

from __future__ import annotations

import shutil
from typing import Any

import pandas as pd

from engramscope.clap.call import Call
from engramscope.corpus import Corpus
from engramscope.corpus.table import read_corpus
from engramscope.finetune import FinetuneResult
from engramscope.models import load_tokenizer
from engramscope.pairs import Pair, PairSet, read_pairs
from engramscope.questions import propose
from engramscope.questions import write as write_questions

#: examples of each kind on the page
_EXAMPLES = 4


def ask(call: Call, corpus: Corpus, tuned: FinetuneResult) -> dict[str, Any]:
    """Questions from the abstracts that the model was trained on, in both forms; files that are there are kept.

    Raises:
        InputError: no question can be proposed.
    """
    folder, study = call.folder / "questions", call.study
    folder.mkdir(exist_ok=True)
    seen = learned(read_corpus(corpus.folder), pd.read_parquet(tuned.folder / "split.parquet"),
                   titles=tuned.manifest()["settings"]["text"] != "abstract")  # fmt: skip
    tokenizer, said, facts = load_tokenizer(str(tuned.folder)), {}, {}
    for form, given in (("prompts", study.questions.prompts), ("answers", study.questions.answers)):
        file = folder / f"{form}.jsonl"
        if not file.exists() and given:
            shutil.copyfile(call.path(given), file)
        elif not file.exists():
            proposal = propose(
                seen, tokenizer, terms=study.corpus.terms, definitional=study.questions.definitional,
                associative=study.questions.associative, min_documents=study.questions.min_documents, form=form,
                seed=study.seed, progress=call.progress,
            )  # fmt: skip
            # a review table without its questions is what a killed run has left
            write_questions(proposal, file, force=True)
        pairs = read_pairs(file)
        said[form], facts[form] = _counted(pairs, len(seen)), [_fact(pair) for pair in pairs]
    # what makes a good prompt and a good whole answer differs, and so do the facts that are asked for
    said["answers"]["facts_in_prompts"] = sum(fact in set(facts["prompts"]) for fact in facts["answers"])
    return said


def learned(table: pd.DataFrame, split: pd.DataFrame, *, titles: bool) -> pd.DataFrame:
    """The rows of a corpus that a model was trained on, as it read them.

    Args:
        table: the corpus.
        split: of its training, with the row of the corpus that each document is.
        titles: whether titles were learned, too; otherwise they are empty here.
    """
    seen = table.iloc[split.loc[split["side"] == "train", "row"].to_numpy()]
    return seen if titles else seen.assign(Title="")


def _fact(pair: Pair) -> tuple[str, str]:
    """Subject and answer, by which the same fact is known in both forms."""
    start, end = pair.spans.get("subject", (0, len(pair.clean)))
    answer = pair.labels.get("answer", pair.correct[0] if pair.correct else "")
    return pair.clean[start:end].casefold(), answer.strip().casefold()


def _counted(pairs: PairSet, abstracts: int) -> dict[str, Any]:
    kinds = [pair.labels.get("kind", "all") for pair in pairs]
    examples = [
        {"kind": kind, "clean": pair.clean, "correct": pair.correct[0],
         "incorrect": pair.incorrect[0] if pair.incorrect else "", "corrupted": pair.corrupted or ""}
        for kind in dict.fromkeys(kinds)
        for pair in [pair for pair, one in zip(pairs, kinds, strict=True) if one == kind][:_EXAMPLES]
    ]  # fmt: skip
    return {"abstracts": abstracts, "kinds": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "examples": examples}  # fmt: skip
