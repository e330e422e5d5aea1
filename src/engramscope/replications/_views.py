"""Views: what is measured on the pairs and the corruption of an arm besides its sweeps."""

from __future__ import annotations

from engramscope.errors import InputError
from engramscope.locate.attention_view import Restore, attention_view
from engramscope.locate.experiment import Progress
from engramscope.models import Model
from engramscope.replications._file import ViewSection
from engramscope.replications._joint import restore_jointly
from engramscope.replications._results import ViewResult
from engramscope.results.schema import Frame
from engramscope.study_inputs import Inputs


def make_view(view: ViewSection, inputs: Inputs, model: Model, progress: Progress | None = None) -> ViewResult:
    """Make one view; where the model or its prompts lack what it names, the result says so.

    Args:
        view: what is looked at.
        inputs: the study of its arm.
        model: the model.
        progress: called with (what, done, total).
    """
    try:
        if view.kind == "restored":
            assert view.restore is not None
            rows = restore_jointly(model, inputs, view.restore.site, view.restore.heads, progress)
            return ViewResult(restored=rows)
        return ViewResult(attention=_attention(view, inputs, model, progress))
    except InputError as error:
        # heads are those of the published model; another one need not have them
        return ViewResult(why_not=as_reason(error))


def as_reason(error: InputError) -> str:
    """The first fault as the end of a sentence."""
    first = error.faults[0].rstrip(".")
    return first[:1].lower() + first[1:]


def _attention(
    view: ViewSection, inputs: Inputs, model: Model, progress: Progress | None
) -> dict[tuple[str, str], tuple[float, float]]:
    """(run, target) -> (mean, SD) over prompts, heads and draws."""
    restore = None if view.restore is None else Restore(view.restore.site, tuple(view.restore.heads))
    found = attention_view(
        model, inputs.pairs, view.heads, view.targets, query=view.query, corruption=inputs.corruption, restore=restore,
        seed=inputs.study.seed, progress=progress,
    )  # fmt: skip
    summary: Frame = found.summary
    together: Frame = summary[summary["layer"].isna()]
    return {
        (str(run), str(target)): (float(mean), float(sd))
        for run, target, mean, sd in zip(*(together[name] for name in ("run", "target", "mean", "sd")), strict=True)
    }
