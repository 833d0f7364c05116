"""The files in deploy/ agree with the code and with each other: ports, settings, probes, commands, metrics."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.compose_demo import ETCD_IMAGES, NODES
from ringpost.client.cli.members import rest
from ringpost.node.config import Config, load_config
from ringpost.node.health import SERVICES
from ringpost.node.metrics import ROWS
from tests.deploy.manifests import built, environment, node_pod, one, secret_files
from tests.etcd_server import free_ports

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
OVERLAYS = ("base", "overlays/dev", "overlays/prod")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def image_settings() -> dict[str, str]:
    return dict(re.findall(r"(RINGPOST_\w+)=(\S+)", DOCKERFILE))


def ports(settings: dict[str, str]) -> dict[str, int]:
    names = {"grpc": "RINGPOST_LISTEN", "peers": "RINGPOST_PEER_LISTEN", "http": "RINGPOST_HTTP_LISTEN"}
    return {name: int(settings[variable].rpartition(":")[2]) for name, variable in names.items()}


PORTS = ports(image_settings())
STOP_S = (Config().drain_grace_ms + Config().stop_grace_ms) / 1000


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


# -- the image --------------------------------------------------------------------------------------------------------


def test_the_image_listens_on_the_default_ports_and_says_so() -> None:
    default = Config()
    assert {"grpc": default.listen, "peers": default.peer_listen, "http": default.http_listen} == {
        name: f"127.0.0.1:{port}" for name, port in PORTS.items()
    }
    (exposed,) = re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)
    assert [int(port) for port in exposed.split()] == list(PORTS.values())


def test_the_image_does_not_serve_other_machines_in_plain_text_unless_it_is_told_to() -> None:
    with pytest.raises(Exception, match="insecure"):
        load_config([], image_settings())
    assert load_config([], {**image_settings(), "RINGPOST_INSECURE": "true"}).data_dir == Path("/data")


def test_the_health_check_is_a_command_that_there_is() -> None:
    (command,) = re.findall(r"CMD (\[\"python\".*\])", DOCKERFILE)
    program, *arguments = json.loads(command)
    assert program == "python"
    free = {**os.environ, "RINGPOST_HTTP_LISTEN": f"127.0.0.1:{free_ports(1)[0]}"}
    ran = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, env=free)
    assert (ran.returncode, "no answer" in ran.stdout) == (1, True), "no node listens here, and it says so"


# -- compose ----------------------------------------------------------------------------------------------------------


def test_compose_says_nothing_that_one_of_its_two_programs_does_not_know() -> None:
    assert set(COMPOSE) - {"services", "volumes"} == {"x-node", "x-settings"}


@pytest.mark.parametrize("name", NODES)
def test_each_node_of_compose_starts_with_settings_that_there_are(name: str) -> None:
    node = COMPOSE["services"][name]
    config = load_config([], {**image_settings(), **node["environment"]})
    assert (config.node, config.coordination, config.etcd_endpoints) == (name, "etcd", "etcd:2379")
    assert node["hostname"] == name, "it is what others are told"
    assert node["volumes"] == [f"{name}:/data"]
    bound = {int(port.rpartition(":")[2]): port.partition("}")[0] for port in node["ports"]}
    # Who opens the node for clients has not opened the metrics, which show names and ask nobody.
    assert bound == {PORTS["grpc"]: "${BIND:-127.0.0.1", PORTS["http"]: "${METRICS_BIND:-127.0.0.1"}
    assert seconds(node["stop_grace_period"]) >= STOP_S + 10
    assert node["read_only"]
    assert node["cap_drop"] == ["ALL"]


def test_nodes_of_compose_are_in_zones_and_on_ports_of_their_own() -> None:
    services = [COMPOSE["services"][name] for name in NODES]
    assert len({service["environment"]["RINGPOST_ZONE"] for service in services}) == len(NODES)
    bound = [port for service in services for port in service["ports"]]
    assert len(set(bound)) == len(bound)


def test_one_image_of_etcd_is_named_everywhere() -> None:
    pod = yaml.safe_load_all((DEPLOY / "kubernetes/overlays/dev/etcd.yaml").read_text())
    (etcd,) = (one for one in pod if one["kind"] == "StatefulSet")
    (container,) = etcd["spec"]["template"]["spec"]["containers"]
    assert COMPOSE["services"]["etcd"]["image"] == f"${{ETCD_IMAGE:-{ETCD_IMAGES[0]}}}"
    assert container["image"] == ETCD_IMAGES[0]


# -- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return built(request.param)


def is_secure(manifests: list[dict[str, Any]]) -> bool:
    return one(manifests, "ConfigMap", "ringpost-settings-.*")["data"]["RINGPOST_INSECURE"] == "false"


def test_kubernetes_takes_the_manifests(manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.32", strict=True)


def test_a_pod_starts_with_settings_that_there_are(manifests: list[dict[str, Any]]) -> None:
    _, container = node_pod(manifests)
    given = environment(manifests, "ringpost-0", "shop")
    assert ports({**image_settings(), **given}) == PORTS
    del given["POD_NAMESPACE"]
    told = load_config([], {**image_settings(), **given})
    assert told.coordination == "etcd"
    assert told.advertise == f"ringpost-0.ringpost-peers.shop.svc:{PORTS['grpc']}"
    assert told.peer_advertise.endswith(f":{PORTS['peers']}")
    assert container["image"] == f"ringpost:{VERSION}"
    if is_secure(manifests):
        files = secret_files(manifests, "ringpost-0")
        assert (files[told.tls_cert_file], files[told.peer_tls_key_file]) == ("ringpost-0.pem", "ringpost-0.peer.key")
        assert files[told.access_file] == "access.toml"


def test_production_is_never_in_plain_text() -> None:
    overlay = yaml.safe_load((DEPLOY / "kubernetes/overlays/prod/kustomization.yaml").read_text())
    assert "../../secure" in overlay["components"]


@pytest.mark.parametrize("name", NODES)
def test_the_secure_nodes_of_compose_have_all_that_tls_and_access_want(name: str) -> None:
    secure = yaml.safe_load((DEPLOY / "compose.secure.yaml").read_text())["services"][name]
    config = load_config([], {**image_settings(), **COMPOSE["services"][name]["environment"], **secure["environment"]})
    assert not config.insecure
    assert (config.tls_cert_file, config.peer_tls_cert_file) == (f"/secure/{name}.pem", f"/secure/{name}.peer.pem")
    assert config.access_file == "/access/access.toml"
    assert secure["volumes"] == [f"${{SECURE:-./secure}}/{name}:/secure:ro", "${SECURE:-./secure}/access:/access:ro"]


def test_a_pod_is_asked_for_services_that_health_has_and_drained_by_a_command_that_there_is(
    manifests: list[dict[str, Any]],
) -> None:
    spec, container = node_pod(manifests)
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == PORTS
    probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    if is_secure(manifests):  # the kubelet's gRPC probes speak no TLS
        assert {probe["httpGet"]["port"] for probe in probes} == {"http"}
        services = [probe["httpGet"]["path"].removeprefix("/health/") for probe in probes]
    else:
        assert {probe["grpc"]["port"] for probe in probes} == {PORTS["grpc"]}
        services = [probe["grpc"]["service"] for probe in probes]
    assert services == ["startup", "ready", "live"]
    assert set(services) <= set(SERVICES)
    program, group, command, *options = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, group, command) == ("ringpost", "node", rest.name)
    parsed = rest.make_context("rest", options).params
    assert (parsed["wait"], parsed["addr"]) == (True, f"127.0.0.1:{PORTS['grpc']}")
    assert spec["terminationGracePeriodSeconds"] >= parsed["within"] + STOP_S + 30


def test_a_pod_may_do_little(manifests: list[dict[str, Any]]) -> None:
    spec, container = node_pod(manifests)
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (int(user), True)
    assert spec["automountServiceAccountToken"] is False
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"]
    assert not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {"drop": ["ALL"]}


def test_services_and_policies_are_about_the_nodes_and_nobody_else(manifests: list[dict[str, Any]]) -> None:
    labels = one(manifests, "StatefulSet", "ringpost")["spec"]["template"]["metadata"]["labels"]
    for name in ("ringpost", "ringpost-peers", "ringpost-ready"):
        service = one(manifests, "Service", name)
        assert service["spec"]["selector"].items() <= labels.items()
        assert all(PORTS[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
    policy = one(manifests, "NetworkPolicy", "ringpost")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    by_port = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    assert by_port["peers"] == [{"podSelector": {"matchLabels": labels}}], "only nodes reach the peer port"
    assert one(manifests, "PodDisruptionBudget", "ringpost")["spec"]["maxUnavailable"] == 1


# -- monitoring -------------------------------------------------------------------------------------------------------


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:ringpost|process)_[a-z_]+", text))


def test_alerts_and_dashboard_name_metrics_that_there_are() -> None:
    rules = [
        rule
        for group in yaml.safe_load((DEPLOY / "monitoring/alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    board = json.loads((DEPLOY / "monitoring/grafana/dashboards/ringpost.json").read_text())
    asked = [rule["expr"] for rule in rules]
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    known = {row.name for row in ROWS.values()} | {"process_cpu_seconds_total", "process_resident_memory_bytes"}
    assert metrics_in(" ".join(asked)) - known == set()
    assert all(rule["annotations"].keys() == {"summary", "action"} for rule in rules)
    assert len(asked) > 30


def test_prometheus_asks_every_node_where_it_answers() -> None:
    (job,) = yaml.safe_load((DEPLOY / "monitoring/prometheus.yaml").read_text())["scrape_configs"]
    (targets,) = job["static_configs"]
    assert targets["targets"] == [f"{node}:{PORTS['http']}" for node in NODES]
