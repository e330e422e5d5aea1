"""Of which kind a term is, by stated rules of form: its head word, its ending, or its spelling.

Endings of medicines are stems of international non-proprietary names (INN) and what is common to antiseizure
medicines. A user who knows better says so: `--terms "drug:valproic acid"`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engramscope.questions.text import stem, words


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of term.

    Attributes:
        noun: what a question calls it.
        heads: head words (stems) of its terms.
        endings: ends of its one-word terms.
    """

    noun: str
    heads: frozenset[str] = frozenset()
    endings: tuple[str, ...] = ()


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in text.split())


def _endings(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KINDS: dict[str, Kind] = {
    "disorder": Kind(
        "condition",
        _stems(
            "syndrome epilepsy disease disorder encephalopathy sclerosis dysplasia palsy ataxia dystonia migraine "
            "autism schizophrenia deficiency malformation encephalitis dementia heterotopia glioma "
            "seizure convulsion spasm hemiplegia dyskinesia disability atrophy epilepticus neurofibromatosis"
        ),
        _endings("neuropathy myopathy encephaly gyria plegia"),
    ),
    "drug": Kind(
        "drug",
        _stems("valproate topiramate stiripentol rufinamide cannabidiol everolimus sulthiame fenfluramine ketamine"),
        _endings(
            "zepam zolam bazam barbital racetam phenytoin suximide bamate azepine trigine gabapentin gabalin "
            "gabatrin gabine ampanel samide oxetine vastatin sartan triptan dipine pranolol"
        ),
    ),
    "gene": Kind("gene"),
    "method": Kind(
        "method",
        _stems("imaging tomography spectroscopy stimulation lobectomy hemispherotomy callosotomy diet monitoring"),
        ("graphy", "spectrometry", "ectomy"),
    ),
    "region": Kind(
        "brain region",
        _stems("cortex lobe gyrus hippocampus amygdala thalamus nucleus cerebellum striatum operculum insula"),
    ),
    "molecule": Kind(
        "molecule",
        _stems("receptor channel protein factor kinase transporter enzyme antibody hormone peptide"),
    ),
}

#: the head of "epilepsy of infancy" stands before the preposition
_PREPOSITIONS = frozenset({"of", "in", "with", "for", "due", "during", "without", "against", "type"})
_GENE = re.compile(r"[A-Z]{2,6}[0-9]{1,2}(?:[A-Z]{1,2}[0-9]{0,2})?")
#: words that say of the symbol before them that it is a gene
GENE_CUES = _stems("gene mutation variant")


def kind_of(term: str) -> str:
    """The name of a term's kind, "" where no rule applies (genes are told by their use, see `looks_like_gene`)."""
    every = [stem(word) for word in words(term)]
    stop = next((place for place, word in enumerate(every) if place and word in _PREPOSITIONS), len(every))
    if not every:
        return ""
    head = every[stop - 1]
    for name, kind in KINDS.items():
        if head in kind.heads or (kind.endings and head.endswith(kind.endings)):
            return name
    return ""


def looks_like_gene(word: str) -> bool:
    """Whether a word has the form of a gene symbol: capitals and digits, such as SCN1A, KCNQ2, PCDH19."""
    return _GENE.fullmatch(word) is not None
