"""Pairs of prompts: reading, tokenising, aligning."""

from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.pairing import PairedUp, pair_up
from engramscope.pairs.readers import format_names, read_pairs
from engramscope.pairs.roles import known_roles
from engramscope.pairs.tokenize import tokenize_pair, tokenize_pairs
from engramscope.pairs.tokenized import TokenizedPair
from engramscope.pairs.write import write_jsonl

__all__ = [
    "Pair",
    "PairSet",
    "PairedUp",
    "TokenizedPair",
    "format_names",
    "known_roles",
    "pair_up",
    "read_pairs",
    "tokenize_pair",
    "tokenize_pairs",
    "write_jsonl",
]
