"""Where a pattern's subscription goes on."""

from ringpost.client.places import GONE, Places, is_pattern
from ringpost.v1.common_pb2 import Start
from ringpost.v1.subscribe_pb2 import OpenSubscription

LATEST = Start(latest=True)


def asked(places: Places, group: str = "") -> OpenSubscription:
    command = OpenSubscription()
    places.fill(command, "a.*", LATEST, group)
    return command


def test_what_has_wildcards_is_a_pattern() -> None:
    assert [is_pattern(name) for name in ("a", "a.b", "a.*", ">", "a*")] == [False, False, True, True, True]


def test_until_it_stands_another_stream_begins_as_the_first() -> None:
    places = Places()
    places.begin("a.b", 7)
    places.lost()
    assert asked(places) == OpenSubscription(pattern="a.*", start=LATEST)
    places.opened = True
    assert list(asked(places).resume) == []


def test_then_it_goes_on_in_each_channel_and_begins_what_is_new() -> None:
    places = Places()
    places.begin("a.quiet", 7)
    places.begin("a.busy", 0)
    places.begin("a.gone", 3)
    places.opened = True
    places.passed("a.busy", 9)
    places.passed("a.gone", GONE)
    places.lost()
    command = asked(places)
    assert command.start.earliest
    assert {place.channel: place.offset for place in command.resume} == {"a.quiet": 7, "a.busy": 10}


def test_a_group_knows_its_places_and_makes_itself_anew_at_the_beginning_of_later_channels() -> None:
    places = Places()
    places.begin("a.b", 7)
    assert asked(places, "g").start.latest
    places.opened = True
    assert asked(places, "g") == OpenSubscription(pattern="a.*")
