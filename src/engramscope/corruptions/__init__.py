"""How the corrupted run is made; one file each, found by its name.

Importing this package imports no torch; a corruption's own file is imported when it is asked for.
"""

# no code here: the corruption `str` is a submodule, so in this namespace the name `str` stops being the builtin
from engramscope.corruptions._catalogue import corruption_names, describe_corruption, make_corruption

__all__ = ["corruption_names", "describe_corruption", "make_corruption"]
