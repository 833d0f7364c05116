"""The access file: what it permits, and how it says what is wrong with it."""

import pytest

from ringpost.node.access.grants import Quota, Verb
from ringpost.node.access.policy import PolicyError, parse
from ringpost.node.access.tokens import token_hash

HASH = token_hash("secret")

GOOD = f"""
[roles.writer]
publish = ["orders.>"]

[roles.watcher]
cluster = "view"

[principals.shop]
tokens = ["sha256:{HASH}"]
roles = ["writer", "watcher"]
consume = ["answers.shop"]
quota = {{ streams = 3, messages_per_s = 5, bytes_per_s = 1_000 }}

[issuers.corp]
issuer = "https://id.example.com"
audience = "ringpost"
jwks = "/etc/keys.json"
roles = ["watcher"]
"""


def test_a_principal_has_its_own_grants_and_those_of_its_roles() -> None:
    shop = parse(GOOD).by_hash[HASH]
    permitted = [
        (verb, channel)
        for verb in (Verb.PUBLISH, Verb.CONSUME, Verb.MANAGE)
        for channel in ("orders.eu", "answers.shop")
        if shop.grants.on_channel(verb, channel)
    ]
    assert permitted == [(Verb.PUBLISH, "orders.eu"), (Verb.CONSUME, "answers.shop")]
    assert (shop.grants.on_cluster(Verb.VIEW), shop.grants.on_cluster(Verb.ADMIN)) == (True, False)
    assert shop.quota == Quota(streams=3, messages_per_s=5, bytes_per_s=1_000)


def test_a_token_of_an_issuer_has_the_roles_it_names_if_the_file_has_them() -> None:
    policy = parse(GOOD)
    issuer = policy.issuers["https://id.example.com"]
    named = policy.of_roles(["writer", "of-another-system"], issuer.base)
    assert (named.on_channel(Verb.PUBLISH, "orders.eu"), named.on_cluster(Verb.VIEW)) == (True, True)
    for nothing in (None, [], 7, {"writer": 1}, [["writer"]]):
        assert not policy.of_roles(nothing, issuer.base).on_channel(Verb.PUBLISH, "orders.eu")
    assert policy.of_roles("openid writer", issuer.base).on_channel(Verb.PUBLISH, "orders.eu"), "as OAuth writes scopes"


def test_whoever_administers_may_look_too() -> None:
    admin = parse('[roles.admin]\ncluster = "admin"').roles["admin"]
    assert admin.on_cluster(Verb.ADMIN)
    assert admin.on_cluster(Verb.VIEW)


def test_an_empty_file_permits_nothing() -> None:
    policy = parse("")
    assert (policy.by_hash, policy.issuers, policy.roles) == ({}, {}, {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = ", "is not TOML"),
        ("[users.a]", "users: is not known here; allowed are issuers, principals, roles"),
        ("[roles.a]\nread = []", "roles.a.read: is not known here"),
        ('[roles.a]\npublish = "orders"', "roles.a.publish: must be a list of texts"),
        ('[roles.a]\npublish = ["a.>.b"]', "roles.a.publish: 'a.>.b' has '>' before its end"),
        ('[roles.a]\ncluster = "root"', "roles.a.cluster: must be view or admin"),
        ('[roles."a b"]', "roles.a b: is no name"),
        ("roles = 3", "roles: must be a table"),
        ("[principals.a]\ntokens = ['secret']", "principals.a.tokens: has one that is not sha256:"),
        ("[principals.a]\nroles = ['b']", "principals.a.roles: there is no role 'b'"),
        ("[principals.a]\nquota = {streams = -1}", "principals.a.quota.streams: must be a whole number from 0"),
        ("[principals.a]\nquota = {streams = true}", "principals.a.quota.streams: must be a whole number from 0"),
        ("[principals.a]\nquota = {rate = 1}", "principals.a.quota.rate: is not known here"),
        (
            f"[principals.a]\ntokens = ['sha256:{HASH}']\n[principals.b]\ntokens = ['sha256:{HASH}']",
            "principals.b.tokens: has one that is somebody's already",
        ),
        ("[issuers.a]\nissuer = 'i'\njwks = 'f'", "issuers.a.audience: must be a text"),
        (
            "[issuers.a]\nissuer='i'\naudience='a'\njwks='http://x'",
            "issuers.a.jwks: must be a file or begin with https",
        ),
        (
            "[issuers.a]\nissuer='i'\naudience='a'\njwks='f'\nalgorithms=['HS256']",
            "issuers.a.algorithms: has 'HS256'; allowed are RS256",
        ),
        ("[issuers.a]\nissuer='i'\naudience='a'\njwks='f'\nalgorithms=['none']", "has 'none'"),
        ("[issuers.a]\nissuer='i'\naudience='a'\njwks='f'\nalgorithms=[]", "issuers.a.algorithms: is empty"),
        (
            "[issuers.a]\nissuer='i'\naudience='a'\njwks='f'\n[issuers.b]\nissuer='i'\naudience='a'\njwks='f'",
            "issuers.b.issuer: 'i' is there twice",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, told: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse(text)
    assert told in str(raised.value)
