"""Patching written a second time, with nothing of the package in it: plain hooks at module paths known by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.known_paths import KNOWN

Positions = list[int]


def _first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def _with_first(value: Any, new: Tensor) -> Any:
    return new if isinstance(value, Tensor) else (new, *value[1:])


def _reshaped(fn: Callable[[Tensor], Tensor], value: Tensor, batch: int) -> Tensor:
    """Some modules see [batch * seq, width]."""
    return fn(value) if value.ndim == 3 else fn(value.view(batch, -1, value.shape[-1])).view(value.shape)


class PlainHooks:
    """Reads and patches one family by its known paths.

    Args:
        family: a name in `KNOWN`.
        hf: the model of transformers.
        sizes: whatever has n_heads, n_kv_heads, d_head and d_model.
    """

    def __init__(self, family: str, hf: nn.Module, sizes: Any) -> None:
        self.known, self.hf, self.sizes = KNOWN[family], hf, sizes
        self.modules = dict(hf.named_modules())

    def run(
        self, tokens: list[int], site: str | None, layer: int | None, fn: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Logits [seq, vocab] of a forward in which `fn` maps the value of a site to its new value."""
        handles = []
        try:
            if site is not None and fn is not None and site != "logits":
                handles = self._hooks(site, layer, fn)
            with torch.no_grad():
                logits = self.hf(input_ids=torch.tensor([tokens]), use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return (fn(logits) if site == "logits" and fn is not None else logits)[0]

    def read(self, tokens: list[int], site: str, layer: int | None) -> Tensor:
        """The value [1, seq, ...] of a site; with heads apart where it has heads."""
        kept: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            kept.append(value.clone())
            return value

        self.run(tokens, site, layer, keep)
        return kept[0]

    def patched(
        self, base: list[int], source: list[int], site: str, layer: int | None, heads: list[int] | None, at: Positions
    ) -> Tensor:
        """Logits of `base` with values of `source` at these positions (and heads)."""
        values = self.read(source, site, layer)

        def put(value: Tensor) -> Tensor:
            new = value.clone()
            for position in at:
                if heads is None:
                    new[:, position] = values[:, position]
                else:
                    for head in heads:
                        new[:, position, head] = values[:, position, head]
            return new

        return self.run(base, site, layer, put)

    def _hooks(self, site: str, layer: int | None, fn: Callable[[Tensor], Tensor]) -> list[Any]:
        known = self.known
        if site == "embed":
            return [self._output(known.embed, fn)]
        if site == "final_norm":
            return [self._output(known.norm, fn)]
        block = f"{known.blocks}.{layer}"
        if site == "resid_pre":
            return [self._input(block, fn)]
        if site == "resid_post":
            return [self._output(block, fn)]
        if site == "resid_mid":
            return self._resid_mid(block, fn)
        if site in ("attn_out", "mlp_out"):
            return [self._output(f"{block}.{known.attn if site == 'attn_out' else known.mlp}", fn)]
        if site == "mlp_act":
            return [self._input(f"{block}.{known.down}", fn)]
        if site == "z":
            apart = self.sizes.n_heads
            return [self._input(f"{block}.{known.out}", lambda v: fn(v.unflatten(-1, (apart, -1))).flatten(-2))]
        return self._projections(block, "qkv".index(site), fn)

    def _output(self, path: str, fn: Callable[[Tensor], Tensor]) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            return _with_first(output, _reshaped(fn, _first(output), 1))

        return self.modules[path].register_forward_hook(hook)

    def _input(self, path: str, fn: Callable[[Tensor], Tensor]) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (_reshaped(fn, args[0], 1), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": _reshaped(fn, kwargs["hidden_states"], 1)}

        return self.modules[path].register_forward_pre_hook(hook, with_kwargs=True)

    def _projections(self, block: str, which: int, fn: Callable[[Tensor], Tensor]) -> list[Any]:
        """q, k, v are columns of the projections' outputs: which ones is read off numbered outputs."""
        outputs = self._outputs_in(block)
        for name in outputs:
            numbered = {
                other: torch.arange(out.shape[-1]).expand(out.shape) if other == name else torch.full(out.shape, -1)
                for other, out in outputs.items()
            }
            columns = self.known.split(numbered, self.sizes)[which][0, 0]  # [heads, d_head]
            if bool((columns >= 0).all()):
                return [self._output(f"{block}.{name}", _on_columns(columns, fn))]
        raise AssertionError("no projection found")

    def _outputs_in(self, block: str) -> dict[str, Tensor]:
        """Outputs of the modules that the split of this family reads, by their path inside the block."""
        found: dict[str, Tensor] = {}
        names = [p.removeprefix(f"{block}.") for p in self.modules if p.startswith(f"{block}.")]
        handles = [
            self.modules[f"{block}.{name}"].register_forward_hook(
                lambda _m, _i, out, name=name: found.__setitem__(name, _first(out))
            )
            for name in names
        ]
        self.run([1, 2, 3], None, None, None)
        for handle in handles:
            handle.remove()
        read: list[str] = []

        class Spy(dict[str, Tensor]):
            def __getitem__(self, key: str) -> Tensor:
                read.append(key)
                return super().__getitem__(key)

        self.known.split(Spy(found), self.sizes)
        return {name: found[name] for name in read}

    def _resid_mid(self, block: str, fn: Callable[[Tensor], Tensor]) -> list[Any]:
        """The second norm's input is replaced, and so is the residual that the MLP's output is added to."""
        state: dict[str, Tensor] = {}

        def second_norm(value: Tensor) -> Tensor:
            state["mid"] = fn(value)
            return state["mid"]

        def mlp(value: Tensor) -> Tensor:
            state["mlp"] = value
            return value

        def end(_value: Tensor) -> Tensor:
            return state["mid"] + state["mlp"].view(state["mid"].shape)

        return [
            self._input(f"{block}.{self.known.middle}", second_norm),
            self._output(f"{block}.{self.known.mlp}", mlp),
            self._output(block, end),
        ]


def _on_columns(columns: Tensor, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def replaced(value: Tensor) -> Tensor:
        new = value.clone()
        new[..., columns.flatten()] = fn(value[..., columns.flatten()].unflatten(-1, columns.shape)).flatten(-2)
        return new

    return replaced
