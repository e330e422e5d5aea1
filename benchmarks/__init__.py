"""How fast a sweep is: Engramscope against other libraries, and against the arithmetic that no library can avoid.

Run `make bench`, or `python -m benchmarks --help`; see `docs/benchmarks.md`. Nothing here is imported by the package.
"""
