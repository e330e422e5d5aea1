"""A commented study file to start from."""

from __future__ import annotations

import json
from pathlib import Path

from engramscope.errors import InputError, UnknownNameError
from engramscope.registry import nearest
from engramscope.results.atomic import write_text
from engramscope.tasks import task_names

_TEMPLATE = """\
# A study: which parts of a model carry the answers to these questions?
#   engramscope check {file}            audit the design; nothing is computed
#   engramscope run {file} --out DIR    run it; DIR/report.html is the answer
schema = 1
name = {name}
seed = 0                          # of everything random

[model]
name = {model}                    # a bundled name (mini, mini-llama), a folder, or a hub id
dtype = "float32"                 # float32 | bfloat16 | float16 | float64
device = "auto"                   # auto | cpu | cuda | cuda:1 | mps

[pairs]
{pairs}
# limit = 200                     # at most this many pairs

[corruption]
method = "str"                    # "str": the pair's own corrupted prompt, as many tokens as the clean one
# method = "gaussian"; sigma = 3.0; draws = 10; span = "subject"    noise on the subject's embeddings
# others: answer, zero, mean, resample (engramscope tasks describes them)

# One [[sweep]] per family of patches; each of its cells is patched on its own.
[[sweep]]
name = "heads"                    # which attention heads carry the answer?
site = "z"                        # embed resid_pre resid_mid resid_post attn_out mlp_out q k v z pattern mlp_act
layers = "each"                   # each | [0, 3, 5]       (or a module path such as "transformer.h.0.mlp.c_fc")
heads = "each"                    # each | all (jointly) | [0, 6]
positions = "all"                 # each | all (jointly) | last | ["subject_last", "last"]
direction = "denoise"             # denoise: what suffices | noise: what is needed | both

[[sweep]]
name = "mlp"                      # which layers' MLPs, at the subject's last token?
site = "mlp_out"
positions = {positions}

[[sweep]]
name = "residual"                 # where does the information travel? layer by position
site = "resid_post"
positions = "each"

[metrics]
names = ["logit_diff", "prob"]    # the first decides; logit_diff sees what a probability hides

[stats]
confidence = 0.95                 # of intervals; 1 - confidence is the family-wise error
resamples = 10000
cluster = "group"                 # pairs of one group are not independent: group | pair | a label
# contrast = "kind"               # compare the two values of a label of the pairs

[run]
check = 16                        # cells recomputed alone, to be sure
"""


def write_starter(path: Path, model: str, task: str | None, pairs: Path | None, *, force: bool = False) -> str:
    """Write a commented study file.

    Args:
        path: where; `.toml` is added when it has no ending.
        model: name of the model.
        task: a task to take the pairs from; the default without `pairs` is `clap_epilepsy`.
        pairs: a pair file instead.
        force: overwrite an existing file.

    Returns:
        What to do next, in a sentence.

    Raises:
        InputError: the file exists, both sources are given, or the task is unknown.
    """
    if task is not None and pairs is not None:
        raise InputError("Give --task or --pairs, not both: a study has one source of pairs.")
    target = path if path.suffix else path.with_suffix(".toml")
    if target.exists() and not force:
        raise InputError(f"{target} exists already; --force overwrites it.")
    name = task or "clap_epilepsy"
    if pairs is None and name not in task_names():
        raise UnknownNameError(f"unknown task {name!r}{nearest(name, task_names())}")
    source = f"file = {_quoted(pairs.as_posix())}" if pairs is not None else f"task = {_quoted(name)}"
    text = _TEMPLATE.format(
        file=target.name,
        name=_quoted(_plain(target.stem)),
        model=_quoted(model),
        pairs=source,
        positions='"last"' if pairs is not None else '["subject_last"]',
    )
    write_text(target, text)
    return f"Wrote {target}. Next: engramscope check {target}"


def _quoted(text: str) -> str:
    # a JSON string is a TOML basic string
    return json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in " _.-") else "-" for c in text).lstrip(" _.-")
    return kept or "study"
