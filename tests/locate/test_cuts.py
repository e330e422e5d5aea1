"""Cuts and inert cells against brute force: patched forwards of tiny random models, with hooks of our own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from engramscope.engine import reference
from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan, Readout
from engramscope.locate.cells import Cell
from engramscope.locate.cuts import CutFinder, changed_positions, is_cut, is_inert, patched_positions
from engramscope.locate.runs import places_of
from engramscope.models.anatomy import Anatomy
from engramscope.models.model import Model
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import Alignment, TokenizedPair, TokenizedPrompt
from tests.tiny_models import FAMILIES, tiny_model

VOCAB, D_MODEL, HEADS, D_HEAD = 31, 16, 4, 4
#: relative: below it two float64 logits are the same, above it they are not
SAME = 1e-10
NAMES = {
    "gpt2": ("transformer.wte", "transformer.h.{}", "attn", "mlp", "mlp.c_proj", "transformer.ln_f", "lm_head"),
    "llama": (
        "model.embed_tokens", "model.layers.{}", "self_attn", "mlp", "mlp.down_proj",
        "model.norm", "lm_head",
    ),
    "gpt_neox": (
        "gpt_neox.embed_in", "gpt_neox.layers.{}", "attention", "mlp", "mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm", "lm_head",
    ),
}  # fmt: skip
KV = {"gpt2": HEADS, "llama": 2, "llama1": 1, "gpt_neox": HEADS}


@dataclass
class Taps:
    """What a forward reads into and takes from: (site, layer) -> value [batch, seq, ...]; one forward at a time."""

    read: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)
    write: dict[tuple[str, int | None], Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def tap(self, site: str, layer: int | None, value: Tensor) -> Tensor:
        if (site, layer) in self.write:
            value = self.write[site, layer](value)
        self.read[site, layer] = value.detach().clone()
        return value


CURRENT: list[Taps] = []


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, **rest: object):
    """Plain causal attention that lets `q k v pattern z` be read and replaced."""
    taps, layer = CURRENT[-1], module.layer_idx
    q, k, v = (
        taps.tap(site, layer, x.transpose(1, 2)).transpose(1, 2)
        for site, x in zip("qkv", (query, key, value), strict=True)
    )
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) / D_HEAD**0.5).masked_fill(hidden, -torch.inf)
    # [batch, head, query, key] -> [batch, query, head, key], so that all sites are indexed by position first
    pattern = taps.tap("pattern", layer, scores.softmax(-1).transpose(1, 2)).transpose(1, 2)
    return taps.tap("z", layer, (pattern @ v).transpose(1, 2)), None


AttentionInterface.register("cuts_probe", attend)


@cache
def model_and_anatomy(family: str, n_layers: int) -> tuple[nn.Module, Anatomy]:
    torch.random.default_generator.manual_seed(7)
    common = {"vocab_size": VOCAB, "attn_implementation": "cuts_probe"}
    if family == "gpt2":
        model: nn.Module = GPT2LMHeadModel(
            GPT2Config(n_embd=D_MODEL, n_layer=n_layers, n_head=HEADS, n_positions=32, bos_token_id=0, eos_token_id=0,
                       **common)
        )  # fmt: skip
    elif family in {"llama", "llama1"}:
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=D_MODEL, num_hidden_layers=n_layers, num_attention_heads=HEADS,
                        num_key_value_heads=KV[family], intermediate_size=24, bos_token_id=0, eos_token_id=0, **common)
        )  # fmt: skip
    else:
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(hidden_size=D_MODEL, num_hidden_layers=n_layers, num_attention_heads=HEADS,
                          intermediate_size=24, use_parallel_residual=True, bos_token_id=0, eos_token_id=0, **common)
        )  # fmt: skip
    model = model.eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                # large enough to matter, small enough that no softmax saturates
                parameter.normal_(std=0.3)
    embed, block, attention, _, _, norm, head = NAMES[family.rstrip("1")]
    blocks = tuple(block.format(layer) for layer in range(n_layers))
    anatomy = Anatomy(
        model_type=family, n_layers=n_layers, n_heads=HEADS, n_kv_heads=KV[family], d_model=D_MODEL, d_head=D_HEAD,
        d_mlp=24, vocab=VOCAB, parallel=family == "gpt_neox", embed=embed, final_norm=norm, head=head, blocks=blocks,
        attention=tuple(f"{name}.{attention}" for name in blocks), attention_interface=True,
    )  # fmt: skip
    return model, anatomy


def _first(value: Tensor | tuple) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


@contextmanager
def hooked(model: nn.Module, anatomy: Anatomy, taps: Taps, family: str) -> Iterator[None]:
    """Every site but those inside the attention, as plain hooks."""
    handles = []

    def before(path: str, action: Callable[[Tensor], Tensor]) -> None:
        def hook(_: nn.Module, args: tuple, kwargs: dict):
            if args:
                return (action(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": action(kwargs["hidden_states"])}

        handles.append(model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))

    def after(path: str, action: Callable[[Tensor], Tensor]) -> None:
        def hook(_: nn.Module, args: object, output: Tensor | tuple):
            value = action(_first(output))
            return value if isinstance(output, Tensor) else (value, *output[1:])

        handles.append(model.get_submodule(path).register_forward_hook(hook))

    _, _, attention, mlp, down, _, _ = NAMES[family.rstrip("1")]
    after(anatomy.embed, lambda x: taps.tap("embed", None, x))
    for layer, block in enumerate(anatomy.blocks):
        before(block, lambda x, n=layer: taps.tap("resid_pre", n, x))

        def on_attention(x: Tensor, n: int = layer) -> Tensor:
            x = taps.tap("attn_out", n, x)
            if anatomy.parallel:
                return x
            residual = taps.read["resid_pre", n]
            return taps.tap("resid_mid", n, residual + x) - residual

        after(f"{block}.{attention}", on_attention)
        before(f"{block}.{down}", lambda x, n=layer: taps.tap("mlp_act", n, x))
        after(f"{block}.{mlp}", lambda x, n=layer: taps.tap("mlp_out", n, x))
        after(block, lambda x, n=layer: taps.tap("resid_post", n, x))
    after(anatomy.final_norm, lambda x: taps.tap("final_norm", None, x))
    after(anatomy.head, lambda x: taps.tap("logits", None, x))
    CURRENT.append(taps)
    try:
        yield
    finally:
        CURRENT.pop()
        for handle in handles:
            handle.remove()


def forward(family: str, n_layers: int, tokens: Sequence[int], taps: Taps) -> Tensor:
    model, anatomy = model_and_anatomy(family, n_layers)
    with torch.no_grad(), hooked(model, anatomy, taps, family):
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0]


def brute_force(
    family: str, cell: Cell, n_layers: int, target: Sequence[int], source: Sequence[int], into: Sequence[int],
    out_of: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Logits [seq, vocab] of the patched, the source and the target run."""
    taken = Taps()
    from_source = forward(family, n_layers, source, taken)

    def replacing(place: tuple[str, int | None]) -> Callable[[Tensor], Tensor]:
        def replace(value: Tensor) -> Tensor:
            value = value.clone()
            heads = slice(None) if cell.heads is None else list(cell.heads)
            for t, s in zip(into, out_of, strict=True):
                if value.ndim == 4:
                    value[0, t, heads] = taken.read[place][0, s, heads]
                else:
                    value[0, t] = taken.read[place][0, s]
            return value

        return replace

    places = [(cell.site, layer) for layer in cell.layers] or [(cell.site, None)]
    patched = forward(family, n_layers, target, Taps(write={place: replacing(place) for place in places}))
    return patched, from_source, forward(family, n_layers, target, Taps())


def prompt(ids: Sequence[int]) -> TokenizedPrompt:
    return TokenizedPrompt(tuple(ids), tuple(map(str, ids)), {}, ("further",) * len(ids))


def equal_pair(clean: Sequence[int], corrupted: Sequence[int]) -> TokenizedPair:
    places = tuple(range(len(clean)))
    return TokenizedPair(
        Pair("p", "", ("a",)), prompt(clean), prompt(corrupted), ((1,),), ((2,),), Alignment(places, places)
    )


def cell_of(site: str, layers: Sequence[int] = (), heads: Sequence[int] | None = None, **more: object) -> Cell:
    settings = {"position": None, "position_role": "all", "direction": "denoise", "window": max(1, len(layers))}
    settings |= more
    return Cell("s", site, tuple(layers), None if heads is None else tuple(heads), layer=None, **settings)


def random_cell(rng: random.Random, anatomy: Anatomy) -> Cell:
    sites = ["embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern", "mlp_act",
             "final_norm", "logits", "z", "attn_out"]  # fmt: skip
    site = rng.choice(sites if anatomy.parallel else [*sites, "resid_mid"])
    first = rng.randrange(anatomy.n_layers)
    layers = rng.choice(
        [(first,), tuple(range(anatomy.n_layers)), tuple(range(first, anatomy.n_layers)), tuple(range(first + 1))]
    )
    heads = None
    if site in {"q", "k", "v", "z", "pattern"}:
        count = anatomy.n_kv_heads if site in "kv" else anatomy.n_heads
        heads = rng.choice([None, (rng.randrange(count),), tuple(range(count))])
    direction = rng.choice(["denoise", "noise"])
    return cell_of(site, () if site in {"embed", "final_norm", "logits"} else layers, heads, direction=direction)


def same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= SAME * b.abs().max())


def some(rng: random.Random, length: int) -> tuple[int, ...]:
    """Positions: all, one, a beginning, an end, or any."""
    cut = rng.randrange(length)
    kind = rng.randrange(5)
    fixed = [range(length), [cut], range(cut + 1), range(cut, length)]
    return tuple(fixed[kind]) if kind < 4 else tuple(p for p in range(length) if rng.random() < 0.6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama1", "gpt_neox"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_random_cells_against_patched_forwards(family: str, n_layers: int) -> None:
    rng = random.Random(f"{family}{n_layers}")
    _, anatomy = model_and_anatomy(family, n_layers)
    finder = CutFinder(anatomy)
    seen = {"cut": 0, "inert": 0, "neither": 0}
    for _ in range(300):
        cell = random_cell(rng, anatomy)
        length = rng.randint(2, 6)
        # tokens are all different: attention over repeated tokens hides what it attends to (rotary positions)
        clean, others = (drawn := rng.sample(range(VOCAB), 2 * length))[:length], drawn[length:]
        changed = tuple(p for p in range(length) if rng.random() < 0.35) or (rng.randrange(length),)
        corrupted = [others[p] if p in changed else token for p, token in enumerate(clean)]
        positions = some(rng, length)
        readout = rng.choice([length - 1, length - 1, rng.randrange(length)])
        pair = equal_pair(clean, corrupted)
        assert changed_positions(pair, cell.direction) == changed
        target, source = (corrupted, clean) if cell.direction == "denoise" else (clean, corrupted)
        patched, goal, start = brute_force(family, cell, n_layers, target, source, positions, positions)
        cut = finder.is_cut(cell, pair, changed, positions, readout)
        inert = finder.is_inert(cell, pair, changed, positions, readout)
        told = f"{cell} {changed=} {positions=} {readout=}"
        assert cut == is_cut(cell, pair, anatomy, changed, positions, readout)
        assert inert == is_inert(cell, pair, anatomy, changed, positions, readout)
        assert same(patched[readout], goal[readout]) == cut, told
        # the first position attends to itself only, whatever its query, key and weights are: not worth a rule
        alone = cell.site in {"q", "k", "pattern"} and (readout == 0 or 0 in positions)
        if inert or not alone:
            assert same(patched[readout], start[readout]) == inert, told
        seen["cut" if cut else "inert" if inert else "neither"] += 1
    assert min(seen.values()) >= 20, seen


def _shifted(rng: random.Random) -> tuple[TokenizedPair, int]:
    """A pair aligned at both ends around middles of different lengths, as the corruption `answer` makes them."""
    drawn = iter(rng.sample(range(VOCAB), 10))
    head = [next(drawn) for _ in range(rng.randint(1, 3))]
    tail = [next(drawn) for _ in range(rng.randint(1, 2))]
    middles = [[next(drawn) for _ in range(rng.randint(0, 2))] for _ in range(2)]
    clean, corrupted = (head + middle + tail for middle in middles)
    kept, ends = range(len(head)), range(1, len(tail) + 1)
    alignment = Alignment(
        (*kept, *reversed([len(clean) - i for i in ends])),
        (*kept, *reversed([len(corrupted) - i for i in ends])),
        tuple(range(len(head), len(clean) - len(tail))),
        tuple(range(len(head), len(corrupted) - len(tail))),
    )
    pair = TokenizedPair(Pair("p", "", ("a",)), prompt(clean), prompt(corrupted), ((1,),), ((2,),), alignment)
    return pair, len(tail)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_prompts_of_different_lengths(family: str) -> None:
    rng = random.Random(f"shifted {family}")
    n_layers = 2
    _, anatomy = model_and_anatomy(family, n_layers)
    finder = CutFinder(anatomy)
    cuts = inerts = 0
    for _ in range(200):
        pair, _ = _shifted(rng)
        cell = random_cell(rng, anatomy)
        denoise = cell.direction == "denoise"
        if cell.site == "pattern" and len(pair.clean) != len(pair.corrupted):
            continue
        places = list(zip(pair.alignment.clean, pair.alignment.corrupted, strict=True))
        chosen = [places[i] for i in some(rng, len(places))]
        into = tuple(q if denoise else p for p, q in chosen)
        out_of = tuple(p if denoise else q for p, q in chosen)
        target, source = (pair.corrupted, pair.clean) if denoise else (pair.clean, pair.corrupted)
        readout, there = len(target) - 1, len(source) - 1
        changed = changed_positions(pair, cell.direction)
        patched, goal, start = brute_force(family, cell, n_layers, target.ids, source.ids, into, out_of)
        cut = finder.is_cut(cell, pair, changed, into, readout)
        inert = finder.is_inert(cell, pair, changed, into, readout)
        told = f"{cell} {pair.alignment} {into=}"
        if cut:
            assert same(patched[readout], goal[there]), told
        if inert:
            assert same(patched[readout], start[readout]), told
        # rotary models do not see that both prompts are moved as a whole; with learned positions nothing is closed
        # that is not called closed
        if not cut and family == "gpt2" and changed:
            assert not same(patched[readout], goal[there]), told
        cuts, inerts = cuts + cut, inerts + inert
    assert cuts >= 10
    assert inerts >= 10


PAIR = equal_pair([1, 2, 3, 4, 5], [1, 9, 3, 4, 5])
TOY = Anatomy(
    model_type="toy", n_layers=3, n_heads=4, n_kv_heads=1, d_model=16, d_head=4, d_mlp=8, vocab=31, parallel=False,
    embed="m.wte", final_norm="m.norm", head="head", blocks=("m.h.0", "m.h.1", "m.h.2"),
    attention=("m.h.0.attn", "m.h.1.attn", "m.h.2.attn"), attention_interface=True,
)  # fmt: skip
ALL = (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("site", "layers", "positions", "expected"),
    [
        ("resid_post", (2,), (4,), True),  # the last block at the read-out: CLAP's Table 4
        ("resid_post", (2,), (3,), False),
        ("resid_post", (1,), (4,), False),
        ("resid_post", (1,), ALL, True),  # the residual of any layer at all positions
        ("resid_pre", (2,), (1, 2, 3), False),
        ("resid_pre", (2,), (1, 2, 3, 4), True),
        ("embed", (), (1,), True),  # the only changed token
        ("embed", (), (0, 2), False),
        ("resid_pre", (0,), (1,), True),
        ("logits", (), (4,), True),
        ("final_norm", (), (4,), True),
        ("final_norm", (), (1,), False),
        ("attn_out", (0, 1, 2), (4,), True),  # nothing else carries it to the read-out
        ("attn_out", (1, 2), (4,), False),
        ("z", (0, 1, 2), ALL, True),
        ("v", (0, 1, 2), ALL, False),
        ("pattern", (0, 1, 2), ALL, False),
        ("mlp_out", (0, 1, 2), ALL, False),
        ("m.h.2", (), (4,), True),
        ("m.h.{layer}", (1,), ALL, True),
        ("m.h.{layer}.attn", (0, 1, 2), (4,), True),
        ("m.h.{layer}.mlp", (0, 1, 2), ALL, False),
        ("m.wte", (), (1,), True),
        ("m.norm", (), (4,), True),
        ("head", (), (4,), True),
        ("m.h.2.ln_1", (), ALL, False),
        ("m.dropout", (), ALL, False),
        ("m.h.2", (), (1,), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_named_cuts(site: str, layers: tuple[int, ...], positions: tuple[int, ...], expected: bool,
                    direction: str) -> None:  # fmt: skip
    cell = cell_of(site, layers, direction=direction)
    assert is_cut(cell, PAIR, TOY, (1,), positions, 4) is expected


@pytest.mark.parametrize(
    ("site", "layers", "positions", "expected"),
    [
        ("resid_post", (0,), (0,), True),  # before the first changed position
        ("resid_post", (0,), (1,), False),
        ("resid_post", (0,), (2,), False),  # reached through the attention
        ("embed", (), (2, 3, 4), True),
        ("mlp_out", (2,), (3,), True),  # no path from there to the read-out
        ("mlp_out", (2,), (4,), False),
        ("mlp_out", (1,), (3,), False),
        ("q", (2,), (3,), True),
        ("k", (2,), (3,), False),
        ("z", (2,), (3,), True),
        ("resid_post", (2,), (0, 1, 2, 3), True),
        ("final_norm", (), (3,), True),
        ("m.h.2.mlp.c_fc", (), (3,), True),
        ("m.h.2.mlp.c_fc", (), (4,), False),
        ("m.h.2.ln_1", (), (3,), False),
        ("m.h.1.ln_1", (), (0,), True),
        ("m.rotary", (), (0,), True),
        ("m.rotary", (), (2,), False),
    ],
)  # fmt: skip
def test_named_inert_cells(site: str, layers: tuple[int, ...], positions: tuple[int, ...], expected: bool) -> None:
    assert is_inert(cell_of(site, layers), PAIR, TOY, (1,), positions, 4) is expected


def test_a_single_key_value_head_is_all_of_them_and_still_no_cut() -> None:
    for site in ("k", "v"):
        assert not is_cut(cell_of(site, (0, 1, 2), (0,)), PAIR, TOY, (1,), ALL, 4)
    assert not is_cut(cell_of("z", (0, 1, 2), (0,)), PAIR, TOY, (1,), ALL, 4)
    assert is_cut(cell_of("z", (0, 1, 2), (0, 1, 2, 3)), PAIR, TOY, (1,), ALL, 4)


def test_whole_answers_are_read_at_several_positions() -> None:
    cell = cell_of("resid_post", (2,))
    assert is_cut(cell, PAIR, TOY, (1,), (4,), (4,))
    # the answer's own tokens (5, 6) attend to what was changed and are not patched
    assert not is_cut(cell, PAIR, TOY, (1,), (4,), (4, 5, 6))
    # … in the first block as well, so only the input of that block is a cut for them
    assert not is_cut(cell_of("resid_post", (0,)), PAIR, TOY, (1,), ALL, (4, 5, 6))
    assert is_cut(cell_of("resid_pre", (0,)), PAIR, TOY, (1,), ALL, (4, 5, 6))


def test_equal_questions_are_answered_once_and_different_ones_apart() -> None:
    finder = CutFinder(TOY)
    for head in range(4):
        for layer in range(3):
            assert not finder.is_cut(cell_of("z", (layer,), (head,)), PAIR, (1,), (4,), 4)
    assert len(finder._cuts) == 1
    assert finder.is_cut(cell_of("resid_post", (2,)), PAIR, (1,), (4,), 4)
    assert not finder.is_cut(cell_of("resid_post", (2,)), PAIR, (1,), (3,), 4)
    assert not finder.is_cut(cell_of("resid_post", (1,)), PAIR, (1,), (4,), 4)
    assert finder.is_cut(cell_of("resid_post", (1,)), PAIR, (4,), (4,), 4)


def test_ablations_cut_what_leaves_nothing_of_the_prompt_and_only_unreachable_cells_are_inert() -> None:
    finder = CutFinder(TOY, level="activation")
    everything, elsewhere = cell_of("resid_post", (2,)), cell_of("resid_post", (0,))
    assert finder.is_cut(everything, PAIR, (), (4,), 4)
    assert finder.is_cut(elsewhere, PAIR, (), ALL, 4)
    assert not finder.is_cut(elsewhere, PAIR, (), (4,), 4)
    assert not finder.is_cut(everything, PAIR, (), (3,), 4)
    assert not finder.is_cut(cell_of("z", (0, 1, 2)), PAIR, (), ALL, 4)
    # the tokens of an answer are not the prompt's: with all of the prompt gone nothing of it is read after them either
    assert finder.is_cut(cell_of("resid_pre", (0,)), PAIR, (), ALL, (4, 5, 6))
    assert not finder.is_cut(elsewhere, PAIR, (), ALL, (4, 5, 6))
    assert not finder.is_cut(everything, PAIR, (), (4,), (4, 5, 6))
    assert finder.is_inert(everything, PAIR, (), (3,), 4)
    assert not finder.is_inert(elsewhere, PAIR, (), (0,), 4)
    assert not finder.is_inert(cell_of("m.h.1.ln_1"), PAIR, (), (0,), 4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_ablations_against_patched_forwards_of_two_prompts(family: str, n_layers: int) -> None:
    """With the same values put in, a cut makes two prompts alike that share no token; any other cell does not."""
    rng = random.Random(f"ablated {family}{n_layers}")
    _, anatomy = model_and_anatomy(family, n_layers)
    finder = CutFinder(anatomy, level="activation")
    cuts = others = 0
    for _ in range(150):
        cell = replace(random_cell(rng, anatomy), direction="noise")
        length = rng.randint(2, 6)
        drawn = rng.sample(range(VOCAB), 3 * length)
        one, other, donor = drawn[:length], drawn[length : 2 * length], drawn[2 * length :]
        positions = some(rng, length) or (0,)
        patched = [brute_force(family, cell, n_layers, t, donor, positions, positions)[0][-1] for t in (one, other)]
        # the pair's own corrupted prompt, of another length, must not matter
        pair = TokenizedPair(
            Pair("p", "", ("a",)), prompt(one), prompt(one[:1]), ((1,),), ((2,),), Alignment((0,), (0,))
        )  # fmt: skip
        cut = finder.is_cut(cell, pair, (), positions, length - 1)
        assert same(patched[0], patched[1]) == cut, f"{cell} {positions=} {length=}"
        cuts, others = cuts + cut, others + (not cut)
    assert min(cuts, others) >= 15


def test_noise_is_a_change_and_a_cell_without_positions_is_neither() -> None:
    noised = equal_pair([1, 2, 3], [1, 2, 3])
    assert changed_positions(noised, "denoise", (1,)) == (1,) == changed_positions(noised, "noise", (1,))
    cell = cell_of("embed", position_role=None, position=1)
    finder = CutFinder(TOY)
    assert finder.cut_in(cell, equal_pair([1, 2, 3], [1, 7, 3])) is True
    assert finder.cut_in(cell, equal_pair([1, 2, 3], [7, 2, 3])) is False
    assert finder.cut_in(cell, equal_pair([1], [2])) is None
    assert finder.cut_in(cell, noised, (1,)) is True
    assert finder.cut_in(cell, noised, (0, 1)) is False
    end = cell_of("resid_post", (2,), position_role="last")
    assert finder.cut_in(end, equal_pair([1, 2, 3], [1, 7, 3])) is True
    assert finder.cut_in(end, equal_pair([1, 2, 3], [1, 7, 3]), (), 2) is False


def test_positions_of_the_target_run_follow_the_alignment() -> None:
    pair = TokenizedPair(
        Pair("p", "", ("a",)), prompt([1, 2, 9, 3]), prompt([1, 3]), ((1,),), ((2,),),
        Alignment((0, 3), (0, 1), (1, 2), ()),
    )  # fmt: skip
    assert patched_positions(cell_of("embed"), pair) == (0, 1)
    assert patched_positions(cell_of("embed", direction="noise"), pair) == (0, 3)
    assert changed_positions(pair, "denoise") == (1,)
    assert changed_positions(pair, "noise") == (1, 2, 3)
    # the shorter prompt lacks positions that the other attends to: its residual is no cut before the last block
    assert not is_cut(cell_of("resid_post", (1,)), pair, TOY, (1,), (0, 1), 1)
    assert is_cut(cell_of("resid_post", (2,)), pair, TOY, (1,), (0, 1), 1)


def _executed(model: Model, cell: Cell, pair: TokenizedPair, positions: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    clean, corrupted = BaseRun("clean", pair.clean.ids), BaseRun("corrupted", pair.corrupted.ids)
    target, source = (corrupted, clean) if cell.direction == "denoise" else (clean, corrupted)
    values = FromRun(source.id, tuple(positions))
    patches = tuple(
        Patch(site, layer, tuple(positions), values, cell.heads) for site, layer in places_of(cell)
    )  # fmt: skip
    plan = Plan(
        (clean, corrupted),
        (DerivedRun("patched", target.id, patches),),
        tuple(Readout(name, (len(pair.clean) - 1,)) for name in ("patched", source.id, target.id)),
    )
    logits = {
        run: answered.logits[row, 0]
        for answered in reference.execute(model, plan)
        for row, run in enumerate(answered.runs)
    }
    return logits["patched"], logits[source.id], logits[target.id]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_through_the_plain_executor(family: str) -> None:
    rng = random.Random(family)
    model = tiny_model(family)
    anatomy = model.anatomy
    finder = CutFinder(anatomy)
    known = (anatomy.embed, anatomy.final_norm, anatomy.head, *anatomy.blocks, *anatomy.attention)
    inside = tuple(path for path in model.module_paths if path.startswith(f"{anatomy.blocks[1]}.mlp"))
    paths = [path for path in (*known, *inside) if path in model.module_paths]
    cuts = 0
    for _ in range(24):
        cell = random_cell(rng, anatomy)
        if rng.random() < 0.4:
            cell = cell_of(rng.choice(paths), direction=cell.direction)
        if cell.site in anatomy.refusals:
            continue
        ids = rng.sample(range(3, 90), 8)
        changed = rng.choice([(0,), (1,), (0, 2), (2,)])
        pair = equal_pair(ids[:4], [ids[4 + p] if p in changed else ids[p] for p in range(4)])
        positions = rng.choice([(0, 1, 2, 3), (3,), changed, (1, 2, 3)])
        cut = finder.is_cut(cell, pair, changed, positions, 3)
        inert = finder.is_inert(cell, pair, changed, positions, 3)
        patched, source, target = _executed(model, cell, pair, positions)
        told = f"{cell} {changed=} {positions=}"
        assert torch.allclose(patched, source, rtol=1e-4, atol=1e-5) == cut, told
        if inert:
            torch.testing.assert_close(patched, target, rtol=1e-4, atol=1e-5)
        cuts += cut
    assert cuts >= 2
