"""What ``st-hardneg`` does with what it is asked, and with what goes wrong."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from st_hardneg.command.parser import make_parser
from st_hardneg.errors import HardNegativeError

USER_ERROR, INTERRUPTED = 1, 130
"""Exit codes: what was asked for cannot be done, and Ctrl-C. A mistake in the command line itself is argparse's 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code: 0 if all went well.

    Args:
        arguments: Words of the command line; those of this process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser(words)
    asked = parser.parse_args(words)
    if not hasattr(asked, "run"):
        parser.print_help()
        return 2
    _set_up_logging(asked.verbose)
    try:
        asked.run(asked)
    except KeyboardInterrupt:
        print("\ninterrupted; what was there before is as it was", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except (HardNegativeError, ValueError, TypeError, OSError, UnicodeError, MemoryError) as error:
        if asked.verbose:
            raise
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        return USER_ERROR
    return 0


def _set_up_logging(is_verbose: bool) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("st_hardneg").setLevel(logging.INFO if is_verbose else logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
