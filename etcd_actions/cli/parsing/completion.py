"""The argument of ``completion``."""

from __future__ import annotations

import click

from etcd_actions.cli.choice_type import Choice
from etcd_actions.cli.commands.completion import SHELLS, completion_script
from etcd_actions.cli.flags import command
from etcd_actions.cli.printing import output_by_print


@command(example="source <(etcd-actions completion bash)")
@click.argument("shell", type=Choice(SHELLS))
def completion(shell: str) -> None:
    r"""Print the script that completes this command in a shell.

    \b
    bash:  source <(etcd-actions completion bash)
    zsh:   source <(etcd-actions completion zsh)
    fish:  etcd-actions completion fish | source
    """
    root = click.get_current_context().find_root()
    with output_by_print():
        click.echo(completion_script(root.command, root.info_name or "", shell))
