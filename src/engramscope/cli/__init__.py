"""The command line: parses, calls one library function, prints what it returned; a file in `commands/` per topic."""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
from importlib import import_module

import typer

from engramscope.cli import commands
from engramscope.cli._app import (
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    NOTHING_WRITTEN,
    Interrupted,
    app,
    complain,
)

for _topic in sorted(module.name for module in pkgutil.iter_modules(commands.__path__)):
    import_module(f"{commands.__name__}.{_topic}")

#: the common base of usage errors; typer re-exports only its subclasses
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_NO_ROOM = (
    "The memory of the machine or of its device does not suffice. A smaller model, --dtype bfloat16 or --device cpu "
    "needs less; what was finished is kept where the command has --resume."
)


def main() -> None:
    """Entry point: turns errors into one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal that cannot show a character shows a substitute, rather than the command failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    # a scheduler's polite request to stop is treated as Ctrl-C: what was computed is kept
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(_run_app(sys.argv[1:]))


def _stop(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


def _run_app(arguments: list[str]) -> int:
    from engramscope.errors import EngramscopeError, InputError

    try:
        code = app(arguments, standalone_mode=False)
    except Interrupted as error:
        return complain(str(error), EXIT_INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        return complain(NOTHING_WRITTEN, EXIT_INTERRUPTED)
    except _UsageError as error:
        message = getattr(error, "format_message", error.__str__)()
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(message)
            return EXIT_INPUT
        return complain(f"{message} Try 'engramscope {_command(arguments)}--help'.", EXIT_INPUT)
    except InputError as error:
        return complain("\n".join(error.faults), EXIT_INPUT)
    except EngramscopeError as error:
        return complain(str(error), EXIT_FAILED)
    except (MemoryError, RuntimeError) as error:
        from engramscope.errors import out_of_memory

        if not out_of_memory(error):
            raise
        return complain(_NO_ROOM, EXIT_FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}.", EXIT_FAILED)
    if code == EXIT_INTERRUPTED:  # newer versions of typer say so by the code alone
        return complain(NOTHING_WRITTEN, EXIT_INTERRUPTED)
    return code if isinstance(code, int) else EXIT_OK


def _command(arguments: list[str]) -> str:
    names = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    return f"{arguments[0]} " if arguments and arguments[0] in names else ""
