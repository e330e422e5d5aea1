"""The editors as the literature writes them."""

from __future__ import annotations

_NAMES = {
    "ft": "FT", "ft_l": "FT+L", "rome": "ROME", "memit": "MEMIT", "alphaedit": "AlphaEdit", "kn": "KN", "ke": "KE",
    "ke_cf": "KE-CF", "mend": "MEND", "mend_cf": "MEND-CF", "random_site": "random site",
}  # fmt: skip


def editor_words(label: str) -> str:
    """An editor, or an editor with a preset, as the literature writes it ("rome-2022": "ROME 2022").

    Labels that do not begin with the name of a known editor stay as they are.
    """
    known = _NAMES.get(label.replace("-", "_"))
    name, _, rest = label.partition("-")
    return known or (f"{_NAMES[name]} {rest}" if name in _NAMES else label)
