"""Between two models parts that were trained together are taken apart, and parts that never changed can do nothing."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import corruption_of
from engramscope.audit._show import count, listed
from engramscope.models.site import is_weights
from engramscope.models.weights import weight_parts


class BaseModel(Check):
    """Says what exchanging parts of two models can and cannot show, and which parts never changed."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Two models"

    def run(self, context: AuditContext) -> list[Finding]:
        """Notes, where the corrupted run is that of the model before training."""
        if corruption_of(context.study).level != "weights":
            return self.ok("All runs are those of one model.")
        findings = [
            self.finding(
                "note",
                "The corrupted run is the model before training, on the same prompt. A recovery of 1 is the trained "
                "model's answer and 0 the base model's, whether or not either of them is right.",
            )
        ]
        if any(is_weights(sweep.site) for sweep in context.study.sweep):
            findings.append(
                self.finding(
                    "note",
                    "Parts that were trained together are taken apart: a part alone may restore little because it "
                    "needs another that learned with it, and recoveries of parts need not add up to 100 %. Groups of "
                    "layers (window) and both directions show how much of that there is.",
                )
            )
        if context.other_base:
            findings.append(
                self.finding(
                    "warning",
                    f"The model was not trained from these base weights but from others ({context.other_base}), as its "
                    "training.json says. What is exchanged here is not what that training moved.",
                )
            )
        return findings + self._unchanged(context)

    def _unchanged(self, context: AuditContext) -> list[Finding]:
        changed = context.changed
        if changed is None:
            return []
        parts = weight_parts(changed.model)
        same = [key for key, names in parts.items() if not changed.tensors.intersection(names)]
        if not same:
            return []
        names = (part if layer is None else f"layer {layer}: {part}" for part, layer in same)
        return [
            self.finding(
                "note",
                f"Training left {count(len(same), 'part')} of {len(parts)} as they were, to the last bit. Their "
                "transplants, and values that depend on nothing else, have the effect 0 by construction.",
                listed(names),
            )
        ]


COMPONENT = BaseModel
