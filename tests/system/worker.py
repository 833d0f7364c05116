"""A worker as a process of its own: takes part in a group, says what it was given, and settles nothing.

python -m tests.system.worker ADDRESS CHANNEL GROUP MESSAGES
"""

import asyncio
import sys

from tests.integration.broker import Client, next_event, open_subscription


async def work(address: str, channel: str, group: str, messages: int) -> None:
    """Prints the number of messages that it holds when it has all, and waits to be killed."""
    async with Client(address) as client:
        stream = client.subscribe(600)
        await stream.write(open_subscription(channel, credit=messages, group=group, consumer="worker"))
        await next_event(stream, "opened")
        held = 0
        while held < messages:
            held += sum(batch.count for batch in (await next_event(stream, "deliver")).batches)
        print(held, flush=True)
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
