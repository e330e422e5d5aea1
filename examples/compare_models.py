"""The demonstration's study on both bundled models: prints the table of docs/replication.md (about a minute)."""

import tempfile
from importlib.resources import files
from pathlib import Path

from engramscope import StudyResult, run_study

FIRST_MATRIX = {"mini": "transformer.h.0.mlp.c_fc", "mini-llama": "model.layers.0.mlp.up_proj"}
ROWS = [  # (what, sweep, layer, role)
    ("attention output of layer 0, all positions", "attention", 0, "all"),
    ("MLP output of layer 0, all positions", "mlp", 0, "all"),
    ("first feed-forward matrix (CLAP's Table 3)", "first feed-forward layer", None, "all"),
    ("residual after layer 0, last position", "residual", 0, "last"),
    ("final output layer (Table 4): a cut", "final output layer", None, "last"),
]


def run(model: str, folder: Path) -> StudyResult:
    text = (files("engramscope.demo") / "epilepsy.toml").read_text(encoding="utf-8")
    text = text.replace('name = "mini"', f'name = "{model}"').replace(FIRST_MATRIX["mini"], FIRST_MATRIX[model])
    study = folder / f"{model}.toml"
    study.write_text(text, encoding="utf-8")
    return run_study(study, folder / model)


def recovery(result: StudyResult, sweep: str, layer: int | None, role: str) -> str:
    table = result.summary()
    chosen = table["metric"].eq("logit_diff") & table["sweep"].eq(sweep) & table["position_role"].eq(role)
    chosen &= table["layer"].isna() if layer is None else table["layer"].eq(layer)
    (row,) = table[chosen].to_dict("records")
    return f"{100 * row['estimate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def contrast(result: StudyResult, sweep: str) -> str:
    for row in result.manifest()["findings"]["contrast"]["rows"]:
        if (row["sweep"], row["metric"]) == (sweep, "logit_diff") and row["statistic"].startswith("effective"):
            first, second = row["values"]
            interval = f"[{row['low']:.3f}, {row['high']:.3f}], adjusted p {row['p_adjusted']:.3f}"
            return f"{first:.2f} / {second:.2f}, difference {row['difference']:.3f} {interval}"
    return "-"


with tempfile.TemporaryDirectory() as scratch:
    results = [run(model, Path(scratch)) for model in FIRST_MATRIX]
    for what, sweep, layer, role in ROWS:
        print("|", what, "|", " | ".join(recovery(result, sweep, layer, role) for result in results), "|")
    for name, sweep in (("attention", "attention"), ("MLP", "mlp")):
        what = f"effective number of layers, {name}: associative / definitional"
        print("|", what, "|", " | ".join(contrast(result, sweep) for result in results), "|")
