"""Path patching and severed tracing written a second time, with plain hooks only: the procedures as published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.engine.plain_hooks import PlainHooks

#: site, layer, what becomes of the value
Step = tuple[str, int | None, Callable[[Tensor], Tensor]]
#: kind ("q", "k", "v", "mlp"), layer, head (None for an MLP)
To = tuple[str, int, int | None]
_SITE = {"mlp": "mlp_out"}


class PlainPaths(PlainHooks):
    """Several hooks at once, and what the papers make of them."""

    def __init__(self, family: str, hf: nn.Module, sizes: Any) -> None:
        super().__init__(family, hf, sizes)
        # found by a forward of its own, which must not pass the hooks of another
        self._found = {
            block: PlainHooks._outputs_in(self, block)
            for block in (f"{self.known.blocks}.{layer}" for layer in range(sizes.n_layers))
        }

    def _outputs_in(self, block: str) -> dict[str, Tensor]:
        return self._found[block]

    def steps(self, tokens: list[int], steps: Sequence[Step]) -> Tensor:
        """Logits [seq, vocab] of a forward with all these steps, those at one place in their order."""
        with self._installed(steps), torch.no_grad():
            return self.hf(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]

    def values(self, tokens: list[int], steps: Sequence[Step], site: str, layer: int) -> Tensor:
        """The value of a site as the other steps make it, before they change it itself."""
        kept: list[Tensor] = []
        self.steps(tokens, [(site, layer, lambda value: kept.append(value.clone()) or value), *steps])
        return kept[0]

    def four_passes(
        self, base: list[int], other: list[int], sender: Step, to: To | None, at: list[int], *, frozen: bool
    ) -> Tensor:
        """Wang et al. 2022, §3.1, with one receiver (None: the logits).

        Queries, keys and values of all heads are held at what they are in `base`, and MLPs where `frozen`.
        """
        sites = ("q", "k", "v", "mlp_out") if frozen else ("q", "k", "v")
        held: list[Step] = [
            (site, layer, _constantly(self.read(base, site, layer)))
            for layer in range(self.sizes.n_layers)
            for site in sites
            if (site, layer) not in ((sender[0], sender[1]), _place(to))
        ]
        if to is None:
            return self.steps(base, [*held, sender])
        site, layer = _place(to)
        received = self.values(base, [*held, sender], site, layer)
        return self.steps(base, [(site, layer, _into(received, at, to[2]))])

    def edges(self, base: list[int], sender: Step, to: Sequence[To], logits: bool, at: list[int]) -> Tensor:
        """The edge form with MLPs frozen: each receiver reads the residual stream plus what the sender's write differs.

        The stream is shifted before the receiver's layer, what the receiver makes of it is read, and only that is kept.
        """
        assert sender[1] is not None
        own = "mlp_out" if sender[0] == "mlp_out" else "attn_out"
        if own == "mlp_out":
            write = self.read(base, own, sender[1])
            shift = sender[2](write) - write
        else:
            shift = self.values(base, [sender], own, sender[1]) - self.read(base, own, sender[1])
        kept: list[Step] = []
        for one in sorted(to, key=lambda one: (one[1], one[0] == "mlp")):
            site, layer = _place(one)
            stream = "resid_mid" if one[0] == "mlp" and self.known.middle is not None else "resid_pre"
            received = self.values(base, [*kept, (stream, layer, lambda value: value + shift)], site, layer)
            kept.append((site, layer, _into(received, at, one[2])))
        last = self.sizes.n_layers - 1
        return self.steps(base, [*kept, *([("resid_post", last, lambda value: value + shift)] if logits else [])])

    def severed(
        self, noised: Callable[[Tensor], Tensor], frozen: Callable[[Tensor], Tensor], tokens: list[int],
        clean: list[int], layer: int, at: list[int], module: str,
    ) -> Tensor:  # fmt: skip
        """Meng et al. 2022, appendix B.2: two passes, the second with the first one's modules at these positions."""
        recorded = [
            self.values(tokens, [("embed", None, frozen)], module, number) for number in range(self.sizes.n_layers)
        ]
        restored = self.read(clean, "resid_post", layer)
        steps: list[Step] = [("embed", None, noised), ("resid_post", layer, _into(restored, at, None))]
        steps += [(module, number, _into(value, at, None)) for number, value in enumerate(recorded)]
        return self.steps(tokens, steps)

    @contextmanager
    def _installed(self, steps: Sequence[Step]) -> Iterator[None]:
        handles: list[Any] = []
        try:
            for site, layer, fn in steps:
                handles += self._hooks(site, layer, fn)
            yield
        finally:
            for handle in handles:
                handle.remove()


def replaced(values: Tensor, at: list[int], head: int | None) -> Callable[[Tensor], Tensor]:
    """What puts `values` in place at these positions of one head, or of the whole width."""
    return _into(values, at, head)


def _place(to: To | None) -> tuple[str, int | None]:
    return ("logits", None) if to is None else (_SITE.get(to[0], to[0]), to[1])


def _constantly(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda value: values.view(value.shape)


def _into(values: Tensor, at: list[int], head: int | None) -> Callable[[Tensor], Tensor]:
    def put(value: Tensor) -> Tensor:
        new = value.clone()
        for position in at:
            if head is None:
                new[:, position] = values.view(value.shape)[:, position]
            else:
                new[:, position, head] = values[:, position, head]
        return new

    return put
