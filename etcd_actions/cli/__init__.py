"""The command line, ``etcd-actions``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import NoReturn

from etcd_actions.cli.first_signal import handle_signals
from etcd_actions.cli.process_setup import collect_later, keep_descriptors, leave, reap_as_init
from etcd_actions.cli.secret_arguments import hide_secret_arguments

_NEEDED = ("click", "msgpack", "rich")
_UNEXPECTED = 1


def process_main() -> NoReturn:
    """The entry point of the process: runs the command line, and ends with its exit code."""
    command = next((text for text in sys.argv[1:] if not text.startswith("-")), "")
    with handle_signals(command, owns_process=True) as signals:
        collect_later()
        keep_descriptors()
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
            leave(code)


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
