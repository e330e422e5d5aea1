"""By which way a sweep's values reach the answer, in words: severed modules, receivers of paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engramscope.report.load import Study, records, section
from engramscope.report.words import joined, role_words
from engramscope.results.schema import SINGLES

SEVERED: Mapping[str, str] = {"mlp_out": "MLPs severed", "attn_out": "attention severed"}


def declared(study: Study, sweep: str) -> Mapping[str, Any]:
    """The sweep as the study declares it; the single layers that were added beside windows as those windows are."""
    sweeps = {str(one.get("name")): one for one in records(section(study.manifest, "study"), "sweep")}
    return sweeps.get(sweep) or sweeps.get(sweep.rstrip("'").removesuffix(SINGLES), {})


def severed(study: Study, sweep: str) -> str:
    """Which modules are severed, "mlp_out" or "attn_out"; empty for none."""
    return str(declared(study, sweep).get("severed") or "")


def way_words(study: Study, sweep: str) -> str:
    """ ", seen by the logits only", ", MLPs severed"; empty for an ordinary patch."""
    one = declared(study, sweep)
    if one.get("severed"):
        again = ", with another draw of the noise" if one.get("as_published") else ""
        return f", {SEVERED.get(str(one['severed']), str(one['severed']))}{again}"
    receivers = [str(name) for name in one.get("receivers") or []]
    if not receivers:
        return ""
    to = one.get("receiver_positions") or "all"
    roles = [to] if isinstance(to, str) else [str(role) for role in to]
    only_logits = receivers == ["logits"]
    where = "" if "all" in roles or only_logits else f" at {joined([role_words(role) for role in roles])}"
    mlps = ", MLPs frozen" if one.get("mlps") == "frozen" else ""
    named = joined(["the logits" if name == "logits" else name for name in receivers])
    return f", seen by {named}{where} only{mlps}"
