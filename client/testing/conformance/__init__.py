"""Judges a client in any language by what it does on the wire, and by what the cluster holds afterwards.

    python -m ringpost.client.testing.conformance -- COMMAND [ARGUMENT ...]

starts three nodes with etcd and runs COMMAND again and again, as one of

    COMMAND publish   --address A[,B,C] --channel C --producer NAME --count N --batch K [--pause-ms P]
    COMMAND subscribe --address A[,B,C] --channel C --from OFFSET --count N --credit K
    COMMAND work      --address A[,B,C] --channel C --group G --count N --credit K [--nack OFFSET]

`publish` publishes messages 0 to N-1 of NAME (`contract.message`) on PublishStream, K in a batch, as one idempotent
producer, and waits P milliseconds between batches. `subscribe` reads N messages from OFFSET on, with never more than K
on their way to it. `work` reads as a member of a group until N messages are settled for sure; it nacks the first
delivery of OFFSET and acks everything else. What happens is printed, one JSON object a line:

    {"first_offset": 0, "count": 20, "duplicate": false}    publish: messages were acknowledged
    {"offset": 0, "attempt": 0, "message": {…}}             a message came; in protobuf's JSON form; attempt 0: no group
    {"acked": [0, 19]}                                      work: the broker has confirmed this ack

Exit code 0: done. Any other: an error that trying again cannot mend, with the broker's sentence on standard error.
RINGPOST_TOKEN, when set, goes with every call as `authorization: Bearer TOKEN`; RINGPOST_CA, when set, is a PEM file of
the authority to trust, and means TLS.
"""
