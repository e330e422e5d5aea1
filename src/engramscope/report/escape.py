"""Prompts are data: what keeps them from becoming markup, script, or plotly's own small HTML."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any


def plotly_text(text: str) -> str:
    """Text that plotly shows letter by letter.

    Plotly reads `<b>`, `<br>`, `<a href>` and entities in every label and hover text; with `&`, `<` and `>` written as
    entities it finds no tag, and shows the characters themselves.
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def script_json(value: Any) -> str:
    """JSON for a `<script type="application/json">` element: nothing in it can end the element.

    `<`, `>`, `&` and the two line separators of Unicode are written as `\\uXXXX`, which JSON reads back unchanged.

    Raises:
        ValueError: a number is not finite (write None instead).
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def script_hash(text: str) -> str:
    """The source expression by which a content security policy allows exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
