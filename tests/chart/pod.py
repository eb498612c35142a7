"""Creates the files that the kubelet would create for a rendered pod, without a cluster.

    pod.py MANIFEST WORKLOAD CONTAINER GIVEN DIR

DIR/root gets the files of ConfigMaps and Secrets at their mount paths, from the manifest, or from GIVEN/NAME/KEY for those that the
manifest does not contain. DIR/volumes lists the writable volumes, one "VOLUME PATH" per line, to be mounted below DIR/root. DIR/args has
the arguments, DIR/env the environment, DIR/user "UID:GID", and DIR/port the port of the readiness probe.
"""

import base64
import os
import re
import sys

import yaml

# An address for documentation (RFC 5737).
NODE_ADDRESS = "192.0.2.7"


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def lines(path, items):
    write(path, "".join(f"{item}\n" for item in items).encode())


def source(objects, given, volume):
    """Returns the files of a volume, or None if the volume is writable."""
    for kind, key, field in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
        if key not in volume:
            continue
        name = volume[key][field]
        rendered = objects.get((kind, name))
        if rendered is not None:
            decode = base64.b64decode if kind == "Secret" else str.encode
            return {file: decode(text) for file, text in rendered["data"].items()}
        directory = os.path.join(given, name)
        return {file: open(os.path.join(directory, file), "rb").read() for file in os.listdir(directory)}
    assert {"emptyDir", "hostPath", "persistentVolumeClaim"} & set(volume), volume
    return None


def environment(given, entries):
    for entry in entries:
        if "value" in entry:
            yield f"{entry['name']}={entry['value']}"
        elif "fieldRef" in entry["valueFrom"]:
            assert entry["valueFrom"]["fieldRef"] == {"fieldPath": "status.hostIP"}, entry
            yield f"{entry['name']}={NODE_ADDRESS}"
        else:
            of = entry["valueFrom"]["secretKeyRef"]
            with open(os.path.join(given, of["name"], of["key"]), encoding="utf-8") as file:
                yield f"{entry['name']}={file.read()}"


def expanded(argument, variables):
    """Replaces $(NAME) by the variable, as the kubelet does; other names stay."""
    return re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda found: variables.get(found[1], found[0]), argument)


def main(manifest, workload, name, given, directory):
    with open(manifest, encoding="utf-8") as file:
        documents = [document for document in yaml.safe_load_all(file) if document]
    objects = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    of = objects[tuple(workload.split("/"))]["spec"]
    spec = of["template"]["spec"] if "template" in of else of
    container = next(each for each in spec["containers"] if each["name"] == name)
    sources = {volume["name"]: source(objects, given, volume) for volume in spec.get("volumes", [])}
    # A stateful set creates a claim for each of its pods.
    sources |= {claim["metadata"]["name"]: None for claim in of.get("volumeClaimTemplates", [])}

    writable = []
    for mount in container.get("volumeMounts", []):
        target = os.path.join(directory, "root", mount["mountPath"].lstrip("/"))
        os.makedirs(target, exist_ok=True)
        files = sources[mount["name"]]
        if files is None:
            writable.append(f"{mount['name']} {mount['mountPath']}")
            continue
        for file, content in files.items():
            write(os.path.join(target, file), content)

    context = spec.get("securityContext", {}) | container.get("securityContext", {})
    lines(os.path.join(directory, "volumes"), writable)
    variables = list(environment(given, container.get("env", [])))
    by_name = dict(variable.split("=", 1) for variable in variables)
    lines(os.path.join(directory, "args"), [expanded(argument, by_name) for argument in container["args"]])
    lines(os.path.join(directory, "env"), variables)
    lines(os.path.join(directory, "user"), [f"{context['runAsUser']}:{context['runAsGroup']}"])
    probe = container.get("readinessProbe")
    lines(os.path.join(directory, "port"), [probe["httpGet"]["port"] if probe else 0])


if __name__ == "__main__":
    main(*sys.argv[1:])
