"""`completion`: the script that makes a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  ringpost completion bash > ~/.local/share/bash-completion/completions/ringpost
    zsh:   ringpost completion zsh > "${fpath[1]}/_ringpost"
    fish:  ringpost completion fish > ~/.config/fish/completions/ringpost.fish
    """
    maker = get_completion_class(shell)
    if maker is None:
        raise click.UsageError(f"No completion for {shell}.")
    root = ctx.find_root()
    # Not `source()`: that would check the version of a bash that need not be installed here.
    script = maker(root.command, {}, "ringpost", "_RINGPOST_COMPLETE")
    click.echo(script.source_template % script.source_vars())
