"""What a study leaves behind: files, columns, numbers that can be computed again from the table and from the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from engramscope.audit.window_inflation import WindowInflation
from engramscope.errors import InputError
from engramscope.pairs import Pair
from engramscope.pairs.clusters import clusters_of
from engramscope.report.tables import exclusions
from engramscope.results.read import read_effects, read_manifest, read_summary
from engramscope.study import run_study
from engramscope.study_inputs import read_inputs
from engramscope.study_steps import audit_context, skipped_of
from tests.tiny_study import SENTENCES, pair_rows, same_tables, tokenizer, write_study

COLUMNS = {
    "study": pa.string(), "pair": pa.string(), "group": pa.string(), "corruption": pa.string(), "seed": pa.int64(),
    "direction": pa.string(), "site": pa.string(), "layer": pa.int64(), "head": pa.int64(), "position": pa.int64(),
    "position_role": pa.string(), "window": pa.int64(), "metric": pa.string(), "clean": pa.float64(),
    "corrupted": pa.float64(), "patched": pa.float64(), "effect": pa.float64(), "recovery": pa.float64(),
    "status": pa.string(),
}  # fmt: skip
SWEEPS = (
    {"name": "heads", "site": "z", "heads": "each", "direction": "both"},
    {"name": "wide", "site": "mlp_out", "window": 3},
    {"name": "residual", "site": "resid_post", "positions": "each"},
    {"name": "module", "site": "transformer.h.{layer}.mlp.c_fc", "positions": "last"},
)


@pytest.fixture(scope="module")
def study(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with spaces in it")
    path = write_study(
        folder, gpt2, SWEEPS, metrics={"names": ["logit_diff", "prob"]}, run={"executor": "traversal", "check": 12}
    )
    out = folder / "deep" / "results of it"
    run_study(path, out)
    return out


def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_the_folder_holds_the_files_of_the_contract(study: Path) -> None:
    names = {path.name for path in study.iterdir()}
    wanted = {"study.toml", "manifest.json", "pairs.parquet", "effects.parquet", "summary.csv", "report.html"}
    assert wanted <= names
    assert names <= wanted | {"figures"}
    assert (study / "study.toml").read_bytes() == (study.parents[1] / "study.toml").read_bytes()


def test_the_columns_of_the_effects_begin_as_in_the_contract(study: Path) -> None:
    schema = pq.read_schema(study / "effects.parquet")
    assert schema.names[: len(COLUMNS)] == list(COLUMNS)
    assert [schema.field(name).type for name in COLUMNS] == list(COLUMNS.values())


def test_the_manifest_says_how_the_numbers_came_about(study: Path) -> None:
    manifest = json.loads((study / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["schema"] == 1
    assert manifest["executor"] == {"requested": "traversal", "used": "traversal", "way": "packed", "note": ""}
    assert manifest["memory"]["allowed_gb"] == 4.0
    assert manifest["memory"]["peak_gb"] > 0
    assert "recomputed by whole forwards" in (study / "report.html").read_text(encoding="utf-8")
    assert {"torch", "transformers", "engramscope", "python"} <= set(manifest["versions"])
    assert len(manifest["model"]["weight_hash"]) == 64
    assert manifest["seed"] == 0
    assert manifest["study"]["stats"]["resamples"] == 200
    assert manifest["self_checks"]
    assert all(check["passed"] for check in manifest["self_checks"])
    # cells in a pair are counted, not the two metrics of each
    assert manifest["parity"]["checked"] == 12
    assert manifest["parity"]["values"] == 24
    assert manifest["parity"]["max_abs_diff"] <= manifest["parity"]["tolerance"]
    assert set(manifest["noise_floor"]) == {"logit_diff", "prob"}
    assert {"baselines", "sweep", "checks", "statistics", "report"} <= set(manifest["timings_s"])
    assert manifest["counts"]["by_status"] == {"ok": manifest["counts"]["rows"]}
    assert len(manifest["sessions"]) == 1


def test_effect_and_recovery_follow_from_the_other_columns(study: Path) -> None:
    rows = read_effects(study)
    base = np.where(rows["direction"] == "denoise", rows["corrupted"], rows["clean"])
    np.testing.assert_array_equal(rows["effect"], rows["patched"] - base)
    expected = (rows["patched"] - rows["corrupted"]) / (rows["clean"] - rows["corrupted"])
    np.testing.assert_allclose(rows["recovery"], expected, rtol=1e-12)


def test_every_cell_of_every_sweep_has_its_rows(study: Path) -> None:
    rows = read_effects(study)
    counts = rows.groupby(["sweep", "direction"]).size().to_dict()
    pairs, metrics = 8, 2
    assert counts == {
        ("heads", "denoise"): 12 * pairs * metrics,
        ("heads", "noise"): 12 * pairs * metrics,
        ("wide", "denoise"): 3 * pairs * metrics,
        ("wide (single layers)", "denoise"): 3 * pairs * metrics,
        ("residual", "denoise"): 3 * _tokens() * metrics,
        ("module", "denoise"): 3 * pairs * metrics,
    }
    assert not rows.duplicated(["pair", "seed", "sweep", "direction", "layer", "head", "position", "metric"]).any()


def _tokens() -> int:
    words = tokenizer()
    return sum(len(words(row["clean"])["input_ids"]) for row in pair_rows())


def test_the_summary_has_one_row_per_cell_and_metric(study: Path) -> None:
    table = read_summary(study)
    for name in ("estimate", "low", "high", "p", "p_adjusted", "n", "cut", "detected"):
        assert name in table.columns
    heads = table[table["sweep"] == "heads"]
    assert len(heads) == 12 * 2 * 2
    rows = read_effects(study)
    used = set(pd.read_parquet(study / "pairs.parquet").query("status == 'used'")["pair"])
    for line in heads.to_dict("records"):
        same = rows[(rows["sweep"] == "heads") & rows["pair"].isin(used)]
        for key in ("layer", "head", "metric", "direction"):
            same = same[same[key] == line[key]]
        pooled = (same["patched"] - same["corrupted"]).sum() / (same["clean"] - same["corrupted"]).sum()
        assert line["estimate"] == pytest.approx(pooled, abs=1e-9)


def test_windows_stand_beside_the_sum_of_their_single_layers(study: Path) -> None:
    table = read_summary(study)
    one = table[(table["metric"] == "logit_diff")]
    singles = one[one["sweep"] == "wide (single layers)"].set_index("layer")["estimate"]
    for line in one[one["sweep"] == "wide"].to_dict("records"):
        inside = range(max(0, line["layer"] - 1), min(3, line["layer"] + 2))
        assert line["singles_sum"] == pytest.approx(sum(singles[layer] for layer in inside), abs=1e-9)


def test_prompts_of_different_lengths_are_compared_by_role(study: Path) -> None:
    table = read_summary(study)
    residual = table[table["sweep"] == "residual"]
    assert residual["position"].isna().all()
    assert {"subject_last", "last"} <= set(residual["position_role"])


def test_the_pairs_are_kept_with_their_tokens(study: Path) -> None:
    table = pd.read_parquet(study / "pairs.parquet")
    assert list(table["pair"]) == [row["id"] for row in pair_rows()]
    for line, row in zip(table.to_dict("records"), pair_rows(), strict=True):
        assert "".join(line["clean_tokens"]) == row["clean"]
        assert len(line["roles"]) == len(line["clean_tokens"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_patched_values_equal_plain_hooks(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Also with a tokenizer that adds BOS: every position is one further than the word's."""
    folder = request.getfixturevalue(family)
    rows = pair_rows(3)
    path = write_study(tmp_path, folder, [{"name": "r", "site": "resid_post", "positions": "each"}], rows)
    effects = run_study(path, tmp_path / "out").effects()
    hf, words = reference(folder), tokenizer(bos=family == "llama")
    blocks = hf.transformer.h if family == "gpt2" else hf.model.layers
    for row in rows:
        right, wrong = (words(row[key][0], add_special_tokens=False)["input_ids"] for key in ("correct", "incorrect"))
        clean, corrupted = (torch.tensor([words(row[key])["input_ids"]]) for key in ("clean", "corrupted"))
        assert clean.shape[1] == len(row["clean"].split()) + (family == "llama")
        assert len(right) == len(wrong) == 1
        mine = effects[effects["pair"] == row["id"]]
        assert len(mine) == 3 * clean.shape[1]
        for line in mine.to_dict("records"):
            found = _patched(hf, blocks[line["layer"]], clean, corrupted, line["position"])
            assert line["patched"] == pytest.approx(float(found[right[0]] - found[wrong[0]]), abs=1e-4)
        names = mine.set_index("position")["position_role"].to_dict()
        subject = words(row["clean"], return_offsets_mapping=True)["offset_mapping"]
        start, end = row["spans"]["subject"]
        inside = [at for at, (a, b) in enumerate(subject) if a < end and start < b]
        assert names[inside[-1]] == "subject_last"


def _patched(hf: Any, block: Any, clean: torch.Tensor, corrupted: torch.Tensor, position: int) -> torch.Tensor:
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, out: Any) -> None:
        kept.append((out[0] if isinstance(out, tuple) else out).clone())

    def put(_: Any, __: Any, out: Any) -> Any:
        value = (out[0] if isinstance(out, tuple) else out).clone()
        value[0, position] = kept[0][0, position]
        return (value, *out[1:]) if isinstance(out, tuple) else value

    with torch.no_grad():
        handle = block.register_forward_hook(keep)
        hf(clean)
        handle.remove()
        handle = block.register_forward_hook(put)
        logits = hf(corrupted).logits[0, -1]
        handle.remove()
    return logits


def test_whole_answers_equal_a_teacher_forced_loop(gpt2: Path, tmp_path: Path) -> None:
    rows = pair_rows(3)
    rows[0]["correct"] = [" ball and kite", " drum"]
    rows[1]["correct"] = [" big red boat"]
    path = write_study(tmp_path, gpt2, rows=rows, metrics={"names": ["answer_log_prob", "kl"]})
    result = run_study(path, tmp_path / "out")
    hf, words = reference(gpt2), tokenizer()
    base = result.effects().query("metric == 'answer_log_prob'").drop_duplicates("pair").set_index("pair")
    for row in rows:
        for run in ("clean", "corrupted"):
            logs = [_answer(hf, words, row[run], answer) for answer in row["correct"]]
            assert base.loc[row["id"], run] == pytest.approx(float(np.logaddexp.reduce(logs)), abs=1e-4)
    table = pd.read_parquet(tmp_path / "out" / "pairs.parquet")
    assert table["clean_kl"].abs().max() == pytest.approx(0.0, abs=1e-6)


def _answer(hf: Any, words: Any, prompt: str, answer: str) -> float:
    ids, total = words(prompt)["input_ids"], 0.0
    for token in words(prompt + answer)["input_ids"][len(ids) :]:
        with torch.no_grad():
            total += float(torch.log_softmax(hf(torch.tensor([ids])).logits[0, -1].double(), 0)[token])
        ids = [*ids, token]
    return total


def test_noise_is_the_same_for_every_cell_and_stated(gpt2: Path, tmp_path: Path) -> None:
    sweeps = [{"name": "mlp", "site": "mlp_out"}, {"name": "heads", "site": "z", "heads": "each"}]
    options = {"method": "gaussian", "sigma": 2.0, "draws": 3}
    path = write_study(tmp_path, gpt2, sweeps, pair_rows(4), corruption=options)
    result = run_study(path, tmp_path / "out")
    rows = result.effects()
    assert sorted(rows["seed"].unique()) == [0, 1, 2]
    assert (rows.groupby(["pair", "seed"])["corrupted"].nunique() == 1).all()
    assert (rows.groupby("pair")["corrupted"].nunique() == 3).all()
    hf, words = reference(gpt2), tokenizer()
    ids = [token for row in pair_rows(4) for token in words(row["clean"][slice(*row["spans"]["subject"])])["input_ids"]]
    embedded = hf.transformer.wte.weight[ids].detach().double()
    stated = result.manifest()["corruption"]
    assert stated["level"] == pytest.approx(2.0 * float(embedded.std()), rel=1e-5)
    assert stated["options"]["draws"] == 3


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_ablations_equal_plain_hooks(method: str, gpt2: Path, tmp_path: Path) -> None:
    rows = pair_rows(4, sentences=1)
    options = {"method": method, **({"draws": 1} if method == "resample" else {})}
    sweeps = [{"name": "mlp", "site": "mlp_out", "layers": [1], "direction": "noise"}]
    path = write_study(tmp_path, gpt2, sweeps, rows, corruption=options)
    result = run_study(path, tmp_path / "out").effects().set_index("pair")
    assert result["corrupted"].isna().all()
    assert result["recovery"].isna().all()
    hf, words = reference(gpt2), tokenizer()
    tokens = [torch.tensor([words(row["clean"])["input_ids"]]) for row in rows]
    values = [_mlp(hf, ids) for ids in tokens]
    mean = torch.stack(values).mean(0)
    for number, row in enumerate(rows):
        right, wrong = (words(row[key][0])["input_ids"][0] for key in ("correct", "incorrect"))
        written = {"zero": [torch.zeros_like(mean)], "mean": [mean]}.get(
            method, [value for other, value in enumerate(values) if other != number]
        )
        possible = [_difference(_ablated(hf, tokens[number], value), right, wrong) for value in written]
        assert min(abs(result.loc[row["id"], "patched"] - value) for value in possible) < 1e-4


def _mlp(hf: Any, ids: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = hf.transformer.h[1].mlp.register_forward_hook(lambda _, __, out: kept.append(out.clone()))
    with torch.no_grad():
        hf(ids)
    handle.remove()
    return kept[0]


def _ablated(hf: Any, ids: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    handle = hf.transformer.h[1].mlp.register_forward_hook(lambda _, __, ___: value)
    with torch.no_grad():
        logits = hf(ids).logits[0, -1]
    handle.remove()
    return logits


def _difference(logits: torch.Tensor, right: int, wrong: int) -> float:
    return float(logits[right] - logits[wrong])


def test_answers_of_unequal_length_leave_positions_without_partner_and_say_so(gpt2: Path, tmp_path: Path) -> None:
    rows = pair_rows(4, sentences=1)
    for row in rows:
        row["correct"] = [" big red ball"]
        del row["corrupted"], row["corrupted_spans"]
    sweeps = [{"name": "residual", "site": "resid_post", "positions": "each"}]
    path = write_study(
        tmp_path, gpt2, sweeps, rows, corruption={"method": "answer"}, metrics={"names": ["mean_logit_diff"]}
    )
    result = run_study(path, tmp_path / "out")
    effects = result.effects()
    length = len(tokenizer()(rows[0]["clean"] + " big red ball")["input_ids"])
    first = effects[effects["pair"] == "p0"]
    assert sorted(first["position"].unique()) == list(range(length))
    skipped = first[first["status"] != "ok"]
    assert len(skipped["position"].unique()) == 2
    assert skipped["status"].str.contains("no partner").all()
    assert skipped["patched"].isna().all()
    assert sum(entry["cells"] for entry in result.manifest()["skipped"]) == (effects["status"] != "ok").sum()


def test_the_same_seed_gives_the_same_tables_in_one_process_or_in_two_orders(gpt2: Path, tmp_path: Path) -> None:
    options = {"method": "gaussian", "draws": 2}
    one = write_study(tmp_path / "a", gpt2, rows=pair_rows(4), corruption=options)
    other = write_study(tmp_path / "b", gpt2, SWEEPS[:1], top={"seed": 3})
    run_study(one, tmp_path / "first")
    run_study(other, tmp_path / "between")
    run_study(one, tmp_path / "second")
    same_tables(tmp_path / "first", tmp_path / "second")
    changed = write_study(tmp_path / "c", gpt2, rows=pair_rows(4), corruption=options, top={"seed": 1})
    run_study(changed, tmp_path / "third")
    drawn = [read_effects(tmp_path / name)["corrupted"].to_numpy() for name in ("first", "third")]
    assert (np.abs(drawn[0] - drawn[1]) > 1e-6).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-4), ("bfloat16", 0.6)])
def test_other_number_formats(dtype: str, tolerance: float, gpt2: Path, study: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, gpt2, SWEEPS[:1], model={"dtype": dtype})
    result = run_study(path, tmp_path / "out")
    manifest = result.manifest()
    assert manifest["model"]["dtype"] == dtype
    assert manifest["parity"]["max_abs_diff"] <= manifest["parity"]["tolerance"]
    there = read_effects(study).query("sweep == 'heads' and metric == 'logit_diff'")
    np.testing.assert_allclose(result.effects()["patched"], there["patched"], atol=tolerance)


@pytest.mark.parametrize("count", [1, 3])
def test_few_pairs_and_one_cluster(count: int, gpt2: Path, tmp_path: Path) -> None:
    rows = pair_rows(count, sentences=1)
    for row in rows:
        row["group"] = "all"
    result = run_study(write_study(tmp_path, gpt2, SWEEPS[:2], rows), tmp_path / "out")
    assert not result.summary()["detected"].any()
    assert any("warning" in entry["severity"] for entry in result.manifest()["audit"])
    assert result.sentences()


def test_strange_texts_stay_what_they_are(gpt2: Path, tmp_path: Path) -> None:
    ids = ["a/b\\c", 'it\'s "quoted"', "<script>alert(1)</script>", "日本 🙂\u202e"]
    rows = []
    for number, row in enumerate(pair_rows(4, sentences=1)):
        text = "🙂 日本é " if number % 2 else ""
        shifted = [len(text) + at for at in row["spans"]["subject"]]
        rows.append({**row, "id": ids[number], "clean": text + row["clean"], "corrupted": text + row["corrupted"]})
        rows[-1]["spans"] = {"subject": shifted}
        del rows[-1]["corrupted_spans"]
    result = run_study(write_study(tmp_path, gpt2, SWEEPS[2:3], rows), tmp_path / "out")
    assert list(dict.fromkeys(result.effects()["pair"])) == ids
    assert list(pd.read_parquet(tmp_path / "out" / "pairs.parquet")["clean"]) == [row["clean"] for row in rows]
    assert "<script>alert(1)" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_prompt_of_one_token(gpt2: Path, tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "clean": f" {a}", "corrupted": f" {b}", "correct": [" ball"], "incorrect": [" kite"]}
        for n, (a, b) in enumerate([("Anna", "Bob"), ("Clara", "Dan"), ("Eva", "Fred")])
    ]
    result = run_study(write_study(tmp_path, gpt2, SWEEPS[2:3], rows), tmp_path / "out")
    effects = result.effects()
    assert set(effects["position"]) == {0}
    # one token only: whatever the layer, the residual there is everything
    assert effects["cut"].all()
    np.testing.assert_allclose(effects["patched"], effects["clean"], atol=1e-5)


@pytest.mark.parametrize(
    ("executor", "where"),
    [("reference", "engramscope.engine.reference.write_at"), ("traversal", "engramscope.engine.wave.Wave._after")],
)
def test_hooks_and_model_are_as_before_after_a_failure(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, where: str
) -> None:
    from engramscope import study_steps

    models = []
    load = study_steps.load
    monkeypatch.setattr(study_steps, "load", lambda inputs: models.append(load(inputs)) or models[-1])

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle of a forward")

    path = write_study(tmp_path, gpt2, run={"executor": executor})
    with monkeypatch.context() as patched:
        # a traversal that fails where it is tried out gives way to whole forwards; here it fails later
        patched.setattr("engramscope.engine.executor._why_not", lambda *_: "")
        patched.setattr(where, fail)
        with pytest.raises(RuntimeError, match="middle"):
            run_study(path, tmp_path / "out")
    module = models[0].hf
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "failed"
    run_study(path, tmp_path / "out", resume=True)
    run_study(path, tmp_path / "alone")
    same_tables(tmp_path / "out", tmp_path / "alone")


def test_an_answer_without_its_space_is_another_token_and_is_noticed(gpt2: Path, tmp_path: Path) -> None:
    rows = pair_rows(4)
    for row in rows:
        row["correct"], row["incorrect"] = ["ball"], ["kite"]
    path = write_study(tmp_path, gpt2, rows=rows, metrics={"names": ["mean_logit_diff"]})
    audit = run_study(path, tmp_path / "out").manifest()["audit"]
    assert [entry["severity"] for entry in audit if entry["check"] == "leading_space"] == ["warning"]


def test_sentences_have_the_lengths_that_these_tests_count_on() -> None:
    lengths = {len(tokenizer()(SENTENCES[number].format("Anna"))["input_ids"]) for number in (0, 1)}
    assert lengths == {7, 8}


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({"cluster": "knd"}, ["no pair has a label 'knd'; did you mean 'kind'?", "Known: group, pair, kind"]),
        ({"contrast": "knd"}, ["no pair has a label 'knd'; did you mean 'kind'?"]),
        ({"contrast": "many"}, ["has 3 values ('a', 'b', 'c')"]),
        ({"contrast": "one"}, ["has 1 value ('same')"]),
    ],
)
def test_labels_that_cannot_be_used_are_refused(stats: dict[str, str], words: list[str], tmp_path: Path) -> None:
    labels = [{"kind": "ab"[n % 2], "many": "abc"[n % 3], "one": "same"} for n in range(8)]
    rows = [{**row, "labels": label} for row, label in zip(pair_rows(8), labels, strict=True)]
    with pytest.raises(InputError) as caught:
        read_inputs(write_study(tmp_path, "mini", rows=rows, stats=stats))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    (fault,) = caught.value.faults
    assert fault.startswith(f"stats.{next(iter(stats))}: ")


def test_the_single_layers_that_are_added_beside_a_window_are_seen_by_the_audit(study: Path) -> None:
    said = [finding for finding in read_manifest(study)["audit"] if finding["check"] == "window_inflation"]
    assert len(said) == 1
    assert said[0]["message"].startswith("Sweep wide: ")
    early = WindowInflation().run(audit_context(read_inputs(study.parents[1] / "study.toml")))
    assert [finding.severity for finding in early] == ["note"]


def test_skipped_cells_are_counted_over_all_pairs() -> None:
    rows = [
        {"sweep": sweep, "status": status, "pair": f"p{pair}", "direction": "denoise", "site": "z", "layer": layer,
         "head": None, "position": None, "position_role": "all", "metric": metric, "seed": seed}
        for sweep, status in (("s", "skipped: no partner"), ("s", "ok"), ("t", "failed: prob"))
        for pair in range(300) for layer in range(3) for metric in ("prob", "kl") for seed in range(2)
    ]  # fmt: skip
    found = skipped_of(pd.DataFrame(rows))
    assert found == [
        {"sweep": "s", "reason": "skipped: no partner", "pairs": 300, "cells": 900, "pair": "p0"},
        {"sweep": "t", "reason": "failed: prob", "pairs": 300, "cells": 900, "pair": "p0"},
    ]
    shown = exclusions(SimpleNamespace(manifest={"skipped": found}))[1]  # type: ignore[arg-type]
    assert shown[0] == ("s", "skipped: no partner", 300, 900)
    assert skipped_of(pd.DataFrame(rows).iloc[:0]) == []


def test_a_pair_without_a_group_shares_a_cluster_with_nobody() -> None:
    pairs = [Pair("s1", "", ()), Pair("a", "", (), group="s1"), Pair("b", "", (), group="s1"), Pair("s1'", "", ())]
    assert clusters_of(pairs, "group") == ["s1''", "s1", "s1", "s1'"]
    assert clusters_of(pairs, "pair") == ["s1", "a", "b", "s1'"]
    assert clusters_of([Pair("x", "", (), labels={"l": "v"}), Pair("v", "", ())], "l") == ["v", "v'"]
