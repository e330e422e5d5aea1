"""Run a whole study, stage by stage; what is finished stays, and is not done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from engramscope.clap import studies
from engramscope.clap.asked import ask
from engramscope.clap.call import BASE, Call, Progress, Say, relative
from engramscope.clap.corpus_stage import corpus_of, said_of
from engramscope.clap.page import write_page
from engramscope.clap.study import ClapStudy
from engramscope.clap.tables import clap_tables
from engramscope.clap.words import sentences
from engramscope.corpus import Corpus
from engramscope.corpus.table import TABLE
from engramscope.errors import CheckError, EngramscopeError, InputError, ResultsError
from engramscope.finetune import FinetuneResult, Settings, resolve_settings, run_finetune
from engramscope.finetune.weights import write_random_base
from engramscope.models import Model, load_config, load_model
from engramscope.pairs import read_pairs
from engramscope.provenance import versions
from engramscope.report.load import load
from engramscope.report.sentences import answer
from engramscope.results.atomic import disk_sentence, write_json, write_text
from engramscope.results.folders import is_empty, is_scrap, refuse_occupied
from engramscope.results.store import differences
from engramscope.study import StudyResult, run_study
from engramscope.study_file import study_toml
from engramscope.study_inputs import located, read_inputs
from engramscope.study_steps import refuse_early

RESULT = "clap.json"
STAGES = ("corpus", "finetune", "questions", "studies")


@dataclass(frozen=True)
class ClapResult:
    """A whole study on disk.

    Attributes:
        folder: holds corpus/, finetune/, questions/, a folder per study, clap.json and report.html.
    """

    folder: Path

    def found(self) -> dict[str, Any]:
        """What stands in `clap.json`."""
        return json.loads((self.folder / RESULT).read_text(encoding="utf-8"))

    def sentences(self) -> list[str]:
        """The answer in a few sentences; none before the last stage."""
        found = self.found()
        return sentences(found) if found["status"] == "complete" else []

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def run_clap(
    study: ClapStudy,
    out: Path | str,
    *,
    here: Path = Path(),
    quick: bool = False,
    resume: bool = False,
    until: str = "studies",
    progress: Progress | None = None,
    say: Say | None = None,
) -> ClapResult:
    """Corpus → fine-tuning → questions → localisation → transplant → one page.

    Args:
        study: from `read_clap_study`, quickened or not.
        out: a new folder.
        here: where relative paths of the study start.
        quick: said on the page: it is a try.
        resume: go on in a folder where an earlier run of the same study stopped. Questions that were edited there in
            between are taken as they are.
        until: the last stage that is run (`STAGES`); for a look at the questions before they are asked.
        progress: called with (what, done, total).
        say: called with sentences worth knowing while it runs.

    Raises:
        InputError: whatever a stage finds at fault with its input.
    """
    if until not in STAGES:
        raise InputError(f"There is no stage {until!r}; the stages are {', '.join(STAGES)}.")
    folder = Path(out)
    refuse_occupied(folder, resume)
    _refuse_early(study, here)
    begun = {"schema": 1, "status": "running", "study": study.identity(), "files": _hashes(study, here),
             "quick": quick}  # fmt: skip
    before, made = _earlier(folder, begun, resume), not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    call = Call(study, folder, here, progress, say or (lambda text: None))
    # what an earlier run has found stays until there is something newer
    found: dict[str, Any] = {**before, **begun, "status": before.get("status", "running"), "versions": versions()}
    write_json(folder / RESULT, found)
    stages = STAGES[: STAGES.index(until) + 1]
    try:
        corpus = corpus_of(call)
    except EngramscopeError:
        if not before:
            _leave_nothing(folder, made)
        raise
    found["corpus"] = said_of(call, corpus)
    tuned = _finetune(call, corpus) if "finetune" in stages else {}
    if tuned:
        best = best_of(tuned)
        found |= {"finetune": {name: one.manifest() for name, one in tuned.items()}, "best": best}
        if "questions" in stages:
            found["questions"] = ask(call, corpus, tuned[best])
        if "studies" in stages:
            found |= _studies(call, tuned[best])
            found["status"] = "complete"
    write_json(folder / RESULT, found)
    if found["status"] == "complete":
        write_page(folder, found)
    return ClapResult(folder)


def _refuse_early(study: ClapStudy, here: Path) -> None:
    """Everything that can be told before hours have gone by.

    Raises:
        InputError: all of it.
    """
    faults: list[str] = []
    for preset in study.finetune.presets:
        _collect(faults, lambda preset=preset: _settings(study, preset))
    _collect(faults, lambda: load_config(located(study.model.name, here)))
    own = [name for name in (study.questions.prompts, study.questions.answers) if name]
    files = [name for name in (study.corpus.file, *own) if name]
    faults += [f"There is no file {str(here / name)!r}." for name in files if not (here / name).exists()]
    for name in own:
        if (here / name).exists():
            _collect(faults, lambda name=name: _read_own(here / name, needed=name == study.questions.prompts))
    if faults:
        raise InputError(list(dict.fromkeys(faults)))


def _read_own(file: Path, *, needed: bool) -> None:
    """Read questions of one's own; prompts need the corrupted ones, which take their place.

    Raises:
        InputError: they cannot be read, or a corrupted prompt is missing.
    """
    alone = [pair.id for pair in read_pairs(file) if pair.corrupted is None]
    if needed and alone:
        raise InputError(
            f"{file}: {len(alone)} of the questions have no corrupted prompt ({', '.join(alone[:3])}), which token "
            "replacement needs. Questions with whole answers alone go into questions.answers."
        )


def _collect(faults: list[str], make: Callable[[], Any]) -> None:
    try:
        make()
    except InputError as error:
        faults += error.faults


def _earlier(folder: Path, now: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """What an earlier run of the same study has written down; empty where there was none.

    Raises:
        ResultsError: it was another study, or of other files; what differs.
    """
    file = folder / RESULT
    if not resume or not folder.exists() or not any(folder.iterdir()):
        return {}
    if not file.exists():
        raise ResultsError(f"{folder} holds no study that could go on: {RESULT} is missing.")
    before = json.loads(file.read_text(encoding="utf-8"))
    plain = json.loads(json.dumps(dict(now)))
    # what has not been done yet may still be asked for otherwise
    for section, made in (("questions", "questions/*.jsonl"), ("statistics", "*/manifest.json")):
        if not any(path.parent.name != "corpus" for path in folder.glob(made)):
            plain["study"][section] = before["study"].get(section)
    changed = [item for key in ("study", "files") for item in differences(before.get(key) or {}, plain[key])]
    if changed:
        raise ResultsError([f"{folder} holds another study; choose another folder.", *changed[:20]])
    return before


def _leave_nothing(folder: Path, made: bool) -> None:
    """Where there is no corpus nor a part of one, another study may be begun in the folder."""
    file = folder / RESULT
    if all(path == file or is_scrap(path.name) or (path.is_dir() and is_empty(path)) for path in folder.iterdir()):
        file.unlink(missing_ok=True)
        if made:
            shutil.rmtree(folder, ignore_errors=True)


def _hashes(study: ClapStudy, here: Path) -> dict[str, str]:
    """SHA-256 of the files that the study takes in."""
    found = {}
    for name in (study.corpus.file, study.questions.prompts, study.questions.answers):
        path = here / name if name else None
        path = path / TABLE if path is not None and path.is_dir() else path
        if path is not None and path.is_file():
            with path.open("rb") as handle:
                found[name] = file_digest(handle, "sha256").hexdigest()
    return found


def _finetune(call: Call, corpus: Corpus) -> dict[str, FinetuneResult]:
    study, found = call.study, {}
    for preset in study.finetune.presets:
        folder = call.folder / "finetune" / preset
        call.say(f"Fine-tuning {study.model.name} by {preset}.")
        found[preset] = run_finetune(
            _settings(study, preset), corpus.folder, call.model, folder, resume=folder.exists(), progress=call.progress,
            say=call.say,
        )  # fmt: skip
    return found


def _settings(study: ClapStudy, preset: str) -> Settings:
    """Of one training.

    Raises:
        InputError: every fault of the study's settings.
    """
    device = [f"device={study.model.device}"] if study.model.device in ("cpu", "cuda") else []
    sets = [f"seed={study.seed}", *device, *study.finetune.settings]
    settings = resolve_settings(
        preset, sets, terms=study.corpus.terms, random_weights=study.model.random_weights
    )  # fmt: skip
    if settings.random_weights != study.model.random_weights:
        raise InputError("finetune.settings: random_weights is a key of [model], since every stage has to know of it.")
    if settings.lora is not None and not settings.merge:
        raise InputError("finetune.settings: with merge=false training leaves an adapter, which cannot be studied.")
    return settings


def _base(call: Call, tuned: FinetuneResult) -> Model:
    """The model before training, whose weights have to be those that training began from; random ones are drawn again.

    Raises:
        CheckError: they are not.
    """
    study, manifest = call.study, tuned.manifest()
    if study.model.random_weights:
        try:
            write_random_base(call.model, manifest["settings"]["seed"], Path(call.base))
        except SafetensorError as error:
            raise ResultsError(f"{call.base} could not be written: {error}.") from None
        except OSError as error:
            raise ResultsError(disk_sentence(Path(call.base), error)) from None
    base = load_model(call.base, device=study.model.device)
    if base.weight_hash() != manifest["model"]["base"]["weights"]:
        drawn = " Another version of torch or transformers draws other weights from the same seed."
        raise CheckError(
            f"The weights of {call.base} are not those that {tuned.folder} was trained from."
            f"{drawn if study.model.random_weights else ''} Bring back those that it was trained from, or train again "
            "in a new folder."
        )
    return base


def best_of(tuned: Mapping[str, FinetuneResult]) -> str:
    """The preset whose model has the lowest held-out loss, in its best epoch; the first of several."""
    return min(tuned, key=lambda name: tuned[name].manifest()["validation_loss"]["after"])


def _studies(call: Call, tuned: FinetuneResult) -> dict[str, Any]:
    """The three studies, and CLAP's tables from the first."""
    study = call.study
    model = load_model(str(tuned.folder), device=study.model.device)
    base = _base(call, tuned)
    # relative to the study files, so that the folder can be moved
    name = f"../{relative(tuned.folder, call.folder)}"
    common = {
        "seed": study.seed,
        "resamples": study.statistics.resamples,
        "model": {"name": name, "device": study.model.device},
    }
    files = {form: f"../questions/{form}.jsonl" for form in ("prompts", "answers")}
    pairs = {form: read_pairs(call.folder / "questions" / f"{form}.jsonl") for form in files}
    modules = tuple(path for path, _ in model.hf.named_modules())
    origin = study.model.name if base.source != "folder" else str(Path(call.model).absolute())
    origin = f"../{BASE}" if study.model.random_weights else origin
    declared: Mapping[str, dict[str, Any]] = {
        "as-published": studies.as_published(common, pairs["answers"], files["answers"], modules),
        "token-replacement": studies.token_replacement(common, pairs["prompts"], files["prompts"]),
        "what-training-moved": studies.what_training_moved(
            common, pairs["prompts"], files["prompts"], origin, model.anatomy.n_layers
        ),
    }
    for title, raw in declared.items():
        _refuse_study(call, title, raw)
    results: dict[str, StudyResult] = {}
    for title in declared:
        call.say(f"Study {title}.")
        results[title] = _run(call, title, model, base if title == "what-training-moved" else None)
    return {
        "tables": clap_tables(results["as-published"]),
        "studies": {title: _said(result) for title, result in results.items()},
    }


def _refuse_study(call: Call, title: str, raw: Mapping[str, Any]) -> None:
    """What is wrong with the questions of a study, before any study is run.

    Raises:
        InputError: names the file.
    """
    file, out = call.folder / "studies" / f"{title}.toml", call.folder / title
    file.parent.mkdir(exist_ok=True)
    write_text(file, study_toml(raw))
    try:
        refuse_early(read_inputs(file), out, (out / "manifest.json").exists())
    except InputError as error:
        raise InputError([f"{(file.parent / raw['pairs']['file']).resolve()}:", *error.faults]) from None


def _run(call: Call, title: str, model: Model, base: Model | None) -> StudyResult:
    file, out = call.folder / "studies" / f"{title}.toml", call.folder / title
    there = (out / "manifest.json").exists()
    try:
        return run_study(file, out, resume=there, model=model, base=base, progress=call.progress)
    except ResultsError as error:
        hint = f"Where questions were edited after this study had been run: remove {out}, and go on with --resume."
        raise ResultsError([*error.faults, *([hint] if there else [])]) from None


def _said(result: StudyResult) -> dict[str, Any]:
    manifest = result.manifest()
    warnings = [item["message"] for item in manifest["audit"] if item["severity"] == "warning"]
    return {
        "lead": list(answer(load(result.folder)).lead),
        "warnings": warnings,
        "counts": manifest["counts"],
        "parity": manifest["parity"],
        "gaps": manifest["findings"].get("gaps"),
        "contrast": manifest["findings"].get("contrast"),
        "elapsed_s": manifest["elapsed_s"],
    }
