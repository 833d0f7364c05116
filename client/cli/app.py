"""`ringpost`: the root of all commands."""

from importlib.metadata import version

import click

from ringpost.client.cli import (
    bench,
    bundle,
    certs,
    channel,
    cluster,
    completion,
    contexts,
    demo,
    dlq,
    group,
    lifecycle,
    members,
    messages,
    nodes,
    pub,
    request,
    sub,
    token,
    top,
    verify,
)
from ringpost.client.cli.command import Root


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("ringpost"), "--version", "-V", prog_name="ringpost")
def main() -> None:
    """Ringpost, a durable message broker that speaks gRPC.

    \b
    ringpost up                          start a node in the background
    ringpost sub orders.eu --group bill  wait for messages
    ringpost pub orders.eu hello         publish one

    Data goes to stdout, everything else to stderr. Exit code: 0 it worked, 1 it failed, 2 wrong usage,
    3 the node cannot be reached, 130 interrupted, 141 nobody reads the output any more. One exception:
    `check` has three verdicts of its own, and answers 2 also where the node cannot be reached.
    """


for _command in (
    lifecycle.up,
    lifecycle.down,
    lifecycle.serve,
    demo.demo,
    pub.pub,
    sub.sub,
    request.request,
    request.reply,
    channel.channel,
    group.group,
    dlq.dlq,
    messages.msg,
    members.node,
    cluster.cluster,
    nodes.check,
    top.top,
    bundle.bundle,
    contexts.context,
    token.token,
    certs.certs,
    bench.bench,
    verify.verify,
    completion.completion,
):
    main.add_command(_command)
