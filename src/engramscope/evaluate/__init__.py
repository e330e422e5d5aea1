"""What an edit did: scores, texts, health, intervals, and the published table beside ours."""

from engramscope.evaluate.case import CaseResult, Row, tidy
from engramscope.evaluate.evaluate import (
    EditResult,
    EvaluateOptions,
    Knowledge,
    evaluate_edit,
    evaluate_record,
    evaluate_records,
    knowledge,
)
from engramscope.evaluate.health import Health, HealthLimits, check_health, health_of
from engramscope.evaluate.measures import HARMONIC, MEASURES, TABLE4, Measure
from engramscope.evaluate.perplexity import Perplexity, perplexity_of
from engramscope.evaluate.protocol import protocol_of, records_hash
from engramscope.evaluate.published import published_for, published_tables
from engramscope.evaluate.reference import References
from engramscope.evaluate.reference_file import read_references
from engramscope.evaluate.summary import Difference, Estimate, differences, measures_of, summarise

__all__ = [
    "HARMONIC",
    "MEASURES",
    "TABLE4",
    "CaseResult",
    "Difference",
    "EditResult",
    "Estimate",
    "EvaluateOptions",
    "Health",
    "HealthLimits",
    "Knowledge",
    "Measure",
    "Perplexity",
    "References",
    "Row",
    "check_health",
    "differences",
    "evaluate_edit",
    "evaluate_record",
    "evaluate_records",
    "health_of",
    "knowledge",
    "measures_of",
    "perplexity_of",
    "protocol_of",
    "published_for",
    "published_tables",
    "read_references",
    "records_hash",
    "summarise",
    "tidy",
]
