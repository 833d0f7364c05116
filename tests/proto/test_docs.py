"""The .proto files are the API's manual: what a reader cannot guess is written there."""

from collections.abc import Iterator, Set
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2] / "proto"
PUBLIC = sorted(ROOT.glob("ringpost/v1/*.proto"))

# Words that mean the same everywhere in the API.
PLAIN = {"channel", "group", "name", "count", "offset", "version", "address", "messages"}


class Entry(NamedTuple):
    """One thing declared in a .proto file, and whether a comment stands at it."""

    name: str
    descriptor: Any
    commented: bool


class Api(NamedTuple):
    services: list[Entry]
    rpcs: list[Entry]
    messages: list[Entry]
    fields: list[Entry]
    enums: list[Entry]
    values: list[Entry]


def entries(path: tuple[int, ...], parent: str, items: Any, comments: Set[tuple[int, ...]]) -> Iterator[Entry]:
    for index, item in enumerate(items):
        yield Entry(parent + item.name, item, (*path, index) in comments)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    target = tmp_path_factory.mktemp("descriptors") / "api.binpb"
    includes = [f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}"]
    options = ["--include_source_info", f"--descriptor_set_out={target}"]
    assert protoc.main(["protoc", *includes, *options, *map(str, PUBLIC)]) == 0
    found = Api([], [], [], [], [], [])
    for file in FileDescriptorSet.FromString(target.read_bytes()).file:
        places = file.source_code_info.location
        comments = {tuple(p.path) for p in places if (p.leading_comments + p.trailing_comments).strip()}
        found.messages.extend(entries((4,), "", file.message_type, comments))
        for m, message in enumerate(file.message_type):
            found.fields.extend(entries((4, m, 2), f"{message.name}.", message.field, comments))
        found.enums.extend(entries((5,), "", file.enum_type, comments))
        for e, enum in enumerate(file.enum_type):
            found.values.extend(entries((5, e, 2), "", enum.value, comments))
        found.services.extend(entries((6,), "", file.service, comments))
        for s, service in enumerate(file.service):
            found.rpcs.extend(entries((6, s, 2), f"{service.name}.", service.method, comments))
    return found


def silent(kind: list[Entry]) -> set[str]:
    return {entry.name for entry in kind if not entry.commented}


def test_services_calls_and_enums_are_described(api: Api) -> None:
    assert sorted(silent(api.services) | silent(api.rpcs) | silent(api.enums)) == []


def test_messages_are_described(api: Api) -> None:
    """Here, at the call that they wrap, or at the only place where they are used."""
    wrapped = {
        kind.rpartition(".")[2] for e in api.rpcs for kind in (e.descriptor.input_type, e.descriptor.output_type)
    }
    at_their_use = {e.descriptor.type_name.rpartition(".")[2] for e in api.fields if e.commented}
    assert sorted(silent(api.messages) - wrapped - at_their_use) == []


def test_fields_are_described(api: Api) -> None:
    """Here, at a field of the same name, or at their type."""
    once = {e.descriptor.name for e in api.fields if e.commented} | PLAIN
    typed = (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM)
    unclear = [e for e in api.fields if not e.commented and e.descriptor.type not in typed]
    assert sorted(e.name for e in unclear if e.descriptor.name not in once) == []


def test_enum_values_are_described(api: Api) -> None:
    assert sorted(name for name in silent(api.values) if not name.endswith("_UNSPECIFIED")) == []
