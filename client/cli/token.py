"""`token`: makes a random token, and with it a principal of an access file."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import tomllib
from pathlib import Path

import click

from ringpost.client.cli.command import Group
from ringpost.client.cli.output import Output

_BYTES = 32
_ACCESS_MODE, _FOLDER_MODE = 0o644, 0o755
# As the broker checks channels, with wildcards for whole tokens.
_TOKEN = "[A-Za-z0-9_:/@+=~-]+"
_PATTERN = re.compile(rf"(?:(?:{_TOKEN}|\*)\.)*(?:{_TOKEN}|[*>])").fullmatch
_PATTERN_MAX = 255


def pattern(text: str) -> str:
    """A pattern of channels. Nodes do not start with an access file that has one that is none."""
    if len(text) > _PATTERN_MAX or _PATTERN(text) is None:
        raise click.BadParameter(
            f"{text!r} is no pattern: up to {_PATTERN_MAX} of A-Z a-z 0-9 _ : / @ + = ~ - in tokens with '.' between; "
            "'*' stands for one whole token, '>' at the end for all that follow, such as orders.*.eu or orders.>."
        )
    return text


@click.group(cls=Group)
def token() -> None:
    """Tokens that show who a client is, where a cluster has an access file."""


@token.command()
@click.option("--file", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write it there, for you only.")
@click.option("--access-file", type=click.Path(dir_okay=False, path_type=Path), help="Add a principal there.")
@click.option("--principal", metavar="NAME", help="Who the token is for; for --access-file.")
@click.option(
    "--publish",
    type=pattern,
    multiple=True,
    metavar="PATTERN",
    help="Channels that it may publish to, such as orders.>.",
)
@click.option(
    "--consume", type=pattern, multiple=True, metavar="PATTERN", help="Channels that it may read, also in groups."
)
@click.option(
    "--manage", type=pattern, multiple=True, metavar="PATTERN", help="Channels that it may add, change and delete."
)
@click.option("--cluster", type=click.Choice(["view", "admin"]), help="What it may do with the cluster.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def new(
    file: Path | None,
    access_file: Path | None,
    principal: str | None,
    publish: tuple[str, ...],
    consume: tuple[str, ...],
    manage: tuple[str, ...],
    cluster: str | None,
    output: str,
) -> None:
    """Make a token, and print what an access file keeps of it: its hash.

    With --access-file and --principal it is added there, with its permissions; the file, and the folder that it is in,
    are made if they are not there.
    """
    if bool(access_file) != bool(principal):
        raise click.UsageError("--access-file and --principal belong together: give both or none.")
    granted = {"publish": list(publish), "consume": list(consume), "manage": list(manage)}
    if access_file is None and (any(granted.values()) or cluster):
        raise click.UsageError("Permissions go into an access file: name it by --access-file, with --principal.")
    made = f"rp_{secrets.token_urlsafe(_BYTES)}"
    kept = f"sha256:{hashlib.sha256(made.encode()).hexdigest()}"
    if file is not None:
        _write(file, made)
    if access_file is not None and principal is not None:
        try:
            _add(access_file.resolve(), principal, kept, granted, cluster or "")
        except BaseException:
            if file is not None:
                file.unlink()  # nobody's
            raise
    if file is not None:
        Output(output).line(kept, {"hash": kept, "file": str(file)})
    else:
        Output(output).line(f"token  {made}\nhash   {kept}", {"hash": kept, "token": made})


def _write(file: Path, made: str) -> None:
    try:
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.ClickException(f"{file} is there already; remove it, or name another file.") from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}.") from None
    with os.fdopen(number, "w") as opened:
        opened.write(f"{made}\n")


def _add(path: Path, principal: str, kept: str, granted: dict[str, list[str]], cluster: str) -> None:
    """The principal behind what the file has. Nodes take the file up by themselves, and say what is wrong with it."""
    if re.fullmatch(r"[A-Za-z0-9_.@-]{1,127}", principal) is None:
        raise click.UsageError(f"--principal: {principal!r} is not 1 to 127 of A-Z a-z 0-9 _ . @ -.")
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        there = tomllib.loads(text).get("principals", {})
        if isinstance(there, dict) and principal in there:
            raise click.ClickException(f"{path} has a principal {principal} already; add the hash to its tokens.")
        lines = [f"[principals.{json.dumps(principal)}]", f"tokens = [{json.dumps(kept)}]"]
        lines += [f"{verb} = {json.dumps(patterns)}" for verb, patterns in granted.items() if patterns]
        lines += [f"cluster = {json.dumps(cluster)}"] if cluster else []
        text = _joined(text, lines, path)
        if not path.parent.exists():
            path.parent.mkdir()
            path.parent.chmod(_FOLDER_MODE)
        _replace(path, text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}.") from None


def _joined(text: str, lines: list[str], path: Path) -> str:
    """Both. Raises `ClickException` where a table cannot stand behind the text, which has its own way of writing it."""
    joined = "\n".join(([text.rstrip(), ""] if text.strip() else []) + lines) + "\n"
    try:
        tomllib.loads(joined)
    except tomllib.TOMLDecodeError:
        raise click.ClickException(
            f"{path} does not write its principals as [principals.NAME]; add it there."
        ) from None
    return joined


def _replace(path: Path, text: str) -> None:
    """Whole or not at all; owner and mode stay. A new one everybody may read: nodes run as somebody else, and a hash
    of a random token tells nothing of it."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text, "utf-8")
    if path.exists():
        known = path.stat()
        with contextlib.suppress(PermissionError):
            os.chown(draft, known.st_uid, known.st_gid)
        draft.chmod(known.st_mode & 0o7777)
    else:
        draft.chmod(_ACCESS_MODE)
    draft.replace(path)
