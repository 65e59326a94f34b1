"""The command line: `pybilevel fewshot`, `pybilevel hyperclean`, `pybilevel info`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> None:
    """Run the command line; what goes wrong becomes one line with the remedy, and exit status 2.

    Exit status 128 + signal where a run was asked to stop, after it has saved its state.
    """
    try:
        import pybilevel as pb
        from pybilevel.data.cache import DataError
        from pybilevel.experiments.commands import app
        from pybilevel.experiments.interrupts import Interrupted
    except ModuleNotFoundError as error:
        _fail(_missing(error))
    try:
        app(prog_name="pybilevel")
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        raise SystemExit(128 + stop.signal) from None
    except ModuleNotFoundError as error:
        _fail(_missing(error))
    except (DataError, pb.DivergenceError, ValueError, FloatingPointError, OSError) as error:
        _fail(str(error))


def _missing(error: ModuleNotFoundError) -> str:
    if (error.name or "").startswith("pybilevel"):
        return (
            f"{error}; pybilevel is not built here: run `make build`, or pip install --no-build-isolation ."
        )
    return f"the commands need '{error.name}', which is not installed: pip install 'pybilevel[experiments]'."


def _fail(text: str) -> NoReturn:
    print(f"pybilevel: error: {text}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
