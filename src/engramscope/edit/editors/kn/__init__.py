"""Knowledge neurons: find the neurons that express a fact, and change what they write (KN)."""

from engramscope.edit.editors.kn.editor import KnowledgeNeurons

COMPONENT = KnowledgeNeurons

__all__ = ["COMPONENT", "KnowledgeNeurons"]
