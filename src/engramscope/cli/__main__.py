"""`python -m engramscope.cli`."""

from engramscope.cli import main

if __name__ == "__main__":
    main()
