"""The same question from Python: which attention heads say in which city a landmark stands?"""

from pathlib import Path

from engramscope import load_model, patch, read_pairs

model = load_model("mini")
pairs = read_pairs(Path(__file__).parent / "landmarks" / "pairs.jsonl")
result = patch(model, pairs, "z", heads="each", positions="last")
print(result)
