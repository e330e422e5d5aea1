"""Questions from a corpus: pairs that its abbreviations and its co-occurring terms suggest, for a person to edit."""

from __future__ import annotations

from engramscope.questions.files import review_path, write
from engramscope.questions.proposal import Proposal, propose

__all__ = ["Proposal", "propose", "review_path", "write"]
