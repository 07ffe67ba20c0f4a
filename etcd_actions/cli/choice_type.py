"""A word of a list on the command line; a message about another one has the nearest."""

from __future__ import annotations

from typing import Any

import click


class Choice(click.Choice[str]):
    """One of several words; see :class:`click.Choice`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word. See click."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            from difflib import get_close_matches  # noqa: PLC0415 (only of a failure)

            words = {str(each).lower(): str(each) for each in self.choices}
            near = get_close_matches(str(value).lower(), words, 1)
            if not near:
                raise
            message = f"{error.message.rstrip('.')}: did you mean {words[near[0]]}?"
        raise click.BadParameter(message, ctx, param)
