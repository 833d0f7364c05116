"""What kustomize makes of the directories in deploy/kubernetes, and how to find things in it."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy/kubernetes"


def built(folder: str) -> list[dict[str, Any]]:
    """Its manifests; skips the test where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("building the manifests needs kubectl, 1.25 or newer")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def one(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one of that kind whose name matches."""
    return next(m for m in manifests if m["kind"] == kind and re.fullmatch(name, m["metadata"]["name"]))


def node_pod(manifests: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A node's pod, and its only container."""
    spec = one(manifests, "StatefulSet", "ringpost")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def environment(manifests: list[dict[str, Any]], pod: str, namespace: str) -> dict[str, str]:
    """The variables of the node's container in that pod, settings included."""
    _, container = node_pod(manifests)
    found: dict[str, str] = dict(one(manifests, "ConfigMap", "ringpost-settings-.*")["data"])
    fields = {"metadata.name": pod, "metadata.namespace": namespace}
    for variable in container["env"]:
        value = variable["value"] if "value" in variable else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], value)
    return found


def secret_files(manifests: list[dict[str, Any]], pod: str) -> dict[str, str]:
    """What the node's container in that pod has of Secrets: paths, and the keys that they show; "*" all."""
    spec, container = node_pod(manifests)
    secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    found: dict[str, str] = {}
    for mount in container["volumeMounts"]:
        if (secret := secrets.get(mount["name"])) is None:
            continue
        if "subPathExpr" in mount:
            found[mount["mountPath"]] = mount["subPathExpr"].replace("$(RINGPOST_NODE)", pod)
        else:
            items = secret.get("items", [{"key": "*", "path": "*"}])
            found |= {f"{mount['mountPath']}/{item['path']}": item["key"] for item in items}
    return found
