"""Everything that a study needs before a model runs, with every fault of it named at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engramscope.corruptions import make_corruption
from engramscope.corruptions._base import Corruption
from engramscope.errors import InputError, shortened
from engramscope.locate.cells import Cell, cells_of
from engramscope.metrics import check_targets, get_metric
from engramscope.metrics._base import Target
from engramscope.models.anatomy import Anatomy
from engramscope.models.site import GLOBAL_SITES, HEAD_SITES, KV_SITES, SITES, is_module_path
from engramscope.pairs import PairSet, TokenizedPair, read_pairs
from engramscope.registry import nearest
from engramscope.study_file import StudyFile, SweepSection, read_study
from engramscope.tasks import make_pairs

#: appended to the name of a sweep of windows for the single layers that are shown beside it
SINGLES = " (single layers)"


@dataclass(frozen=True)
class Inputs:
    """A study as declared, with its pairs and its corruption.

    Attributes:
        study: the validated study.
        text: the study file, word for word.
        pairs: the pairs, limited as the study says.
        corruption: made with its options.
        sweeps: the declared sweeps, and for windows the single layers beside them.
    """

    study: StudyFile
    text: str
    pairs: PairSet
    corruption: Corruption
    sweeps: tuple[SweepSection, ...]

    @property
    def resolved(self) -> dict[str, Any]:
        """The study with every default filled in, as plain data."""
        return self.study.model_dump(mode="json", by_alias=True)

    def digest(self, weight_hash: str) -> str:
        """Hash of what the results depend on: the study, the pairs and the weights."""
        pairs = [[p.id, p.clean, p.corrupted, p.correct, p.incorrect, p.group, dict(p.spans)] for p in self.pairs]
        # how fast it is computed does not change what is found
        study = {key: value for key, value in self.resolved.items() if key != "run"}
        text = json.dumps([study, pairs, weight_hash], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_inputs(path: Path) -> Inputs:
    """Read a study file and its pairs, and check every name in it.

    Raises:
        InputError: all faults that can be found without a model.
    """
    study = read_study(path)
    return inputs_of(study, path.read_text(encoding="utf-8"), path.parent)


def inputs_of(study: StudyFile, text: str, folder: Path, given: PairSet | None = None) -> Inputs:
    """The same for a study that is already parsed.

    Args:
        study: the study.
        text: its file, word for word.
        folder: where relative paths start.
        given: pairs to use instead of those that the study names.
    """
    faults: list[str] = []
    corruption = _collect(faults, lambda: make_corruption(study.corruption.method, study.corruption.options))
    for name in study.metrics.names:
        _collect(faults, lambda name=name: get_metric(name))
    faults += [fault for sweep in study.sweep for fault in _site_faults(sweep)]
    if corruption is not None and corruption.level == "activation":
        faults += [
            f"Sweep {sweep.name!r}: direction {sweep.direction!r} needs a corrupted run, and corruption "
            f"{study.corruption.method!r} makes none: it writes values into the clean run. Use direction = \"noise\"."
            for sweep in study.sweep
            if sweep.direction != "noise"
        ]  # fmt: skip
    pairs = given if given is not None else _collect(faults, lambda: _pairs(study, folder))
    if pairs is not None and not len(pairs):
        faults.append("There are no pairs: nothing could be patched.")
    if faults or corruption is None or pairs is None:
        raise InputError(faults)
    return Inputs(study, text, pairs, corruption, _with_singles(study.sweep))


def check_against_model(inputs: Inputs, tokens: Sequence[TokenizedPair], anatomy: Anatomy, tokenizer: Any) -> None:
    """Layers, heads, positions and answers that only a tokenizer and a model can judge.

    Raises:
        InputError: all faults at once.
    """
    faults = [fault for sweep in inputs.study.sweep for fault in _size_faults(sweep, anatomy)]
    faults += [fault for sweep in inputs.study.sweep for fault in _role_faults(sweep, tokens)]
    for name in inputs.study.metrics.names:
        metric = get_metric(name)
        for pair in tokens:
            faults += check_targets(metric, Target(pair.correct, pair.incorrect), pair.pair.id, tokenizer.decode)
    if faults:
        raise InputError(shortened(list(dict.fromkeys(faults))))


def all_cells(inputs: Inputs, anatomy: Anatomy, tokens: Sequence[TokenizedPair]) -> dict[str, list[Cell]]:
    """The cells of every sweep, by the name of the sweep."""
    return {sweep.name: list(cells_of(sweep, anatomy, tokens)) for sweep in inputs.sweeps}


def _pairs(study: StudyFile, folder: Path) -> PairSet:
    section = study.pairs
    if section.task is not None:
        return make_pairs(section.task, section.limit, study.seed)
    assert section.file is not None
    return read_pairs(folder / section.file, section.format).limit(section.limit)


def _collect(faults: list[str], make: Any) -> Any:
    try:
        return make()
    except InputError as error:
        faults.extend(error.faults)
        return None


def _site_faults(sweep: SweepSection) -> list[str]:
    faults = []
    if is_module_path(sweep.site) and "." not in sweep.site and not _could_be_module(sweep.site):
        faults.append(f"Sweep {sweep.name!r}: unknown site {sweep.site!r}{nearest(sweep.site, SITES)}")
    if not is_module_path(sweep.site) and sweep.site not in HEAD_SITES and sweep.heads != "all":
        faults.append(
            f"Sweep {sweep.name!r}: site {sweep.site!r} has no heads, so heads must be left out "
            f"(sites with heads: {', '.join(site for site in SITES if site in HEAD_SITES)})."
        )
    if sweep.site in GLOBAL_SITES and (sweep.layers != "each" or sweep.window > 1):
        faults.append(f"Sweep {sweep.name!r}: site {sweep.site!r} exists once, so layers and window must be left out.")
    return faults


def _could_be_module(site: str) -> bool:
    # the only modules of a causal language model that stand at its top level
    return site in {"lm_head", "embed_out", "model", "transformer"}


def _size_faults(sweep: SweepSection, anatomy: Anatomy) -> list[str]:
    faults = []
    if sweep.layers != "each" and (bad := [layer for layer in sweep.layers if layer >= anatomy.n_layers]):
        faults.append(
            f"Sweep {sweep.name!r}: layer {_listed(bad)} does not exist; the model has {anatomy.n_layers} layers, "
            f"0 to {anatomy.n_layers - 1}."
        )
    count = anatomy.n_kv_heads if sweep.site in KV_SITES else anatomy.n_heads
    if not isinstance(sweep.heads, str) and (bad := [head for head in sweep.heads if head >= count]):
        kind = "key/value heads" if sweep.site in KV_SITES else "heads"
        faults.append(
            f"Sweep {sweep.name!r}: head {_listed(bad)} does not exist; site {sweep.site!r} has {count} {kind}, "
            f"0 to {count - 1}."
        )
    if sweep.window > anatomy.n_layers:
        faults.append(
            f"Sweep {sweep.name!r}: window {sweep.window} is wider than the model's {anatomy.n_layers} layers."
        )
    if not is_module_path(sweep.site) and sweep.site in anatomy.refusals:
        faults.append(f"Sweep {sweep.name!r}: site {sweep.site!r} is not offered: {anatomy.refusals[sweep.site]}")
    return faults


def _role_faults(sweep: SweepSection, tokens: Sequence[TokenizedPair]) -> list[str]:
    if isinstance(sweep.positions, str):
        return []
    known = tuple(sorted({name for pair in tokens for name in (*pair.clean.spans, *pair.clean.roles)}))
    return [
        f"Sweep {sweep.name!r}: no prompt has a position {role!r}{nearest(role, known)}"
        for role in sweep.positions
        if role not in known
    ]


def _with_singles(sweeps: Sequence[SweepSection]) -> tuple[SweepSection, ...]:
    """Windows inflate effects: beside each sweep of windows its single layers are run as well."""
    added: list[SweepSection] = []
    for sweep in sweeps:
        single = sweep.model_copy(update={"name": sweep.name + SINGLES, "window": 1, "layers": "each"})
        alike = [s for s in sweeps if s.model_copy(update={"name": single.name}) == single]
        if sweep.window > 1 and not alike:
            added.append(single)
    return (*sweeps, *added)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
