"""Holds manifests to the Kubernetes schemas and to each other (scripts/check-deploy).

A schema knows nothing of a selector that selects nobody, a probe of a port that is not there, a grace period
shorter than the drain that it is for. Each rule here yields a line for each violation, and each is itself
tested with a planted one before the manifests are looked at.

    python tests/deploy.py FILE-OR-DIRECTORY...

Files of one directory may refer to each other when they are ours (deploy/kubernetes); a rendered chart is a
file that stands alone.
"""

import copy
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

# The oldest with native sidecars on by default, and the newest that the validator knows.
VERSIONS = ["1.29", "1.37"]
# Kinds of the Prometheus Operator: no schema of Kubernetes.
FOREIGN = {"PodMonitor", "ServiceMonitor"}


def pod(doc):
    """The pod template of a Deployment or a Job, or nothing."""
    return doc["spec"]["template"] if doc["kind"] in ("Deployment", "Job") else None


def containers(doc):
    spec = pod(doc)["spec"]
    return spec.get("initContainers", []) + spec["containers"]


def called(doc):
    return f"{doc['kind']} {doc['metadata']['name']}"


def selects(selector, labels):
    """A label selector without expressions but In."""
    if any(labels.get(k) != v for k, v in selector.get("matchLabels", {}).items()):
        return False
    return all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))


def schema(docs):
    for doc in docs:
        if doc["kind"] in FOREIGN:
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(doc, version, strict=True)
            except kubernetes_validate.ValidationError as wrong:
                yield f"{called(doc)}: {version}: {'.'.join(map(str, wrong.path))}: {wrong.message}"


def selectors(docs):
    pods = [pod(doc) for doc in docs if pod(doc)]
    for doc in docs:
        kind, spec = doc["kind"], doc.get("spec", {})
        if kind == "Deployment":
            found = selects(spec["selector"], pod(doc)["metadata"]["labels"])
        elif kind == "Service":
            found = any(selects({"matchLabels": spec["selector"]}, p["metadata"]["labels"]) for p in pods)
        elif kind in ("PodDisruptionBudget", "PodMonitor"):
            found = any(selects(spec["selector"], p["metadata"]["labels"]) for p in pods)
        elif kind == "NetworkPolicy":
            found = any(selects(spec["podSelector"], p["metadata"]["labels"]) for p in pods)
        elif kind == "ServiceMonitor":
            found = any(d["kind"] == "Service" and selects(spec["selector"], d["metadata"]["labels"]) for d in docs)
        else:
            continue
        if not found:
            yield f"{called(doc)}: selects nothing"


def ports(docs):
    def named(of):
        return {p["name"] for c in of for p in c.get("ports", [])}

    for doc in docs:
        kind, spec = doc["kind"], doc.get("spec", {})
        if pod(doc):
            for c in containers(doc):
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    port = c.get(probe, {}).get("httpGet", {}).get("port")
                    if port is not None and port not in named([c]):
                        yield f"{called(doc)}: {c['name']}.{probe}: no port {port}"
        elif kind == "Service":
            chosen = [d for d in docs if pod(d) and selects({"matchLabels": spec["selector"]}, pod(d)["metadata"]["labels"])]
            for p in spec["ports"]:
                if any(p["targetPort"] not in named(containers(d)) for d in chosen):
                    yield f"{called(doc)}: no port {p['targetPort']} in its pods"
        elif kind == "PodMonitor":
            chosen = [d for d in docs if pod(d) and selects(spec["selector"], pod(d)["metadata"]["labels"])]
            for p in spec["podMetricsEndpoints"]:
                if any(p["port"] not in named(containers(d)) for d in chosen):
                    yield f"{called(doc)}: no port {p['port']} in its pods"
        elif kind == "ServiceMonitor":
            chosen = [d for d in docs if d["kind"] == "Service" and selects(spec["selector"], d["metadata"]["labels"])]
            for p in spec["endpoints"]:
                if not any(p["port"] == q["name"] for d in chosen for q in d["spec"]["ports"]):
                    yield f"{called(doc)}: no port {p['port']} in its Services"


def volumes(docs):
    names = {(d["kind"], d["metadata"]["name"]) for d in docs}
    for doc in filter(pod, docs):
        spec = pod(doc)["spec"]
        there = {v["name"]: v for v in spec.get("volumes", [])}
        mounted = {m["name"] for c in containers(doc) for m in c.get("volumeMounts", [])}
        for name in mounted ^ there.keys():
            yield f"{called(doc)}: volume {name} is only mounted, or only there"
        for v in there.values():
            if "configMap" in v and ("ConfigMap", v["configMap"]["name"]) not in names:
                yield f"{called(doc)}: no ConfigMap {v['configMap']['name']}"
            if "secret" in v and v["secret"].get("defaultMode", 0o644) & 0o007:
                yield f"{called(doc)}: everybody may read the secret {v['name']}"
            if "secret" in v and "fsGroup" not in spec.get("securityContext", {}):
                yield f"{called(doc)}: without fsGroup nobody unprivileged may read the secret {v['name']}"


def restricted(docs):
    """The "restricted" Pod Security Standard, and a root file system that is not written to."""
    for doc in filter(pod, docs):
        whole = pod(doc)["spec"].get("securityContext", {})
        for c in containers(doc):
            own = {**whole, **c.get("securityContext", {})}
            wanted = {
                "runAsNonRoot": own.get("runAsNonRoot") is True,
                "seccompProfile": own.get("seccompProfile") == {"type": "RuntimeDefault"},
                "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
                "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
                "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            }
            for key in (k for k, fine in wanted.items() if not fine):
                yield f"{called(doc)}: {c['name']}: securityContext.{key}"
        if pod(doc)["spec"].get("automountServiceAccountToken") is not False:
            yield f"{called(doc)}: automountServiceAccountToken"


def bursar(doc):
    """The container named bursar, its configuration's ConfigMap and its environment."""
    for c in containers(doc):
        if c["name"] == "bursar":
            yield c, {e["name"]: e["value"] for e in c.get("env", []) if "value" in e}


def configuration(doc, docs):
    name = next(v["configMap"]["name"] for v in pod(doc)["spec"]["volumes"] if "configMap" in v)
    return next(d for d in docs if (d["kind"], d["metadata"]["name"]) == ("ConfigMap", name))["data"]["config.toml"]


def sidecars(docs):
    """What is beside an application is a native sidecar, with a start-up probe that the application waits for."""
    for doc in filter(pod, docs):
        if len(containers(doc)) == 1:
            continue
        for c, _ in bursar(doc):
            if c.get("restartPolicy") != "Always" or c not in pod(doc)["spec"].get("initContainers", []):
                yield f"{called(doc)}: bursar is no native sidecar"
            if "startupProbe" not in c:
                yield f"{called(doc)}: the application does not wait for bursar"


def grace(docs):
    for doc in filter(pod, docs):
        for _, env in bursar(doc):
            text = configuration(doc, docs).partition("[drain]")[2]
            found = re.search(r'^deadline = "(\d+)s"', text, re.M)
            deadline = int(env.get("BURSAR_DRAIN_DEADLINE", f"{found[1] if found else 25}s")[:-1])
            period = pod(doc)["spec"].get("terminationGracePeriodSeconds", 30)
            if period < deadline + 5:
                yield f"{called(doc)}: a grace period of {period} s for a drain of {deadline} s"


def checked(docs):
    """`bursar check` reads the configuration, with the container's environment and the files of its secrets."""
    for doc in filter(pod, docs):
        for _, env in bursar(doc):
            with tempfile.TemporaryDirectory() as there:
                text = configuration(doc, docs)
                for path in re.findall(r'"/run/secrets/bursar/([^"]+)"', text):
                    file = pathlib.Path(there, path)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("change-me\n")
                config = pathlib.Path(there, "config.toml")
                config.write_text(text.replace("/run/secrets/bursar", there))
                command = [os.environ["BURSAR"], "check", "--offline", "--config", config]
                told = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
                if told.returncode != 0:
                    yield f"{called(doc)}: bursar check: {told.stdout}{told.stderr}"


RULES = [schema, selectors, ports, volumes, restricted, sidecars, grace, checked]


def violations(docs):
    return [line for rule in RULES for line in rule(docs)]


def read(path):
    return [doc for doc in yaml.safe_load_all(path.read_text()) if doc]


def plant(docs):
    """Each rule must find what is wrong with these. Returns what was not found."""
    by = {called(doc): at for at, doc in enumerate(docs)}

    def spec(made, name):
        return made[by[name]]["spec"]

    def inner(made, name):
        return spec(made, name)["template"]["spec"]

    planted = {
        "schema": lambda m: inner(m, "Deployment notes").update(terminationGracePeriod=4),
        "selectors": lambda m: spec(m, "Service bursar")["selector"].update(tier="x"),
        "ports": lambda m: spec(m, "ServiceMonitor bursar")["endpoints"][0].update(port="metrics"),
        "volumes": lambda m: inner(m, "Job notes-report")["volumes"].pop(),
        "restricted": lambda m: inner(m, "Job notes-report")["containers"][0].pop("securityContext"),
        "sidecars": lambda m: inner(m, "Job notes-report")["initContainers"][0].pop("restartPolicy"),
        "grace": lambda m: inner(m, "Deployment bursar").update(terminationGracePeriodSeconds=29),
        "checked": lambda m: m[by["ConfigMap bursar"]]["data"].update({"config.toml": "[pool]\nsise = 1\n"}),
    }
    assert planted.keys() == {rule.__name__ for rule in RULES}
    missed = []
    for rule in RULES:
        made = copy.deepcopy(docs)
        planted[rule.__name__](made)
        if not list(rule(made)):
            missed.append(f"{rule.__name__} does not find what was planted")
    return missed


def main():
    ours, rendered = map(pathlib.Path, sys.argv[1:])
    docs = [doc for path in sorted(ours.glob("*.yaml")) for doc in read(path)]
    told = [f"{ours}: {line}" for line in violations(docs)] or plant(docs)
    count = len(docs)
    for path in sorted(rendered.glob("*.yaml")):
        docs = read(path)
        count += len(docs)
        told += [f"{path.name}: {line}" for line in violations(docs)]
    print("\n".join(told) or f"held: {count} objects, on Kubernetes {' and '.join(VERSIONS)}")
    sys.exit(1 if told else 0)


main()
