"""The variables in a task's command, such as ``{{.input}}``, and what stands for them.

They are Flyte's: a dot or a dollar before the name, in any case of letters. What is not known
here stays as it is: the SDK reads some of them itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_VARIABLE = re.compile(r"\{\{\s*[.$]([A-Za-z][A-Za-z0-9_.]*)\s*\}\}")


def substitute(arguments: Iterable[str], variables: Mapping[str, str]) -> list[str]:
    """Put the values in.

    Args:
        arguments: The command.
        variables: The values, by name; letters may be of any case.
    """
    values = {name.lower(): value for name, value in variables.items()}
    return [
        _VARIABLE.sub(lambda found: values.get(found[1].lower(), found[0]), argument)
        for argument in arguments
    ]
