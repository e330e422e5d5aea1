"""Run a study: from a study file to a results folder with tables, statistics, audit and report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from engramscope import study_steps as steps
from engramscope.audit import run_checks
from engramscope.audit._base import AuditContext, Finding
from engramscope.engine.executor import Kind
from engramscope.engine.machine import float32_products, peak_memory
from engramscope.errors import InputError, ResultsError, shortened
from engramscope.locate.cells import Cell
from engramscope.locate.experiment import Chunk, Experiment, Parity, Progress, noise_floor, set_up
from engramscope.models import Model
from engramscope.models.selfcheck import self_checks
from engramscope.provenance import machine, model_facts, versions
from engramscope.report.load import load
from engramscope.report.page import write_report
from engramscope.report.sentences import answer
from engramscope.results.findings import findings
from engramscope.results.read import read_effects, read_manifest, read_summary
from engramscope.results.schema import EFFECTS
from engramscope.results.store import ResultsFolder
from engramscope.results.summary import summarise_effects
from engramscope.study_base import ensure_base, load_base, moved_transplants, moved_weights, prints_of
from engramscope.study_inputs import Inputs, all_cells, base_of, check_against_model, read_inputs, token_faults


@dataclass(frozen=True)
class StudyResult:
    """A finished study on disk.

    Attributes:
        folder: the results folder.
    """

    folder: Path

    def effects(self) -> pd.DataFrame:
        """One row per (pair, cell, metric, draw): `effects.parquet`."""
        return read_effects(self.folder)

    def summary(self) -> pd.DataFrame:
        """One row per cell and metric: `summary.csv`."""
        return read_summary(self.folder)

    def manifest(self) -> dict[str, Any]:
        """Provenance, checks, audit and findings: `manifest.json`."""
        return read_manifest(self.folder)

    def sentences(self) -> list[str]:
        """The answer in two or three sentences."""
        said = answer(load(self.folder))
        return [sentence for sentence in (said.warning, *said.lead, said.aside) if sentence]

    def executor_note(self) -> str:
        """A sentence where the study could not be run in the quickest way, else ""."""
        return steps.executor_note(self.manifest().get("executor") or {})

    def __repr__(self) -> str:
        return "\n".join([f"StudyResult({str(self.folder)!r})", *self.sentences()])


def run_study(
    study: Path | str | Inputs,
    out: Path | str,
    *,
    resume: bool = False,
    executor: Kind | None = None,
    model: Model | None = None,
    base: Model | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Run a study and write its results folder.

    Args:
        study: a study file, or inputs that are already read.
        out: the results folder; new, or the folder of an interrupted run of the same study with `resume`.
        resume: go on where an interrupted run stopped; the table ends up the same.
        executor: instead of the one that the study file names; the numbers are the same.
        model: the study's model where it is in memory already, so that several studies load it once.
        base: the same for the model before training, where two models are compared.
        progress: called with (what, done, total).

    Returns:
        The finished study.

    Raises:
        InputError: the study, its pairs, its model or the folder is at fault; every fault is named.
        CheckError: a recomputed sample of cells does not agree: nothing that was computed can be trusted.
    """
    tell = progress or _silent
    tell("reading the study", 0, 1)
    inputs = study if isinstance(study, Inputs) else read_inputs(Path(study))
    inputs = inputs if executor is None else steps.with_executor(inputs, executor)
    steps.refuse_early(inputs, Path(out), resume)
    tell("reading the study", 1, 1)
    if model is None:
        tell("loading the model", 0, 1)
        model = steps.load(inputs)
        tell("loading the model", 1, 1)
    if base is None and base_of(inputs.corruption)[0]:
        tell("loading the base model", 0, 1)
        base = load_base(inputs)
        tell("loading the base model", 1, 1)
    ensure_base(inputs, model, base)
    with float32_products(tf32=inputs.study.run.tf32):
        return _Runner(inputs, model, base, Path(out), tell).run(resume)


def check_study(study: Path | str, *, progress: Progress | None = None) -> list[Finding]:
    """Audit a study before anything is computed: first what needs no model, then tokens, then the model's parts.

    Raises:
        InputError: faults that make auditing pointless, all of them.
    """
    tell = progress or _silent
    tell("reading the study", 0, 1)
    inputs = read_inputs(Path(study))
    found = run_checks(steps.audit_context(inputs), ("pairs",))
    if any(finding.severity == "error" for finding in found):
        return found
    tokenizer = steps.tokenizer_of(inputs)
    tokens = steps.tokens_of(inputs, tokenizer)
    found = run_checks(steps.audit_context(inputs, tokens, tokenizer), ("pairs", "tokens"))
    if any(finding.severity == "error" for finding in found):
        return found
    faults = [*steps.size_faults_early(inputs), *token_faults(inputs, tokens, tokenizer)]
    if faults:
        raise InputError(shortened(list(dict.fromkeys(faults))))
    tell("reading the study", 1, 1)
    tell("loading the model", 0, 1)
    model = steps.load(inputs)
    tell("loading the model", 1, 1)
    base = load_base(inputs) if base_of(inputs.corruption)[0] else None
    ensure_base(inputs, model, base)
    check_against_model(inputs, tokens, model.anatomy, model.tokenizer, model.offers)
    return run_checks(steps.audit_context(inputs, tokens, model.tokenizer, model, base), ("pairs", "tokens", "model"))


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


@dataclass
class _Kept:
    """How far a run has come, for what is said when it stops."""

    chunks: int = 0
    of: int = 0
    parity: dict[str, Any] | None = None

    def sentence(self, out: Path) -> str:
        if not self.of:
            return f"Interrupted. Run the study again with --out {out} --resume."
        done = f"{self.chunks} of {self.of} parts of the sweep"
        return f"Interrupted. {done} are kept in {out}; the same command with --resume goes on from there."


class _Runner:
    """One run of a study; holds what its steps share."""

    def __init__(self, inputs: Inputs, model: Model, base: Model | None, out: Path, tell: Progress) -> None:
        self.inputs, self.model, self.base, self.out, self.tell = inputs, model, base, out, tell
        self.started = self.begun = datetime.now(UTC)
        self.clock = time.perf_counter()
        self.timings: dict[str, float] = {}
        self.sessions: list[dict[str, Any]] = []
        self.memory_at_start = peak_memory(model.device)
        self.self_checks = [asdict(check) for check in model.checks or self_checks(model)]

    def run(self, resume: bool) -> StudyResult:
        tokens = steps.tokens_of(self.inputs, self.model.tokenizer)
        check_against_model(self.inputs, tokens, self.model.anatomy, self.model.tokenizer, self.model.offers)
        context = steps.audit_context(self.inputs, tokens, self.model.tokenizer, self.model, self.base)
        steps.refuse(run_checks(context, ("pairs", "tokens", "model")))
        # the last faults of the input show in the baselines: a new folder is not made before them
        experiment = None if resume else self._set_up()
        with steps.folder_for(self.inputs, prints_of(self.model, self.base), self.out, resume) as folder:
            if resume and self._take_up(folder):
                return StudyResult(folder.path)
            kept = _Kept()
            try:
                return self._run(folder, experiment or self._set_up(), context, kept)
            except BaseException as error:
                stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                with suppress(ResultsError):  # a full disk is why we are here
                    folder.write_manifest({**self._manifest(None), "status": stopped, "parity": kept.parity})
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt(kept.sentence(self.out)) from None
                raise

    def _take_up(self, folder: ResultsFolder) -> bool:
        """Remember the earlier sessions of a study; True where it had come to its end."""
        earlier = read_manifest(folder.path)
        self.sessions = list(earlier.get("sessions") or [])
        if earlier.get("started"):
            self.started = min(self.started, datetime.fromisoformat(earlier["started"]))
        # the report is written last, and its time after it
        return earlier.get("status") == "complete" and "report" in (earlier.get("timings_s") or {})

    def _set_up(self) -> Experiment:
        study = self.inputs.study
        experiment = set_up(
            self.model,
            self.inputs.pairs,
            self.inputs.corruption,
            study.corruption.method,
            study.metrics.names,
            seed=study.seed,
            min_gap=study.stats.min_gap,
            known=study.pairs.at_least if study.pairs.known else None,
            executor=study.run.executor,
            memory_gb=study.run.memory_gb,
            base_model=self.base,
            progress=self.tell,
        )
        self._lap("baselines")
        return experiment

    def _run(self, folder: ResultsFolder, experiment: Experiment, context: AuditContext, kept: _Kept) -> StudyResult:
        self.sessions.append({"started": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions()})
        folder.write_manifest({**self._manifest(None), "status": "running"})
        cells = all_cells(self.inputs, self.model.anatomy, [pair.tokens for pair in experiment.prepared])
        chunks = self._sweep(folder, experiment, cells, kept)
        folder.finalise([chunk.id for chunk in chunks])
        self._lap("sweep")
        effects = read_effects(folder.path)
        everything = [cell for part in cells.values() for cell in part]
        self.tell("checking a sample", 0, 2)
        parity = self._parity(experiment, everything, effects, kept)
        self.tell("checking a sample", 1, 2)
        floor = noise_floor(experiment, everything, self.inputs.study.run.check)
        self.tell("checking a sample", 2, 2)
        self._lap("checks")
        self._report(folder, experiment, effects, parity, floor, context)
        return StudyResult(folder.path)

    def _sweep(
        self, folder: ResultsFolder, experiment: Experiment, cells: Mapping[str, Sequence[Cell]], kept: _Kept
    ) -> list[Chunk]:
        chunks = [
            chunk for number, part in enumerate(cells.values()) for chunk in experiment.chunks(part, f"{number:03d}")
        ]
        done = folder.done()
        if done:
            steps.refuse_other_baselines(folder.path, experiment, steps.tolerance_of(experiment.model))
        kept.chunks, kept.of = len(done), len(chunks)
        self.tell("patching", 0, len(chunks))
        for number, chunk in enumerate(chunks):
            if chunk.id not in done:
                columns = experiment.run(chunk, self.inputs.study.name)
                table = pa.Table.from_pydict(columns, schema=EFFECTS) if columns else EFFECTS.empty_table()
                folder.append(chunk.id, table)
                kept.chunks += 1
            self.tell("patching", number + 1, len(chunks))
        return chunks

    def _parity(
        self, experiment: Experiment, cells: Sequence[Cell], effects: pd.DataFrame, kept: _Kept
    ) -> Parity | None:
        if not self.inputs.study.run.check:
            return None
        parity = steps.recomputed(experiment, cells, self.inputs.study.run.check, effects)
        kept.parity = asdict(parity)
        steps.ensure_parity(parity, effects)
        return parity

    def _report(
        self,
        folder: ResultsFolder,
        experiment: Experiment,
        effects: pd.DataFrame,
        parity: Parity | None,
        floor: Mapping[str, float],
        context: AuditContext,
    ) -> None:
        study, stats = self.inputs.study, self.inputs.study.stats
        self.tell("statistics", 0, 2)
        clusters = steps.clusters_of(experiment, stats.cluster)
        unpooled = {pair for pair, _ in experiment.excluded}
        pooled = frozenset(pair.id for pair in experiment.prepared if pair.id not in unpooled)
        summary = summarise_effects(
            effects,
            clusters,
            pooled=pooled,
            floor=floor,
            confidence=stats.confidence,
            family_error=stats.family_error,
            resamples=stats.resamples,
            interval=stats.interval,
            singles=self.inputs.singles,
            seed=study.seed,
        )
        self.tell("statistics", 1, 2)
        labels = steps.labels_of(experiment, stats.contrast)
        found = findings(
            effects,
            summary,
            clusters,
            labels,
            label=stats.contrast,
            pooled=pooled,
            confidence=stats.confidence,
            resamples=stats.resamples,
            seed=study.seed,
        )
        self.tell("statistics", 2, 2)
        self._lap("statistics")
        self.tell("audit and report", 0, 2)
        folder.write_table("pairs.parquet", steps.pairs_table(experiment))
        folder.write_summary(summary)
        audit = run_checks(steps.with_results(context, experiment, effects, summary, dict(floor)), steps.ALL_PHASES)
        executor = steps.executor_facts(study.run.executor, experiment)
        if note := steps.executor_note(executor):
            audit.append(Finding("executor", "note", note))
        manifest = self._manifest(experiment)
        manifest |= {
            "status": "complete",
            "parity": None if parity is None else asdict(parity),
            "noise_floor": dict(floor),
            "counts": steps.counts_of(experiment, effects),
            "skipped": steps.skipped_of(effects),
            "audit": [steps.finding_facts(finding) for finding in audit],
            "findings": found,
        }
        folder.write_manifest(manifest)
        self._lap("audit")
        self.tell("audit and report", 1, 2)
        write_report(folder.path)
        self._lap("report")
        folder.write_manifest({**manifest, **self._times()})
        self.tell("audit and report", 2, 2)

    def _manifest(self, experiment: Experiment | None) -> dict[str, Any]:
        study = self.inputs.study
        corruption = {"method": study.corruption.method, "options": steps.corruption_options(self.inputs)}
        if experiment is not None:
            corruption["level"] = experiment.noise_level
        prints = self.inputs.fingerprints(prints_of(self.model, self.base))
        facts: dict[str, Any] = {
            "name": study.name,
            "study": self.inputs.resolved,
            "model": model_facts(self.model),
            "versions": versions(),
            "platform": machine(),
            "seed": study.seed,
            "fingerprints": {key: value for key, value in prints.items() if key != "study"},
            "executor": steps.executor_facts(study.run.executor, experiment),
            "corruption": corruption,
            "self_checks": self.self_checks,
            **self._times(),
        }
        if self.base is not None:
            facts["base_model"] = model_facts(self.base)
            facts["weights"] = moved_weights(self.model, self.base)
            facts["transplants"] = moved_transplants(self.model, self.base, self.inputs.sweeps)
        if experiment is not None:
            facts["memory"] = steps.memory_facts(experiment, self.memory_at_start)
            if experiment.unknown is not None:
                of = len(experiment.prepared)
                facts["known"] = {"kept": of - len(experiment.unknown), "of": of}
            facts["excluded"] = [{"pair": pair, "reason": reason} for pair, reason in experiment.excluded]
        return facts

    def _times(self) -> dict[str, Any]:
        now = datetime.now(UTC)
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "finished": now.isoformat(timespec="seconds"),
            "elapsed_s": round((now - self.begun).total_seconds(), 3),
            "timings_s": dict(self.timings),
            "sessions": list(self.sessions),
        }

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.timings[name] = round(now - self.clock, 3)
        self.clock = now
