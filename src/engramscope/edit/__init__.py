"""Editors: what they are given, what they return, and how an edit gets into a model and out of it again."""

from engramscope.edit._base import Editor
from engramscope.edit.catalogue import describe_editor, editor_names, make_editor
from engramscope.edit.edit import Edit
from engramscope.edit.storage import load_edit

__all__ = ["Edit", "Editor", "describe_editor", "editor_names", "load_edit", "make_editor"]
