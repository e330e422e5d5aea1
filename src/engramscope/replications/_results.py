"""What the measures look at: the arms' effects, the views, and which model they were made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from engramscope.replications._effects import NotMeasuredError, Table, table_of
from engramscope.results.schema import Frame

#: appended to the name of a sweep of windows for the single layers that are run beside it
SINGLES = " (single layers)"


@dataclass
class ArmResult:
    """A finished study.

    Attributes:
        load: gives its effects table; called once, when the first value asks for it.
    """

    load: Callable[[], pd.DataFrame]
    _effects: pd.DataFrame | None = None
    _tables: dict[tuple[str | None, str], Table] = field(default_factory=dict)

    @property
    def effects(self) -> pd.DataFrame:
        """The effects table."""
        if self._effects is None:
            self._effects = self.load()
        return self._effects

    def table(self, sweep: str | None, metric: str) -> Table:
        """One sweep under one metric; see `table_of`."""
        key = (sweep, metric)
        if key not in self._tables:
            self._tables[key] = table_of(self.effects, sweep, metric)
        return self._tables[key]

    def singles(self, sweep: str | None, metric: str) -> Table:
        """The single layers beside a sweep of windows: those that were run for it, or a sweep of the same site.

        Raises:
            NotMeasuredError: there are none.
        """
        rows: Frame = self.effects[["sweep", "site", "window"]].drop_duplicates()
        known = set(rows["sweep"])
        own = (sweep or str(rows["sweep"].iloc[0])).removesuffix(SINGLES)
        if own + SINGLES in known:
            return self.table(own + SINGLES, metric)
        sites = set(rows.loc[rows["sweep"] == own, "site"])
        alike: Frame = rows[(rows["window"] == 1) & rows["site"].isin(sites)]
        if not len(alike):
            raise NotMeasuredError(f"the single layers of sweep {own!r} were not run")
        return self.table(str(alike["sweep"].iloc[0]), metric)


@dataclass(frozen=True)
class ViewResult:
    """What a view found.

    Attributes:
        attention: (run, target) -> (mean, SD) of the attention weight; runs "clean", "corrupted", "patched".
        restored: metric -> one row per pair and draw: `pair, group, seed, metric, clean, corrupted, patched`.
        why_not: why it could not be made; "" where it could.
    """

    attention: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    restored: pd.DataFrame | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Results:
    """Everything that a replication found.

    Attributes:
        arms: by name.
        views: by name.
        layers: of the model that was measured.
        published_layers: of the model that the values were published for.
        published: whether the two are the same model.
        model: name of the published model, for sentences.
        why_not: why an arm could not be run on this model.
    """

    arms: Mapping[str, ArmResult]
    views: Mapping[str, ViewResult]
    layers: int
    published_layers: int
    published: bool
    model: str = "the published model"
    why_not: Mapping[str, str] = field(default_factory=dict)

    def arm(self, name: str) -> ArmResult:
        """An arm.

        Raises:
            NotMeasuredError: it was not run.
        """
        if name not in self.arms:
            raise NotMeasuredError(self.why_not.get(name, f"the study {name!r} was not run"))
        return self.arms[name]

    def view(self, name: str) -> ViewResult:
        """A view.

        Raises:
            NotMeasuredError: it could not be made; says why.
        """
        if name not in self.views:
            raise NotMeasuredError(f"the view {name!r} was not made")
        if why := self.views[name].why_not:
            raise NotMeasuredError(why)
        return self.views[name]
