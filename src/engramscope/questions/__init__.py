"""Questions from a corpus: pairs that its abbreviations and its co-occurring terms suggest, for a person to edit."""

from __future__ import annotations

from engramscope.questions.propose import Proposal, propose
from engramscope.questions.write import review_path, write

__all__ = ["Proposal", "propose", "review_path", "write"]
