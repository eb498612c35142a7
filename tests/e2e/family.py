"""Clients of the case family: `push` images of random bytes, and `pull` them with many clients.

Every client verifies the digest of everything that it receives. `pull` prints one line of name=value, and one line for each
failure; its exit status is 1 if a pull failed, and with --retry if a pull failed twice.
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import sys
import threading
import time

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
READ_BYTES = 256 * 1024
# In seconds without a byte: longer than Larder takes to give up.
PATIENCE = 60


def digest(body):
    return "sha256:" + hashlib.sha256(body).hexdigest()


def push_blob(connection, repository, body):
    connection.request("POST", f"/v2/{repository}/blobs/uploads/")
    response = connection.getresponse()
    response.read()
    where = response.headers["Location"].split("/v2/", 1)[1]
    connection.request("PUT", f"/v2/{where}&digest={digest(body)}", body, {"Content-Type": "application/octet-stream"})
    response = connection.getresponse()
    response.read()
    assert response.status == 201, response.status


def push(arguments):
    """Prints the digests of the layers of the last image, one a line."""
    connection = http.client.HTTPConnection(arguments.registry, timeout=PATIENCE)
    for image in arguments.images:
        repository, tags = image.split(":")
        layers = [os.urandom(arguments.bytes) for _ in range(arguments.layers)]
        config = json.dumps({"architecture": "amd64", "os": "linux", "image": random.random()}).encode()
        for body in [config, *layers]:
            push_blob(connection, repository, body)
        described = [
            {"mediaType": kind, "digest": digest(body), "size": len(body)}
            for kind, body in [(CONFIG, config), *((LAYER, layer) for layer in layers)]
        ]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        for tag in tags.split(","):
            path = f"/v2/{repository}/manifests/{tag}"
            connection.request("PUT", path, json.dumps(manifest), {"Content-Type": MANIFEST})
            response = connection.getresponse()
            response.read()
            assert response.status == 201, response.status
    for layer in layers:
        print(digest(layer))


class Figures:
    """What all clients saw, in seconds."""

    def __init__(self):
        self.lock = threading.Lock()
        self.pulls = self.failed = self.failed_twice = 0
        self.first, self.total, self.gap = 0.0, 0.0, 0.0
        self.failures = []


def receive(connection, path, figures):
    """Reads a response, and returns its headers, its body if it is a manifest, and its digest."""
    began = last = time.monotonic()
    connection.request("GET", path, headers={"Accept": MANIFEST})
    response = connection.getresponse()
    if response.status != 200:
        raise ValueError(f"status {response.status}: {response.read(300)!r}")
    hashed, parts, count, first, gap = hashlib.sha256(), [], 0, None, 0.0
    is_manifest = "/manifests/" in path
    while part := response.read1(READ_BYTES):
        now = time.monotonic()
        first, gap, last = first or now - began, max(gap, now - last), now
        hashed.update(part)
        count += len(part)
        if is_manifest:
            parts.append(part)
    # The next request may follow.
    response.close()
    if count != int(response.headers["Content-Length"]):
        raise ValueError(f"{count} bytes of {response.headers['Content-Length']}")
    with figures.lock:
        figures.first, figures.gap = max(figures.first, first or 0), max(figures.gap, gap)
    return response.headers, b"".join(parts), "sha256:" + hashed.hexdigest()


def pull_image(host, image, figures):
    began = time.monotonic()
    repository, tag = image.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    try:
        headers, manifest, received = receive(connection, f"/v2/{repository}/manifests/{tag}", figures)
        if received != headers["Docker-Content-Digest"]:
            raise ValueError(f"the manifest is {received} instead of {headers['Docker-Content-Digest']}")
        manifest = json.loads(manifest)
        for wanted in [manifest["config"], *manifest["layers"]]:
            _, _, received = receive(connection, f"/v2/{repository}/blobs/{wanted['digest']}", figures)
            if received != wanted["digest"]:
                raise ValueError(f"{wanted['digest']} is {received}")
    finally:
        connection.close()
    with figures.lock:
        figures.total = max(figures.total, time.monotonic() - began)


def try_image(host, image, figures):
    try:
        pull_image(host, image, figures)
        return True
    except (OSError, ValueError, http.client.HTTPException) as error:
        with figures.lock:
            figures.failures.append(f"{image} from {host}: {type(error).__name__}: {error}")
        return False


def client(arguments, number, figures):
    hosts, images = arguments.hosts.split(","), list(arguments.images)
    while True:
        if arguments.until:
            random.shuffle(images)
        for at, image in enumerate(images):
            if arguments.until and os.path.exists(arguments.until):
                return
            succeeded = try_image(hosts[(number + at) % len(hosts)], image, figures)
            again = not succeeded and arguments.retry
            succeeded_later = again and try_image(hosts[(number + at + 1) % len(hosts)], image, figures)
            with figures.lock:
                figures.pulls += 1
                figures.failed += not succeeded
                figures.failed_twice += bool(again and not succeeded_later)
        if not arguments.until:
            return


def pull(arguments):
    figures = Figures()
    threads = [threading.Thread(target=client, args=(arguments, n, figures), daemon=True) for n in range(arguments.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in figures.failures:
        print(failure)
    print(
        f"clients={arguments.clients} pulls={figures.pulls} failed={figures.failed} failed_twice={figures.failed_twice} "
        f"first_max={figures.first:.3f} gap_max={figures.gap:.3f} total_max={figures.total:.3f}"
    )
    return bool(figures.failed_twice if arguments.retry else figures.failed)


def main():
    parser = argparse.ArgumentParser()
    modes = parser.add_subparsers(required=True)
    mode = modes.add_parser("push")
    mode.set_defaults(run=push)
    mode.add_argument("--registry", required=True, help="HOST:PORT")
    mode.add_argument("--layers", type=int, default=1)
    mode.add_argument("--bytes", type=int, required=True, help="size of a layer")
    mode.add_argument("images", nargs="+", metavar="REPOSITORY:TAG[,TAG…]")
    mode = modes.add_parser("pull")
    mode.set_defaults(run=pull)
    mode.add_argument("--hosts", required=True, help="HOST:PORT[,HOST:PORT…], which clients use in turn")
    mode.add_argument("--clients", type=int, default=1)
    mode.add_argument("--until", metavar="FILE", help="pull all images again and again until FILE exists")
    mode.add_argument("--retry", action="store_true", help="pull an image a second time, from the next host")
    mode.add_argument("images", nargs="+", metavar="REPOSITORY:TAG")
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


main()
