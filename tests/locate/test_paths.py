"""Path patching in the traversal gives what the published procedures give, whatever the family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engramscope.engine.executor import make_executor
from engramscope.engine.plan import BaseRun, FromRun, Plan, Readout
from engramscope.locate.paths import Edges, Paths, Receiver, parse_receiver, path_runs, receiver_faults
from engramscope.models import Model
from tests.locate.plain_paths import PlainPaths, To, replaced
from tests.tiny_models import tiny_hf

FAMILIES = ("gpt2", "llama", "gpt_neo", "gemma2", "gpt_neox", "qwen3", "falcon")
#: these compute attention in float32, whatever the model's dtype
_TOLERANCE = {"gpt_neo": 1e-5}
CLEAN, OTHER = [5, 17, 33, 8, 60, 21], [5, 17, 40, 8, 61, 21]
#: sender's site, layer, head; receivers; positions at which they receive; MLPs
CASES = {
    "head to the logits": (("z", 1, 2), ["logits"], None, "live"),
    "head to the logits directly": (("z", 1, 2), ["logits"], None, "frozen"),
    "head to a query": (("z", 0, 1), ["2.3.q"], [4, 5], "live"),
    "head to a key": (("z", 0, 1), ["1.1.k"], None, "frozen"),
    "head to a value": (("z", 0, 3), ["2.0.v"], [2, 4], "live"),
    "head to an MLP behind it": (("z", 1, 0), ["mlp.1"], None, "frozen"),
    "MLP to a query": (("mlp_out", 0, None), ["1.2.q"], None, "live"),
    "MLP to an MLP": (("mlp_out", 0, None), ["mlp.2"], [4], "frozen"),
    "MLP to the logits": (("mlp_out", 1, None), ["logits"], None, "frozen"),
    "attention to a query": (("attn_out", 0, None), ["2.1.q"], None, "frozen"),
}


def _model(family: str) -> tuple[Model, PlainPaths, float]:
    hf = tiny_hf(family).double()
    model = Model.from_parts(hf, name=family)
    return model, PlainPaths(family, hf, model.anatomy), _TOLERANCE.get(family, 1e-9)


def _logits(
    model: Model,
    sender: tuple[str, int, int | None],
    receivers: list[str],
    at: list[int] | None,
    mlps: Any,
    kind: Any,
    positions: tuple[int, ...] = (2, 4),
) -> Tensor:
    """Logits [seq, vocab] of one cell: values of OTHER in CLEAN."""
    everywhere = tuple(range(len(CLEAN)))
    found = [receiver for name in receivers if (receiver := parse_receiver(name)) is not None]
    site, layer, head = sender
    edges = Edges(
        "clean", len(CLEAN), site, layer, None if head is None else (head,), positions, FromRun("other", positions),
        everywhere if at is None else tuple(at), model.anatomy.parallel, model.anatomy.n_layers,
    )  # fmt: skip
    between, run = path_runs(edges, Paths(tuple(sorted(found)), ("all",), mlps), "cell")
    bases = (BaseRun("clean", tuple(CLEAN)), BaseRun("other", tuple(OTHER)))
    plan = Plan(bases, (*between, run), (Readout("cell", everywhere),))
    (answered,) = make_executor(model, kind).execute(plan)
    return answered.logits[0]


def _sender(plain: PlainPaths, sender: tuple[str, int, int | None]) -> Any:
    site, layer, head = sender
    return (site, layer, replaced(plain.read(OTHER, site, layer), [2, 4], head))


def _to(name: str) -> To | None:
    receiver = parse_receiver(name)
    assert receiver is not None
    if receiver.kind == "logits":
        return None
    return receiver.kind, receiver.layer, None if receiver.kind == "mlp" else receiver.head


@pytest.mark.parametrize("kind", ["traversal", "reference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_receiver_is_what_the_four_passes_give(family: str, kind: str) -> None:
    model, plain, tolerance = _model(family)
    unpatched = plain.run(CLEAN, None, None, None)
    for name, (sender, receivers, at, mlps) in CASES.items():
        (receiver,) = receivers
        if parse_receiver(receiver) == Receiver(1, "k", 1) and model.anatomy.n_kv_heads < 2:
            continue
        if family == "falcon" and receiver.endswith(("k", "v")):
            receiver = receiver.replace(".1.k", ".0.k")
        mine = _logits(model, sender, [receiver], at, mlps, kind)
        theirs = plain.four_passes(
            CLEAN, OTHER, _sender(plain, sender), _to(receiver), at or list(range(6)), frozen=mlps == "frozen"
        )
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        reaches = not (model.anatomy.parallel and receiver == "mlp.1")
        assert (float((theirs - unpatched).abs().max()) > 1e-3) == reaches, name


@pytest.mark.parametrize("family", FAMILIES)
def test_receivers_that_feed_each_other_are_one_set_of_edges(family: str) -> None:
    model, plain, tolerance = _model(family)
    names = ["1.0.q", "1.0.k", "1.0.v", "mlp.1", "2.2.q", "2.0.v", "mlp.2", "logits"]
    to = [one for name in names if (one := _to(name)) is not None]
    for sender in (("z", 0, 1), ("mlp_out", 0, None)):
        for at in (None, [4, 5]):
            theirs = plain.edges(CLEAN, _sender(plain, sender), to, True, at or list(range(6)))
            mine = _logits(model, sender, names, at, "frozen", "traversal")
            torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=0)


def _everything(model: Model) -> list[str]:
    anatomy = model.anatomy
    heads = [f"{layer}.{head}.q" for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads)]
    groups = [
        f"{layer}.{head}.{letter}"
        for layer in range(anatomy.n_layers)
        for head in range(anatomy.n_kv_heads)
        for letter in "kv"
    ]
    return [*heads, *groups, *(f"mlp.{layer}" for layer in range(anatomy.n_layers)), "logits"]


@pytest.mark.parametrize("mlps", ["live", "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_of_a_sender_are_the_ordinary_patch_of_it(family: str, mlps: str) -> None:
    """P1; with live MLPs every path through them is taken by an edge as well, and nothing is counted twice."""
    model, plain, tolerance = _model(family)
    for site, layer, head in (("z", 0, 1), ("z", 1, 0), ("mlp_out", 0, None), ("attn_out", 1, None)):
        ordinary = plain.patched(CLEAN, OTHER, site, layer, None if head is None else [head], [2, 4])
        mine = _logits(model, (site, layer, head), _everything(model), None, mlps, "traversal")
        torch.testing.assert_close(mine, ordinary, atol=tolerance, rtol=0)


def test_what_lies_before_the_sender_does_not_receive() -> None:
    """P1: nothing changes, exactly."""
    model, plain, _ = _model("gpt2")
    unpatched = plain.run(CLEAN, None, None, None)
    for sender, receivers in (
        (("z", 1, 2), ["0.1.q", "1.3.k", "mlp.0"]),
        (("mlp_out", 1, None), ["1.0.v", "mlp.1", "0.2.q"]),
    ):
        mine = _logits(model, sender, receivers, None, "live", "traversal")
        torch.testing.assert_close(mine, unpatched, atol=1e-12, rtol=0)


def test_a_sender_of_equal_value_changes_nothing() -> None:
    model, plain, _ = _model("llama")
    same = _logits(model, ("z", 0, 1), ["2.0.k", "logits"], None, "live", "traversal", positions=(0, 1))
    torch.testing.assert_close(same, plain.run(CLEAN, None, None, None), atol=1e-12, rtol=0)


def test_direct_effects_of_senders_add_up_where_the_readout_is_linear() -> None:
    """P1 c: without a norm before the head, what four heads send together is the sum of what they send apart."""
    hf = tiny_hf("gpt2").double()
    hf.transformer.ln_f = torch.nn.Identity()
    model = Model.from_parts(hf, name="linear read-out")
    unpatched = hf(input_ids=torch.tensor([CLEAN])).logits[0].detach()

    def sent(head: int | None) -> Tensor:
        return _logits(model, ("z", 1, head), ["logits"], None, "frozen", "traversal") - unpatched

    torch.testing.assert_close(sum(sent(head) for head in range(4)), sent(None), atol=1e-9, rtol=0)
    assert float(sent(None).abs().max()) > 0.1


def test_receivers_are_read_as_they_are_written() -> None:
    for name in ("9.6.q", "0.11.k", "3.0.v", "mlp.5", "logits"):
        receiver = parse_receiver(name)
        assert receiver is not None
        assert receiver.name == name
    for name in ("9.6", "9.6.z", "mlp5", "logit", "-1.0.q", "9.6.q "):
        assert parse_receiver(name) is None


def test_receivers_that_are_not_there_are_named() -> None:
    sizes = _model("llama")[0].anatomy
    faults = receiver_faults(["3.0.q", "0.4.q", "0.2.k", "mlp.9", "1.q"], sizes)
    assert len(faults) == 5
    assert ["3 layers" in faults[0], "4 heads" in faults[1], "2 key/value heads" in faults[2]] == [True] * 3
    assert "mlp.9" in faults[3]
    assert "no receiver" in faults[4]
    assert not receiver_faults(["2.3.q", "0.1.k", "mlp.2", "logits"], sizes)


def test_more_receivers_never_fewer_runs_than_are_planned_for() -> None:
    from engramscope.locate.paths import runs_between

    rng = np.random.default_rng(0)
    model = _model("gpt2")[0]
    for _ in range(20):
        names = list(rng.choice(_everything(model), size=int(rng.integers(1, 8)), replace=False))
        found = tuple(receiver for name in names if (receiver := parse_receiver(name)) is not None)
        edges = Edges("a", 6, "z", 0, (0,), (2,), FromRun("b", (2,)), (5,), False, 3)
        between, _ = path_runs(edges, Paths(found, ("last",), "live"), "x")
        assert len(between) + 1 <= runs_between(found)
