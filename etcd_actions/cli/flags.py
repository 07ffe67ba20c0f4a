"""Flags as click sees them: made of the settings, parsed as etcdctl does, grouped in help."""

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
"""What ends the help of a command."""


class SettingOption(click.Option):
    """The flag of a setting. Its value stays the text that was given, None without one."""

    def __init__(
        self, declarations: Sequence[str], *, group: str, is_bool: bool, **rest: Any
    ) -> None:
        super().__init__(declarations, **rest)
        self.group = group
        self.is_bool = is_bool

    def make_metavar(self, ctx: click.Context) -> str:
        """How the value looks; of a truth value it may be left out."""
        return f"[={self.metavar}]" if self.is_bool else super().make_metavar(ctx)


def setting_option(setting: Setting[object]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the flag of a setting."""
    default = setting.default or setting.otherwise
    return click.option(
        setting.flag,
        setting.name,
        cls=SettingOption,
        group=setting.group,
        is_bool=setting.kind.metavar == "BOOL",
        type=click.Path() if setting.kind.metavar in {"FILE", "DIRECTORY"} else click.STRING,
        shell_complete=_completer(setting.kind.metavar.split("|"))
        if "|" in setting.kind.metavar
        else None,
        multiple=setting.kind.is_list,
        metavar=setting.kind.metavar,
        help=f"{setting.help}. [env: {setting.variable}; default: {default}]",
    )


def _completer(
    words: Sequence[str],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    return lambda _context, _parameter, begun: [word for word in words if word.startswith(begun)]


class Command(click.Command):
    """A command with settings among its flags."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as etcdctl does: a truth value alone is true, and takes no next argument."""
        # Help and version are printed here.
        rest: list[str] | None = None
        with output_by_print():
            rest = super().parse_args(ctx, list(self._completed(args)))
        if rest is None:
            raise click.exceptions.Exit(0)
        for param in self.params:
            if param.type is click.STRING and not isinstance(param, SettingOption):
                _check_utf8(ctx, param, ctx.params.get(param.name or ""))
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first, then the settings by what they are about."""
        listed = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        own = [each for each in listed if not isinstance(each, SettingOption)]
        settings = [each for each in listed if isinstance(each, SettingOption)]
        sections: list[tuple[str, list[click.Option]]] = [("Options", own)]
        for group, options in groupby(settings, lambda option: option.group):
            sections.append((group, list(options)))
        for title, options_of_it in sections:
            records = [each.get_help_record(ctx) for each in options_of_it]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])

    def _completed(self, arguments: list[str]) -> Iterator[str]:
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
    """See that texts can be sent: what the shell gives may be any bytes."""
    for text in given if isinstance(given, tuple) else (given,):
        try:
            text.encode() if isinstance(text, str) else None
        except UnicodeEncodeError:
            raise click.BadParameter(f"{quoted(text)} is not UTF-8.", ctx, param) from None


class CommandGroup(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what comes before the command; help and version are printed here."""
        rest: list[str] | None = None
        with output_by_print():
            rest = super().parse_args(ctx, args)
        if rest is None:
            raise click.exceptions.Exit(0)
        return rest


def command(name: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function; its name is the function's without another."""
    return click.command(name, cls=Command, epilog=EPILOG)


def group(name: str | None = None, **rest: Any) -> Callable[[Callable[..., Any]], CommandGroup]:
    """Make a group of a function; see :func:`command`."""
    return click.group(name, cls=CommandGroup, **rest)
