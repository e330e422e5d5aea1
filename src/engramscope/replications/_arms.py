"""From a replication and a model to the studies that are run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engramscope.errors import InputError, ModelError, PairsError, StudyError
from engramscope.models import Model
from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.readers import read_pairs
from engramscope.pairs.vocabulary import Vocabulary
from engramscope.pairs.write import write_jsonl
from engramscope.replications._file import Replication
from engramscope.replications._views import as_reason
from engramscope.study_file import parse_study, study_toml
from engramscope.study_inputs import Inputs, inputs_of

#: pairs that no task makes, beside the arms' folders
PAIRS_FILE = "pairs.jsonl"
#: on a model that is not the published one: fewer known pairs than this are refused
_LEAST = 5


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        model: the `[model]` section of the studies.
        published: whether that is the model that the values were published for.
        facts: files of facts.
        quick: fewer pairs, draws and resamples.
    """

    model: Mapping[str, Any]
    published: bool
    facts: tuple[Path, ...] = ()
    quick: bool = False


@dataclass(frozen=True)
class Arms:
    """The studies of a replication.

    Attributes:
        inputs: by the name of the arm.
        folders: arm -> name of its folder; arms whose studies are the same share one.
        remarks: sentences on what was adapted to the model at hand.
        why_not: why an arm cannot be run on a model that is not the published one.
    """

    inputs: Mapping[str, Inputs]
    folders: Mapping[str, str]
    remarks: tuple[str, ...]
    why_not: Mapping[str, str]


def build_arms(replication: Replication, request: Request, model: Model, out: Path) -> Arms:
    """Every study that some value needs, adapted to the model, with its pairs.

    Pairs that no task makes (facts from files, and those that the replication gives itself) are written to
    `out/pairs.jsonl`, so that each study can be run again from its own folder.

    A model that is not the published one need not suit every arm (its tokenizer, its modules): such an arm is left out,
    with the reason.

    Raises:
        InputError: every fault of every arm.
    """
    remarks: dict[str, None] = {}
    pairs = _own_pairs(replication, request, model, remarks)
    if pairs is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_jsonl(pairs, out / PAIRS_FILE)
    inputs: dict[str, Inputs] = {}
    faults: list[str] = []
    why_not: dict[str, str] = {}
    wanted = {*replication.arms, *(replication.file.view[view].arm for view in replication.views)}
    for arm in (name for name in replication.file.arm if name in wanted):
        raw = _adapted(replication, arm, request, model.anatomy.n_layers, pairs is not None, remarks)
        try:
            study = parse_study(raw, f"{replication.name}, arm {arm!r}")
            given = None if pairs is None else pairs.limit(study.pairs.limit)
            inputs[arm] = inputs_of(study, study_toml(raw), out / arm, given)
        except (PairsError, ModelError) as error:
            why_not[arm] = as_reason(error)
            faults += error.faults if request.published else ()
        except InputError as error:
            faults += error.faults
    if faults or not inputs:
        raise InputError(list(dict.fromkeys(faults or why_not.values())))
    return Arms(inputs, _shared(inputs), tuple(remarks), why_not)


def _adapted(
    replication: Replication, arm: str, request: Request, n_layers: int, own: bool, remarks: dict[str, None]
) -> dict[str, Any]:
    """The study of an arm as plain data: for this model, and as quick as asked for."""
    raw = replication.file.study_of(arm, str(request.model["name"]))
    raw["name"] = f"{replication.name} {arm}"
    raw["model"] = {**raw["model"], **request.model}
    pairs, facts = raw["pairs"], replication.file.facts
    if own:
        keep = {key: pairs[key] for key in ("limit", "known", "at_least") if key in pairs}
        pairs = raw["pairs"] = {"file": f"../{PAIRS_FILE}", **keep}
    elif facts is not None and facts.into == "files" and request.facts:
        pairs["files"] = [str(path) for path in request.facts]
    for sweep in raw["sweep"]:
        if sweep.get("window", 1) > n_layers:
            remarks[f"Windows of {sweep['window']} layers were cut to the model's {n_layers}."] = None
            sweep["window"] = n_layers
    if pairs.get("known") and not request.published:
        pairs["at_least"] = min(_LEAST, pairs.get("at_least", _LEAST))
    return _quick(raw, replication, request, remarks) if request.quick else raw


def _quick(raw: dict[str, Any], replication: Replication, request: Request, remarks: dict[str, None]) -> dict[str, Any]:
    """Fewer pairs, draws, resamples and recomputed cells, never more than there are."""
    quick, pairs = replication.file.quick, raw["pairs"]
    pairs["limit"] = min(quick.limit, pairs.get("limit", quick.limit))
    if pairs.pop("known", False) and request.published:
        pairs |= {"known": True, "at_least": 1}
    elif pairs.pop("at_least", None):
        remarks["Quick: pairs that the model does not know are used, too."] = None
    corruption = raw.get("corruption", {})
    if corruption.get("method") == "gaussian":
        corruption["draws"] = min(quick.draws, corruption.get("draws", quick.draws))
    raw["stats"] = {**raw.get("stats", {}), "resamples": quick.resamples}
    raw["run"] = {**raw.get("run", {}), "check": quick.check}
    return raw


def _own_pairs(replication: Replication, request: Request, model: Model, remarks: dict[str, None]) -> PairSet | None:
    """Pairs that no task makes; None where the arms' tasks make them."""
    facts = replication.file.facts
    if facts is not None and facts.into == "pairs" and request.facts:
        return _from_files(request.facts, model, remarks)
    if replication.file.given and request.published:
        return PairSet.of([_given(number, one) for number, one in enumerate(replication.file.given)], "given")
    return None


def _from_files(paths: Sequence[Path], model: Model, remarks: dict[str, None]) -> PairSet:
    """Facts whose answer is one token, from all files; ids are numbered where two files share them."""
    every = [pair for path in paths for pair in read_pairs(path)]
    vocabulary = Vocabulary(model.tokenizer)
    kept = [
        pair
        for pair in {(pair.clean, pair.correct): pair for pair in every}.values()
        if "subject" in pair.spans and all(vocabulary.is_single_answer(pair.clean, answer) for answer in pair.correct)
    ]
    if not kept:
        raise PairsError(f"None of the {len(every)} facts has a subject and an answer of one token of this model.")
    if len(kept) < len(every):
        remarks[f"Of {len(every)} facts {len(kept)} have an answer of one token and are used."] = None
    if len({pair.id for pair in kept}) < len(kept):
        kept = [Pair(**{**_fields(pair), "id": f"{number}"}) for number, pair in enumerate(kept)]
    return PairSet.of(kept, "facts")


def _fields(pair: Pair) -> dict[str, Any]:
    return {name: getattr(pair, name) for name in Pair.__dataclass_fields__}


def _given(number: int, given: Any) -> Pair:
    start = given.clean.find(given.subject)
    if start < 0:
        raise StudyError(f"The subject {given.subject!r} does not stand in the prompt {given.clean!r}.")
    spans = {"subject": (start, start + len(given.subject))}
    return Pair(id=f"given-{number}", clean=given.clean, correct=tuple(given.correct), spans=spans)


def _shared(inputs: Mapping[str, Inputs]) -> dict[str, str]:
    """Arm -> folder: arms whose studies and pairs are the same, but for the name, are one study."""
    first: dict[str, str] = {}
    folders: dict[str, str] = {}
    for arm, one in inputs.items():
        study = {key: value for key, value in one.resolved.items() if key != "name"}
        key = json.dumps([study, [pair.id for pair in one.pairs]], sort_keys=True)
        folders[arm] = first.setdefault(key, arm)
    return folders
