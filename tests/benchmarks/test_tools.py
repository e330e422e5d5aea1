"""What is timed is what is meant: the same prompts, noise and patches for every tool, and a wrong number is an error.

No other library is needed: plain hooks on the model stand in for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.cases import Cell, case_named
from benchmarks.compare import agreement_of, compare
from benchmarks.growth import fit
from benchmarks.peers import Rows, measure, prepared
from benchmarks.products import Timed
from benchmarks.results import Result, Settings
from benchmarks.with_engramscope import run

from benchmarks import workload

SETTINGS = Settings(quick=True, full=True, repeats=1, threads=1)
NAMES = ("residual", "heads_positions", "tracing", "windows")


class PlainHooks:
    """A peer that uses nothing but hooks of torch."""

    version = "0"

    def __init__(self, name: str, *, wrong: bool = False) -> None:
        self.case = case_named(name, quick=True)
        self.model, _, self.batch, self.weights = prepared(self.case, SETTINGS)
        self.wrong = wrong
        self.clean: dict[tuple[str, int], torch.Tensor] = {}

    def cache_clean(self, cells: Sequence[Cell]) -> None:
        places = {(cell.site, layer) for cell in cells for layer in cell.layers}

        def keep(place: tuple[str, int]) -> Any:
            def store(value: torch.Tensor) -> None:
                self.clean[place] = value.clone()

            return store

        with self.hooked([(place, keep(place)) for place in places]):
            self.model(self.batch.clean)

    def forward(self, rows: Rows, cell: Cell | None, *, only_last: bool = False) -> torch.Tensor:
        def put(place: tuple[str, int]) -> Any:
            def write(value: torch.Tensor) -> torch.Tensor:
                value, clean = value.clone(), self.clean[place].repeat(rows.copies, 1, 1)
                at = slice(None) if cell.position is None else slice(cell.position, cell.position + 1)
                size = value.shape[-1] // self.case.sizes.n_heads
                columns = slice(None) if cell.head is None else slice(cell.head * size, (cell.head + 1) * size)
                value[:, at, columns] = clean[:, at, columns]
                return value

            return write

        def add(value: torch.Tensor) -> torch.Tensor:
            value = value.clone()
            value[:, list(self.case.noised)] += rows.noise
            return value

        actions = [] if cell is None or self.wrong else [((cell.site, at), put((cell.site, at))) for at in cell.layers]
        actions += [] if rows.noise is None else [(("embed", 0), add)]
        with self.hooked(actions):
            return self.model(rows.tokens).logits[:, -1]

    @contextmanager
    def hooked(self, actions: Sequence[tuple[tuple[str, int], Any]]) -> Iterator[None]:
        handles = [self.hook(*place, action) for place, action in actions]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, site: str, layer: int, action: Any) -> Any:
        block, base = self.model.transformer.h[layer], self.model.transformer
        if site in ("z", "resid_pre"):
            module = block.attn.c_proj if site == "z" else block
            return module.register_forward_pre_hook(lambda _, args: _put_first(args, action(args[0])))
        module = {"embed": base.wte, "resid_post": block, "attn_out": block.attn, "mlp_out": block.mlp}[site]

        def after(_: Any, __: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            new = action(first)
            if new is None:
                return None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return module.register_forward_hook(after)


def _put_first(args: tuple, new: torch.Tensor | None) -> tuple | None:
    return None if new is None else (new, *args[1:])


@pytest.mark.parametrize("name", NAMES)
def test_every_tool_is_given_the_same_sweep(name: str) -> None:
    case = case_named(name, quick=True)
    ours = run(case, SETTINGS)
    peer = measure("transformer_lens", PlainHooks(name), case, SETTINGS)
    agreement = agreement_of(ours, peer)
    assert agreement.runs == len(case.cells) * case.draws * case.n_pairs
    assert agreement.max_abs_diff < 1e-5 < 1e-3 < agreement.spread
    row = compare(case, {"engramscope": ours, "transformer_lens": peer}, timed=True, on_cuda=False)
    assert not row.errors
    assert {target.what for target in row.targets} == {"times TransformerLens", "share of the floor"}


def test_a_peer_that_differs_makes_the_row_an_error() -> None:
    case = case_named("heads", quick=True)
    ours = run(case, SETTINGS)
    wrong = measure("nnsight", PlainHooks("heads", wrong=True), case, SETTINGS)
    row = compare(case, {"engramscope": ours, "nnsight": wrong}, timed=True, on_cuda=False)
    assert len(row.errors) == 1
    assert row.errors[0].startswith("nnsight differs by")


def test_other_weights_make_the_row_an_error() -> None:
    case = case_named("heads", quick=True)
    ours = run(case, SETTINGS)
    other = replace(ours, tool="nnsight", weights="other", details={"forward_s": 1.0, "forward_only_last_s": 1.0})
    row = compare(case, {"engramscope": ours, "nnsight": other}, timed=True, on_cuda=False)
    assert row.errors == (f"nnsight ran other weights, over {len(case.cells) * case.n_pairs} runs",)


def test_a_failed_tool_is_an_error_and_a_missing_one_is_not() -> None:
    case = case_named("heads", quick=True)
    results = {
        "engramscope": Result("heads", "engramscope", status="failed with exit code 1: no"),
        "nnsight": Result("heads", "nnsight", status="not installed"),
    }
    assert compare(case, results, timed=True, on_cuda=False).errors == ("engramscope: failed with exit code 1: no",)


def test_a_part_of_the_cells_is_extrapolated_to_all() -> None:
    case = case_named("heads_positions", quick=True)
    part = measure("nnsight", PlainHooks("heads_positions"), case, replace(SETTINGS, full=False, budget_s=0.0))
    assert part.cells_run == 1
    assert int((~np.isnan(part.patched)).sum()) == case.n_pairs
    assert part.seconds == pytest.approx(part.details["first_s"] + part.details["forward_s"] * len(case.cells))


def test_prompts_differ_where_the_case_says() -> None:
    case = case_named("residual", quick=True)
    model, tokenizer, batch, _ = prepared(case, SETTINGS)
    assert torch.nonzero((batch.clean != batch.corrupted).any(dim=0)).flatten().tolist() == [case.first_difference]
    assert batch.clean.shape == (case.n_pairs, case.length)
    assert workload.weight_hash(model) == workload.weight_hash(workload.make_model(case, "cpu"))
    assert tokenizer("w3 w17")["input_ids"] == [3, 17]


def test_noise_is_on_the_subject() -> None:
    case = case_named("tracing", quick=True)
    batch = prepared(case, SETTINGS)[2]
    assert torch.equal(batch.clean, batch.corrupted)
    assert batch.noise is not None
    assert batch.noise.shape == (case.draws, case.n_pairs, len(case.noised), case.sizes.d_model)


def test_the_line_is_the_one_of_least_squares() -> None:
    intercept, slope, residual = fit((1, 2, 3), [3.0, 5.0, 7.0])
    assert (intercept, slope) == pytest.approx((1.0, 2.0))
    assert residual == pytest.approx(0.0, abs=1e-12)
    assert fit((1, 2, 3), [1.0, 3.0, 1.0])[2] == pytest.approx(4 / 9)


def test_products_are_counted_whoever_makes_them() -> None:
    left, right, bias = torch.randn(3, 5), torch.randn(5, 7), torch.randn(7)
    linear = torch.nn.Linear(5, 7).requires_grad_(False)
    for work in (lambda: left @ right, lambda: torch.addmm(bias, left, right), lambda: linear(left[None])):
        with Timed() as timed:
            work()
        assert timed.flops == 2 * 3 * 5 * 7
        assert set(timed.seconds) >= {"products"}
    with Timed() as timed:
        left.exp()
    assert timed.flops == 0
    assert timed.seconds["other"] > 0
