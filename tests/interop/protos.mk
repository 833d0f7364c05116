# The .proto files for the clients in here, below $(PROTOS). A batch is declared as bytes, which is the same on the wire:
# its CRC-32C is that of the bytes that were sent, and a message that was decoded and encoded again may have others.
PROTO_DIR := $(dir $(lastword $(MAKEFILE_LIST)))../../proto
PROTOS := target/proto
# What publishing, subscribing and groups need.
PROTO_NAMES := common publish subscribe group
PROTO_FILES := $(PROTO_NAMES:%=$(PROTOS)/ringpost/v1/%.proto)

$(PROTOS)/%.proto: $(PROTO_DIR)/%.proto
	@mkdir -p $(@D)
	sed 's/\bBatch batch = /bytes batch = /' $< > $@
