"""Engramscope on one case: from prepared pairs to the table of the metrics of all cells, by its own real path."""

from __future__ import annotations

import importlib.metadata
import statistics
from typing import Any

import numpy as np

from benchmarks import workload
from benchmarks.cases import Case
from benchmarks.floor import Floor, floor_of
from benchmarks.measure import PeakMemory, matmul_rate, profile_of, seconds_of
from benchmarks.results import Result, Settings
from engramscope.locate.cells import Cell, cells_of
from engramscope.locate.experiment import Experiment, set_up
from engramscope.models.model import Model
from engramscope.study_file import SweepSection


def run(case: Case, settings: Settings) -> Result:
    """Time the case; the rate of matrix products is measured before and after, in this process."""
    hf = workload.make_model(case, settings.device)
    weights = workload.weight_hash(hf)
    sweep = Sweeper(case, Model.from_parts(hf, workload.make_tokenizer(case), name="gpt2"), settings)
    rates = [matmul_rate(case.sizes, settings.device)]
    peak = PeakMemory(settings.device)
    sweep.warm_up()
    table: list[dict[str, list[Any]]] = []
    seconds = [seconds_of(lambda: table.extend(sweep.run()), settings.device)]
    host, cuda = peak.host_bytes(), peak.cuda_bytes()
    rates.append(matmul_rate(case.sizes, settings.device))
    while len(seconds) < settings.repeats and sum(seconds) < settings.budget_s / 2:
        seconds.append(seconds_of(sweep.run, settings.device))
        rates.append(matmul_rate(case.sizes, settings.device))
    profiled = profile_of(sweep.run, settings.device) if settings.profile else []
    rate, floor = statistics.median(rates), floor_of(case)
    return Result(
        case.name,
        "engramscope",
        importlib.metadata.version("engramscope"),
        weights=weights,
        seconds=statistics.median(seconds),
        cells_run=len(case.cells),
        cells=len(case.cells),
        host_bytes=host,
        cuda_bytes=cuda,
        details={
            "seconds_each": seconds,
            "rate_flops": rate,
            "rates_each": rates,
            "floor": _floor_details(floor, rate, statistics.median(seconds)),
            "profile": profiled,
            **sweep.executor_details,
        },
        patched=as_array(case, table),
    )


class Sweeper:
    """One case, ready to be run again and again."""

    def __init__(self, case: Case, model: Model, settings: Settings) -> None:
        self._case, self._model, self._settings = case, model, settings
        self._pairs = workload.make_pairs(case)
        self.executor_details: dict[str, str] = {}

    def run(self) -> list[dict[str, list[Any]]]:
        """Baselines and all cells: columns of the effects table, a piece of the sweep each."""
        return self._pieces(self._experiment(), None)

    def warm_up(self) -> None:
        """One cell of every sweep, so that no library does in the timed part what it does only once."""
        self._pieces(self._experiment(), 1)

    def _pieces(self, experiment: Experiment, first: int | None) -> list[dict[str, list[Any]]]:
        return [
            experiment.run(chunk)
            for number, cells in enumerate(self._sweeps(experiment))
            for chunk in experiment.chunks(cells[:first], f"s{number}")
        ]

    def _experiment(self) -> Experiment:
        name, corruption = workload.corruption_of(self._case)
        experiment = set_up(
            self._model,
            self._pairs,
            corruption,
            name,
            ["logit_diff"],
            seed=self._case.seed,
            executor=self._settings.executor,
        )
        executor = experiment.executor
        self.executor_details = {"kind": executor.kind, "way": executor.way, "note": executor.note}
        return experiment

    def _sweeps(self, experiment: Experiment) -> list[list[Cell]]:
        tokens = [pair.tokens for pair in experiment.prepared]
        sections = [
            SweepSection(
                name=f"s{number}",
                site=sweep.site,
                layers="each" if sweep.layers is None else list(sweep.layers),
                heads=("each" if sweep.heads is None else list(sweep.heads)) if sweep.each_head else "all",
                positions="each" if sweep.each_position else "all",
                window=sweep.window,
            )
            for number, sweep in enumerate(self._case.sweeps)
        ]
        return [list(cells_of(section, self._model.anatomy, tokens)) for section in sections]


def as_array(case: Case, table: list[dict[str, list[Any]]]) -> np.ndarray:
    """The metric of every patched run, [cells, draws, pairs], in the order of the case's cells."""
    number = {cell.key: index for index, cell in enumerate(case.cells)}
    values = np.full((len(number), case.draws, case.n_pairs), np.nan)
    columns = ("site", "layer", "head", "position", "seed", "pair", "patched")
    for piece in table:
        for site, layer, head, position, seed, pair, patched in zip(*(piece[name] for name in columns), strict=True):
            values[number[site, layer, head, position], seed, int(pair[1:])] = patched
    if np.isnan(values).any():
        raise RuntimeError(f"{int(np.isnan(values).sum())} of {values.size} runs are missing in the table")
    return values


def _floor_details(floor: Floor, rate: float, seconds: float) -> dict[str, float]:
    return {
        "base_flops": floor.base,
        "derived_flops": floor.derived,
        "runs": floor.runs,
        "asked": floor.asked,
        "whole_flops": floor.whole,
        "seconds": floor.flops / rate,
        "share": floor.flops / rate / seconds,
        "share_whole": floor.whole / rate / seconds,
    }
