"""The floor's arithmetic, against counting value by value, a forward that is counted by torch, and sums by hand."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.cases import CASES, TINY, Case, Cell, Sizes, Sweep, case_named
from benchmarks.floor import floor_of, run_flops
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = Sizes(n_layers=3, d_model=12, n_heads=2, vocab=50)
LENGTH = 5


class Graph:
    """Every value of a run as a node with parents and with the multiply-adds that computing it takes."""

    def __init__(self, sizes: Sizes, length: int, columns: int) -> None:
        self.parents: dict[tuple, list[tuple]] = defaultdict(list)
        self.cost: dict[tuple, int] = defaultdict(int)
        self._width, self._head = sizes.d_model, sizes.d_model // sizes.n_heads
        for layer, token in itertools.product(range(sizes.n_layers), range(length)):
            below = ("embed", token) if layer == 0 else ("post", layer - 1, token)
            pre = self._node(("pre", layer, token), 0, below)
            for head in range(sizes.n_heads):
                self._attend(layer, token, head, pre)
            rows = [
                self._node(("row", layer, token, head), self._head * self._width, ("z", layer, token, head))
                for head in range(sizes.n_heads)
            ]
            attn_out = self._node(("attn_out", layer, token), 0, *rows)
            mid = self._node(("mid", layer, token), 0, pre, attn_out)
            mlp_out = self._node(("mlp_out", layer, token), 2 * self._width * sizes.d_mlp, mid)
            self._node(("post", layer, token), 0, mid, mlp_out)
        self._node(("logits",), self._width * columns, ("post", sizes.n_layers - 1, length - 1))

    def count(self, started: set[tuple], patched: dict[tuple, bool]) -> int:
        """Multiply-adds of the values that are changed and needed; patched: node -> whether its new value differs."""
        changed: dict[tuple, bool] = {}
        for node in self.order(patched):
            own = node in started or any(changed.get(parent, parent in started) for parent in self.parents[node])
            changed[node] = patched.get(node, own)
        needed, todo = set(), [("logits",)]
        while todo:
            node = todo.pop()
            if node not in needed and node not in patched:
                needed.add(node)
                todo += self.parents[node]
        return sum(self._charge(node, patched, changed, started) for node in needed)

    def _charge(self, node: tuple, patched: dict, changed: dict, started: set) -> int:
        moved = any(changed.get(parent, parent in started) for parent in self.parents[node])
        return self.cost[node] if moved else 0

    def order(self, patched: dict[tuple, bool]) -> list[tuple]:
        return list(self.parents)  # nodes were made from the bottom up

    def _attend(self, layer: int, token: int, head: int, pre: tuple) -> None:
        square = self._width * self._head
        query = self._node(("q", layer, token, head), square, pre)
        for name in ("k", "v"):
            self._node((name, layer, token, head), square, pre)
        scores = [
            self._node(("score", layer, token, other, head), self._head, query, ("k", layer, other, head))
            for other in range(token + 1)
        ]
        values = [("v", layer, other, head) for other in range(token + 1)]
        self._node(("z", layer, token, head), self._head * (token + 1), *scores, *values)

    def _node(self, name: tuple, cost: int, *parents: tuple) -> tuple:
        self.parents[name] = list(parents)
        self.cost[name] = cost
        return name


def counted_by_hand(case: Case) -> int:
    """The floor of one pair of a case, node by node."""
    graph = Graph(case.sizes, case.length, 2)
    replaced = {("embed", token) for token in case.replaced}
    total = graph.count({("embed", token) for token in range(case.length)}, {})
    total += case.draws * graph.count(replaced, {})
    differs: dict[tuple, bool] = {}
    for node in graph.order({}):
        differs[node] = any(parent in replaced or differs.get(parent, False) for parent in graph.parents[node])
    for cell in case.cells:
        total += case.draws * graph.count(set(), {node: differs[node] for node in nodes_of(cell, case)})
    return 2 * total * case.n_pairs


def nodes_of(cell: Cell, case: Case) -> list[tuple]:
    positions = range(case.length) if cell.position is None else [cell.position]
    name = {"resid_pre": "pre", "resid_post": "post"}.get(cell.site, cell.site)
    heads = [()] if cell.site != "z" else [(h,) for h in ([cell.head] if cell.head is not None else range(2))]
    return [(name, layer, at, *head) for layer in cell.layers for at in positions for head in heads]


@pytest.mark.parametrize("site", ["z", "resid_pre", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("each_position", [True, False])
@pytest.mark.parametrize("replaced", [(0,), (3,), (1, 2), (4,)])
def test_floor_is_the_count_of_single_values(
    site: str, window: int, each_position: bool, replaced: tuple[int, ...]
) -> None:
    case = Case(
        "any",
        "",
        (Sweep(site, each_head=site == "z", each_position=each_position, window=window),),
        first_difference=None,
        noised=replaced,
        draws=3,
        sizes=SIZES,
        n_pairs=2,
        length=LENGTH,
    )
    assert floor_of(case).flops == counted_by_hand(case)


def test_a_block_costs_what_torch_counts() -> None:
    """A block on all tokens: the difference between models of three and of two layers."""
    length, everything = 6, np.ones(6, dtype=bool)
    counted = [run_flops(replace(TINY, n_layers=layers), everything, None, None) for layers in (2, 3)]
    by_torch = []
    for layers in (2, 3):
        config = GPT2Config(
            n_layer=layers,
            n_embd=TINY.d_model,
            n_head=TINY.n_heads,
            vocab_size=TINY.vocab,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, length, dtype=torch.long))
        by_torch.append(counter.get_total_flops())
    unseen = length**2 - length * (length + 1) // 2  # the mask hides these keys; eager attention computes them
    assert counted[1] - counted[0] == by_torch[1] - by_torch[0] - 2 * 2 * unseen * TINY.d_model


def test_heads_of_the_last_layer_by_hand() -> None:
    sizes, width, per_head = SIZES, SIZES.d_model, SIZES.d_model // SIZES.n_heads
    case = Case("last", "", (Sweep("z", each_head=True, layers=(2,)),), 1, sizes=sizes, n_pairs=1, length=LENGTH)
    # the read-out token: one head's rows of the projection, the MLP, two columns of the vocabulary
    assert floor_of(case).derived == 2 * sizes.n_heads * (per_head * width + 8 * width * width + 2 * width)


def test_what_cannot_matter_is_no_run() -> None:
    sizes = SIZES
    before = Case("before", "", (Sweep("resid_pre", each_position=True),), 4, sizes=sizes, n_pairs=1, length=LENGTH)
    assert floor_of(before).runs == sizes.n_layers  # only the last of five positions differs
    after = Case(
        "after", "", (Sweep("resid_post", each_position=True, layers=(2,)),), 0, sizes=sizes, n_pairs=1, length=5
    )
    assert (floor_of(after).asked, floor_of(after).runs) == (5, 1)  # above the last block only the read-out matters
    assert floor_of(after).derived == 2 * 2 * sizes.d_model


@pytest.mark.parametrize("case", [case for case in CASES if not case.only_cuda], ids=lambda case: case.name)
def test_floor_of_a_case_is_below_what_a_forward_per_cell_takes(case: Case) -> None:
    small = replace(case, n_pairs=1)
    one_forward = run_flops(case.sizes, np.ones(case.length, dtype=bool), None, None)
    floor = floor_of(small)
    assert 0 < floor.derived < one_forward * case.draws * len(case.cells)
    assert floor.runs <= floor.asked == len(case.cells) * case.draws


def test_cases_have_the_sizes_that_their_titles_say() -> None:
    sizes = {case.name: len(case.cells) for case in CASES}
    assert sizes == {
        "heads": 144,
        "residual": 192,
        "heads_positions": 2304,
        "heads_unshared": 144,
        "tracing": 192,
        "windows": 384,
        "gpt2_xl_tracing": 1008,
    }
    assert case_named("heads", quick=True).sizes == TINY
