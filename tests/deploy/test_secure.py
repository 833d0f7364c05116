"""What the deploy files say about TLS and tokens: the commands that they print make what the nodes are told to use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from deploy.compose_demo import NODES
from ringpost.node.access import policy
from ringpost.node.access.grants import Verb
from tests.deploy.manifests import KUBERNETES, built, environment, node_pod, secret_files
from tests.deploy.readme import commands
from tests.integration.broker import Node

DEPLOY = KUBERNETES.parent
NAMESPACE = "shop"
PODS = ("ringpost-0", "ringpost-1", "ringpost-2")
SETTINGS = ("RINGPOST_TLS_", "RINGPOST_PEER_TLS_", "RINGPOST_ACCESS_FILE", "RINGPOST_CA", "RINGPOST_TOKEN_FILE")


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    known = {**os.environ, "PATH": path, "RINGPOST_HOME": str(folder / "home"), **variables}
    command = ["bash", "-euc", script]
    return subprocess.run(
        command, cwd=folder, env=known, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def files_of(settings: dict[str, str]) -> set[str]:
    return {value for name, value in settings.items() if name.startswith(SETTINGS)}


def names(cert: Path) -> set[str]:
    found = x509.load_pem_x509_certificate(cert.read_bytes())
    return {str(name.value) for name in found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


def test_the_commands_of_the_readme_make_what_the_nodes_of_compose_are_told_to_use(tmp_path: Path) -> None:
    made = run("\n".join(line for line in commands() if re.match("ringpost (certs|token) ", line)), tmp_path)
    assert made.returncode == 0, made.stderr
    secure = tmp_path / "deploy/secure"
    services = yaml.safe_load((DEPLOY / "compose.secure.yaml").read_text())["services"]
    for node in NODES:
        volumes = [volume.replace("${SECURE:-./secure}", str(secure)) for volume in services[node]["volumes"]]
        mounted = {there: Path(here) for here, there, _ in (volume.split(":") for volume in volumes)}
        for file in files_of(services[node]["environment"]):
            found = mounted[str(Path(file).parent)] / Path(file).name
            # The nodes run as somebody else.
            assert found.stat().st_mode & found.parent.stat().st_mode & 0o004, file
        seen = {path.name for folder in mounted.values() for path in folder.iterdir()}
        own = {f"{node}{ending}" for ending in (".pem", ".key", ".peer.pem", ".peer.key")}
        assert seen == {*own, "ca.pem", "peers.pem", "access.toml"}, "and no other node's"
        assert names(mounted["/secure"] / f"{node}.peer.pem") == {node}
    (admin,) = policy.parse((secure / "access/access.toml").read_text()).by_hash.values()
    assert admin.grants.cluster == {Verb.VIEW, Verb.ADMIN}
    assert (tmp_path / "admin.token").stat().st_mode & 0o777 == 0o600


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that becomes the Secret, by the commands in the component's head."""
    folder = tmp_path_factory.mktemp("kubernetes")
    head = (KUBERNETES / "secure/kustomization.yaml").read_text().split("\napiVersion")[0]
    script = "\n".join(line[4:] for line in head.splitlines() if line.startswith("#   "))
    kubectl = f'kubectl() {{ printf "%s\\n" "$*" >"{folder}/asked"; }}\n'
    made = run(kubectl + script, folder, N=NAMESPACE)
    assert made.returncode == 0, made.stderr
    asked = (folder / "asked").read_text().strip()
    assert asked == f"-n {NAMESPACE} create secret generic ringpost-secure --from-file=secure"
    return folder / "secure"


def test_the_commands_of_the_component_make_what_the_pods_are_told_to_use(secret: Path) -> None:
    manifests = built("overlays/prod")
    wanted = set()
    for pod in PODS:
        settings, files = environment(manifests, pod, NAMESPACE), secret_files(manifests, pod)
        assert files_of(settings) == set(files), "it has what it is told to use, and nothing else"
        wanted |= set(files.values())
        own = {key for key in files.values() if key.startswith("ringpost-")}
        assert own == {f"{pod}{ending}" for ending in (".pem", ".key", ".peer.pem", ".peer.key")}, "and no other's"
        assert files[settings["RINGPOST_PEER_TLS_KEY_FILE"]] == f"{pod}.peer.key"
        host = settings["RINGPOST_ADVERTISE"].rpartition(":")[0]
        services = {f"ringpost.{NAMESPACE}.svc", f"ringpost-ready.{NAMESPACE}.svc"}
        assert names(secret / files[settings["RINGPOST_TLS_CERT_FILE"]]) >= {host, "127.0.0.1", *services}
        assert names(secret / files[settings["RINGPOST_PEER_TLS_CERT_FILE"]]) == {pod}
    assert wanted == {path.name for path in secret.iterdir()}, "nothing is missing, and no key that signs is there"
    pod_spec, container = node_pod(manifests)
    secrets = [volume["secret"] for volume in pod_spec["volumes"] if "secret" in volume]
    assert {(one["secretName"], one["defaultMode"]) for one in secrets} == {("ringpost-secure", 0o440)}, "its group's"
    assert all(mount["readOnly"] for mount in container["volumeMounts"] if mount["name"] in ("secure", "keys"))


def test_what_changes_under_a_pod_is_mounted_as_a_folder() -> None:
    """A file that is mounted alone stays as it was when the container began."""
    manifests = built("overlays/prod")
    settings = environment(manifests, PODS[0], NAMESPACE)
    _, container = node_pod(manifests)
    alone = {mount["mountPath"] for mount in container["volumeMounts"] if "subPathExpr" in mount or "subPath" in mount}
    assert settings["RINGPOST_ACCESS_FILE"] not in alone
    assert "rollout restart statefulset/ringpost" in (KUBERNETES / "secure/kustomization.yaml").read_text()


def test_a_node_with_the_secret_s_files_obeys_its_own_token(secret: Path, tmp_path: Path) -> None:
    """As in the pod before it stops: by the address, the authority and the token that its environment has."""
    manifests = built("overlays/prod")
    settings, there = environment(manifests, PODS[0], NAMESPACE), secret_files(manifests, PODS[0])
    here = {name: str(secret / there[settings[name]]) for name in settings if name.startswith(SETTINGS)}
    files = ("--tls-cert-file", here["RINGPOST_TLS_CERT_FILE"], "--tls-key-file", here["RINGPOST_TLS_KEY_FILE"])
    with Node(tmp_path / "n", *files, "--access-file", here["RINGPOST_ACCESS_FILE"]) as node:
        ask = f"ringpost node rest --wait --addr {node.address}"
        known = {name: here[name] for name in ("RINGPOST_CA", "RINGPOST_TOKEN_FILE")}
        obeyed = run(ask, tmp_path, **known)
        without = run(ask, tmp_path, RINGPOST_CA=known["RINGPOST_CA"])
        plain = run(ask, tmp_path, RINGPOST_TOKEN_FILE=known["RINGPOST_TOKEN_FILE"])
    assert "there is nobody to hand over to" in obeyed.stderr, "it may, were there others"
    assert (without.returncode, "wants a token" in without.stderr) == (1, True)
    assert plain.returncode == 3, "in plain text nothing is heard"
