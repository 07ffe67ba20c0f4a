"""The flags of settings as options of click: parsed as etcdctl does, grouped in help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from etcd_actions._internal.quoting import quoted
from etcd_actions.cli.exit_codes import MEANINGS
from etcd_actions.cli.printing import output_by_print

if TYPE_CHECKING:
    from etcd_actions.config import Setting

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<9} {text}" for code, text in MEANINGS)
"""The end of the help of a command."""


class SettingOption(click.Option):
    """The flag of a setting. Its value is the text on the command line; None if not given."""

    def __init__(
        self, declarations: Sequence[str], *, setting: Setting[object], **rest: Any
    ) -> None:
        kind = setting.kind
        words = kind.metavar.split("|") if "|" in kind.metavar else []
        default = setting.default or setting.otherwise
        super().__init__(
            declarations,
            type=click.Path() if kind.metavar in {"FILE", "DIRECTORY"} else click.STRING,
            shell_complete=(lambda _ctx, _param, start: [w for w in words if w.startswith(start)])
            if words
            else None,
            multiple=kind.is_list,
            metavar=kind.metavar,
            help=f"{setting.help}. [env: {setting.variable}; default: {default}]",
            **rest,
        )
        self.group = setting.group
        self.is_bool = kind.metavar == "BOOL"

    def make_metavar(self, ctx: click.Context) -> str:
        """The form of the value, which is optional for a truth value."""
        return f"[={self.metavar}]" if self.is_bool else super().make_metavar(ctx)


class _PrintsHelp(click.Command):
    """A command whose help can be printed to a pipe that its reader closes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. If a flag requests help or the version, print it and exit."""
        rest: list[str] | None = None
        with output_by_print():
            rest = super().parse_args(ctx, args)
        if rest is None:
            raise click.exceptions.Exit(0)
        return rest


class Command(_PrintsHelp):
    """A command with settings among its flags."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as etcdctl does: a truth value alone is true, and has no next argument."""
        rest = super().parse_args(ctx, list(self._with_truth_values(args)))
        for param in self.params:
            if param.type is click.STRING and not isinstance(param, SettingOption):
                _check_utf8(ctx, param, ctx.params.get(param.name or ""))
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first, then the settings by group."""
        listed = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]

        def group(option: click.Option) -> str:
            return option.group if isinstance(option, SettingOption) else "Options"

        listed.sort(key=lambda option: isinstance(option, SettingOption))
        for title, options in groupby(listed, group):
            records = [option.get_help_record(ctx) for option in options]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])

    def _with_truth_values(self, arguments: list[str]) -> Iterator[str]:
        """The arguments, with ``=true`` after each flag of a truth value that has no value."""
        options = [param for param in self.params if isinstance(param, click.Option)]
        bare = {
            name
            for option in options
            if isinstance(option, SettingOption) and option.is_bool
            for name in option.opts
        }
        with_value = {name for option in options if not option.is_flag for name in option.opts}
        rest = iter(arguments)
        for text in rest:
            if text == "--":
                yield text
                yield from rest
            elif text in bare:
                yield f"{text}=true"
            else:
                yield text
                if text in with_value:
                    yield from (value for value in (next(rest, None),) if value is not None)


def _check_utf8(ctx: click.Context, param: click.Parameter, given: object) -> None:
    """Reject text that cannot be sent: a shell can give any bytes."""
    for text in given if isinstance(given, tuple) else (given,):
        try:
            text.encode() if isinstance(text, str) else None
        except UnicodeEncodeError:
            raise click.BadParameter(f"{quoted(text)} is not UTF-8.", ctx, param) from None


class CommandGroup(_PrintsHelp, click.Group):
    """A group of commands of the class :class:`Command`."""

    command_class = Command
    group_class = type


def setting_option(setting: Setting[object]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the flag of a setting."""
    return click.option(setting.flag, setting.name, cls=SettingOption, setting=setting)


def command(
    name: str | None = None, *, example: str = ""
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function.

    Args:
        name: Its name; by default that of the function.
        example: A command line for its help.
    """
    return click.command(name, cls=Command, epilog=epilog(example) if example else EPILOG)


def epilog(example: str) -> str:
    """The end of the help of a command: a command line, and the exit codes."""
    return f"\b\nExample:\n  {example}\n\n{EPILOG}"


def group(name: str | None = None, **rest: Any) -> Callable[[Callable[..., Any]], CommandGroup]:
    """Make a group of a function; see :func:`command`."""
    return click.group(name, cls=CommandGroup, **rest)
