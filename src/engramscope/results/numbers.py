"""Numbers as a reader wants to see them: one style for sentences, audits and pages. Plain text, not markup."""

from __future__ import annotations

import math

NARROW_SPACE = "\u202f"
NO_BREAK = "\u00a0"
MINUS = "\u2212"
DASH = "\u2013"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def missing(value: object) -> bool:
    """Whether `value` stands for nothing: None, NaN or pandas' NA."""
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(value, float) and math.isnan(value)


def number(value: object) -> str:
    """A number for reading: two decimals, two significant digits below 0.1, powers of ten when tiny or huge.

    The minus sign is a true one, thousands are set apart as in `whole`, and a dash stands for a missing value. Full
    precision is in the tables, not in the page.
    """
    if missing(value):
        return DASH
    x = float(value)  # type: ignore[arg-type]
    size = abs(x)
    if math.isinf(x):
        return f"{MINUS if x < 0 else ''}∞"
    if x == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        digits, power = f"{x:.1e}".split("e")
        exponent = str(int(power)).translate(_SUPERSCRIPTS)
        return f"{digits}{NO_BREAK}×{NO_BREAK}10{exponent}".replace("-", MINUS)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.095 else 3 if size >= 0.0095 else 4
    return f"{x:,.{places}f}".replace(",", NARROW_SPACE).replace("-", MINUS)


def percent(value: object) -> str:
    """A share as a percentage; whole numbers, one decimal below 10 % and where rounding would make it all of it.

    100 % is what a cell restores by construction: 99.9 % must not look like it.
    """
    if missing(value):
        return DASH
    x = 100 * float(value)  # type: ignore[arg-type]
    if math.isinf(x):
        return f"{number(x)}{NARROW_SPACE}%"
    text = f"{x:.1f}" if abs(x) < 9.95 or (round(abs(x)) == 100 and abs(x) != 100) else f"{x:.0f}"
    text = "0" if float(text) == 0 else text.removesuffix(".0")
    return f"{text.replace('-', MINUS)}{NARROW_SPACE}%"


def whole(count: int) -> str:
    """A whole number with its thousands set apart: `12 480`."""
    return f"{count:,}".replace(",", NARROW_SPACE)


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """`1 pair`, `24 pairs`, `12 480 cells`."""
    return f"{whole(count)} {singular if count == 1 else plural or singular + 's'}"
