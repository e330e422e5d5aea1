from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from results_rows import chunk, summary

from engramscope.errors import ResultsError
from engramscope.results import to_xarray


def _effects() -> pd.DataFrame:
    return pa.concat_tables([chunk(layer) for layer in (4, 0, 2)]).to_pandas()


def test_every_value_stands_where_its_row_says() -> None:
    table = _effects()
    data = to_xarray(table.sample(frac=1.0, random_state=0))
    assert data["patched"].dims == ("metric", "pair", "layer", "head")
    assert data["layer"].values.tolist() == [0, 2, 4]
    assert data.attrs["sweep"] == "heads"
    for row in table.to_dict("records"):
        where = {"metric": row["metric"], "pair": row["pair"], "layer": row["layer"], "head": row["head"]}
        assert float(data["patched"].sel(where)) == row["patched"]
        assert data["group"].sel(pair=row["pair"]).item() == row["group"]
    assert np.isfinite(data["patched"].values).all()


def test_missing_combinations_are_nan_and_not_zero() -> None:
    table = _effects()
    gone = (table["pair"] == "p1") & (table["layer"] == 2) & (table["head"] == 3)
    data = to_xarray(table[~gone])
    assert np.isnan(data["patched"].sel(pair="p1", layer=2, head=3)).all()
    assert int(np.isnan(data["patched"]).sum()) == 1


def test_a_position_keeps_its_role_beside_it() -> None:
    table = pd.concat(
        [summary(sweep="resid", head=None, layer=layer, position=position, position_role=role,
                 estimate=layer * 10.0 + position)
         for layer in range(2) for position, role in enumerate(["first", "subject_last", "last"])]
    )  # fmt: skip
    data = to_xarray(table)
    assert data["estimate"].dims == ("metric", "layer", "position")
    assert data["estimate"].values[0].tolist() == [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]
    assert data["position_role"].values[0, 1].tolist() == ["first", "subject_last", "last"]


def test_roles_keep_the_order_of_the_table_and_directions_become_a_dimension() -> None:
    table = pd.concat(
        [summary(head=None, direction=direction, position_role=role, estimate=value)
         for direction, offset in (("denoise", 0.0), ("noise", 10.0))
         for value, role in zip([1.0 + offset, 2.0 + offset], ["s2", "last"], strict=True)]
    )  # fmt: skip
    data = to_xarray(table)
    assert data["estimate"].dims == ("metric", "direction", "layer", "position_role")
    assert data["estimate"].sel(direction="noise", position_role="last").item() == 12.0
    assert data["position_role"].values.tolist() == ["s2", "last"]


def test_what_cannot_be_one_array_is_said() -> None:
    table = _effects()
    two = pd.concat([table, table[table["head"] == 0].assign(sweep="mlp", head=None)])
    with pytest.raises(ResultsError, match="'heads', 'mlp'"):
        to_xarray(two)
    assert to_xarray(two, "mlp")["patched"].dims == ("metric", "pair", "layer")
    with pytest.raises(ResultsError, match="no sweep 'z'"):
        to_xarray(table, "z")
    with pytest.raises(ResultsError, match="not unique"):
        to_xarray(pd.concat([table, table.iloc[:1]]))
    with pytest.raises(ResultsError, match="some have none"):
        to_xarray(pd.concat([table, table.assign(head=None)]))
