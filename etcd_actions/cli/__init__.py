"""The command line, ``etcd-actions``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import NoReturn

from etcd_actions.cli.first_signal import handle_signals
from etcd_actions.cli.process_setup import (
    end_process,
    pause_garbage_collection,
    reap_as_init,
    reserve_standard_descriptors,
)
from etcd_actions.cli.secret_arguments import hide_secret_arguments

# The packages of the extra ``cli``.
_NEEDED = ("click", "msgpack", "rich")
# The exit code of an unexpected failure: the module of exit codes is slow to import.
_UNEXPECTED = 1


def process_main() -> NoReturn:
    """The entry point of the process: runs the command line, and ends with its exit code."""
    command = next((text for text in sys.argv[1:] if not text.startswith("-")), "")
    with handle_signals(command, owns_process=True) as signals:
        pause_garbage_collection()
        reserve_standard_descriptors()
        reap_as_init()
        code = _UNEXPECTED
        try:
            code = main()
        except SystemExit as end:
            if isinstance(end.code, int):
                code = end.code
            else:
                sys.excepthook(type(end), end, end.__traceback__)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            signals.done()
            end_process(code)


def main() -> int:
    """Run the command line of this process and return its exit code."""
    hide_secret_arguments()
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"etcd-actions: the command line needs {' and '.join(missing)}: "
            "pip install 'etcd-actions[cli]'",
            file=sys.stderr,
        )
        return 2
    from etcd_actions.cli.command_line import invoke  # noqa: PLC0415 (needs the extra)

    return invoke()
