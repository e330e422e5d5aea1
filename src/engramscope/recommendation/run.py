"""Trace the facts under two corruptions, and say which layers hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engramscope.locate.experiment import Progress
from engramscope.models import Model, load_model
from engramscope.pairs import PairSet, read_pairs
from engramscope.recommendation.facts import SUBJECT, pairs_of_facts
from engramscope.recommendation.layers import Profile, agreement, profiles
from engramscope.recommendation.page import write_page
from engramscope.recommendation.words import sentences
from engramscope.results.atomic import write_text
from engramscope.results.findings import finite
from engramscope.results.folders import refuse_occupied
from engramscope.results.read import read_manifest
from engramscope.study import StudyResult, run_study
from engramscope.study_file import parse_study, study_toml
from engramscope.study_inputs import inputs_of

RESULT = "recommendation.json"
SINGLE, WINDOWS, AT_THE_END = "MLP layers", "MLP windows", "MLP layers at the last token"
#: width of the windows beside the single layers, as a share of the layers: 10 of 48
_WIDTH = 10 / 48


@dataclass(frozen=True)
class Recommendation:
    """A finished recommendation on disk.

    Attributes:
        folder: holds a results folder for each corruption, `recommendation.json` and `recommendation.html`.
    """

    folder: Path

    @property
    def found(self) -> dict[str, Any]:
        """What stands in `recommendation.json`."""
        return json.loads((self.folder / RESULT).read_text(encoding="utf-8"))

    @property
    def layers(self) -> tuple[int, ...]:
        """The recommended layers; empty where none can be recommended."""
        main = self.found["main"]
        return tuple(main["recommended"]) if main["supported"] else ()

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "recommendation.html"

    def sentences(self) -> list[str]:
        """The answer in sentences."""
        return sentences(self.found)


def recommend_layers(
    facts: Path | str,
    model: Model | str,
    out: Path | str,
    *,
    limit: int | None = None,
    known: bool = True,
    at_least: int = 20,
    draws: int = 10,
    resamples: int = 2000,
    seed: int = 0,
    resume: bool = False,
    progress: Progress | None = None,
) -> Recommendation:
    """Which layers' MLPs hold these facts at the last subject token.

    Every layer's MLP output at the last subject token is restored by itself, under token replacement and under noise on
    the subject. Recommended are the fewest layers that hold the peak of the mean effect in 90 % of the bootstrap
    resamples (logit difference, token replacement); only where the peak layer is detected after correction.

    Args:
        facts: a pair file; facts without a corrupted prompt are paired within their templates.
        model: a model, or its name.
        out: a new folder.
        limit: at most this many pairs.
        known: only facts that the model knows.
        at_least: fewer pairs than this, after that filter, are refused.
        draws: of the noise.
        resamples: of bootstrap and permutation.
        seed: of everything random.
        resume: go on in a folder where an earlier run stopped.
        progress: called with (what, done, total).

    Raises:
        InputError: the facts, the model or the folder are at fault.
    """
    folder, path = Path(out), Path(facts)
    refuse_occupied(folder, resume)
    read_pairs(path)  # what is wrong with the file is said before a model is loaded
    held = load_model(model) if isinstance(model, str) else model
    pairs = pairs_of_facts(path, held.tokenizer, limit, seed)
    source = _source(pairs, path, limit)
    filters = {"known": True, "at_least": at_least} if known else {}
    results: dict[str, StudyResult] = {}
    for corruption in ("str", "gaussian"):
        study = _study(held, {**source, **filters}, corruption, draws, resamples, seed)
        inputs = inputs_of(parse_study(study, corruption), study_toml(study), Path(), pairs)
        arm = folder / corruption
        there = resume and (arm / "manifest.json").exists()
        results[corruption] = run_study(inputs, arm, resume=there, model=held, progress=progress)
    found = finite(_found(results, held, resamples, seed))
    write_text(folder / RESULT, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
    write_page(folder, found)
    return Recommendation(folder)


def _source(pairs: PairSet, path: Path, limit: int | None) -> dict[str, Any]:
    """The `[pairs]` section that gives these pairs again."""
    where = str(path.absolute())
    source = {"task": "factual", "files": [where]} if pairs.name == "factual" else {"file": where}
    return {**source, "limit": limit}


def _study(
    model: Model, pairs: Mapping[str, Any], corruption: str, draws: int, resamples: int, seed: int
) -> dict[str, Any]:
    width = max(3, round(_WIDTH * model.anatomy.n_layers))
    place = {"site": "mlp_out", "positions": [f"{SUBJECT}_last"]}
    sweeps: list[dict[str, Any]] = [{"name": SINGLE, **place}, {"name": AT_THE_END, **place, "positions": "last"}]
    if width <= model.anatomy.n_layers:
        sweeps.append({"name": WINDOWS, **place, "window": width})
    return {
        "schema": 1,
        "name": f"layers {corruption}",
        "seed": seed,
        "model": {"name": model.name or "model"},
        "pairs": {key: value for key, value in pairs.items() if value is not None},
        "corruption": {"method": corruption, **({"draws": draws} if corruption == "gaussian" else {})},
        "sweep": sweeps,
        "metrics": {"names": ["logit_diff", "prob"]},
        "stats": {"resamples": resamples},
    }


def _found(results: Mapping[str, StudyResult], model: Model, resamples: int, seed: int) -> dict[str, Any]:
    curves: dict[tuple[str, str], Profile] = {}
    arms = []
    for corruption, result in results.items():
        effects, manifest = result.effects(), result.manifest()
        clusters = dict(zip(effects["pair"], effects["group"], strict=True))
        for one in profiles(effects, result.summary(), clusters, resamples=resamples, seed=seed):
            if one.metric == "logit_diff":
                curves[corruption, one.sweep] = one
        warnings = [item["message"] for item in manifest["audit"] if item["severity"] == "warning"]
        arms.append({"folder": corruption, "warnings": warnings, "gaps": manifest["findings"]["gaps"],
                     "parity": (manifest.get("parity") or {}).get("max_abs_diff")})  # fmt: skip
    main, noise = curves["str", SINGLE], curves["gaussian", SINGLE]
    manifest = read_manifest(results["str"].folder)
    wide, end = curves.get(("str", WINDOWS)), curves.get(("str", AT_THE_END))
    return {
        "model": model.name or "the model",
        "known": manifest.get("known"),
        "pairs": manifest["counts"],
        "main": main.plain(),
        "noise": noise.plain(),
        "windows": None if wide is None else wide.plain(),
        "last": None if end is None else end.plain(),
        "agreement": agreement(main, noise),
        "arms": arms,
    }
