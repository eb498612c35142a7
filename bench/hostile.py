#!/usr/bin/env python3
"""Clients and registries that behave badly, for bench/run.

    hostile.py unread --port PORT --pid PID --registry NAME --clients N --kind KIND
    hostile.py abuse  --port PORT --registry NAME --seconds N --attack KIND
    hostile.py upstream --port PORT [--delay-ms N]

`unread` opens N connections that request a large response and do not read it, and prints the resident memory of the server
before and during that. `abuse` counts uncached manifests and blobs that four clients pull from a healthy registry, first alone
and then during the attack. `upstream` is the registry of both: it generates manifests, tag lists and blobs from their names.

Prints one line of name=value. Exit status 1 if the server sent a wrong response to a well-behaved client.
"""
import argparse
import hashlib
import json
import os
import re
import socket
import socketserver
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException

LARGE_BYTES = 3_900_000
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
# Seconds between two bytes of a response that is just fast enough to keep a download alive.
DRIP_INTERVAL = 5
# Requests per second of an attacker that does not wait for responses.
ATTACK_RATE = 30
WELL_BEHAVED_CLIENTS = 4


# ---- The registry -------------------------------------------------------------------------------------------------------

def manifest_of(tag, padding):
    """Returns a manifest with one small layer. Its content depends only on the tag, so every tag is a different image."""
    layer = blob_of(tag)
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(layer), "size": len(layer)}],
        "annotations": {"tag": tag, "padding": "x" * padding},
    }
    return json.dumps(document).encode()


def blob_of(tag):
    return f"layer of {tag}".encode()


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry(socketserver.StreamRequestHandler):
    """Serves one connection. The repository sets the speed: `hang/*` never responds, `drip/*` sends a byte at a time."""

    def handle(self):
        try:
            while self.answer():
                pass
        except OSError:
            pass

    def answer(self):
        line = self.rfile.readline(65536)
        if not line:
            return False
        while self.rfile.readline(65536) not in (b"\r\n", b""):
            pass
        method, target, _ = line.decode("latin-1").split(" ", 2)
        path = target.partition("?")[0]
        if path.startswith("/v2/hang/"):
            time.sleep(600)
            return False
        if path.startswith("/v2/drip/"):
            return self.drip()
        time.sleep(self.server.delay)
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs|tags)/(.+)", path)
        if path == "/v2/":
            return self.reply(method, 200, "application/json", b"{}")
        if not found:
            return self.reply(method, 404, "application/json", b'{"errors":[{"code":"NAME_UNKNOWN"}]}')
        repository, kind, reference = found.groups()
        return getattr(self, kind)(method, repository, reference)

    def manifests(self, method, repository, reference):
        content = self.server.known.get(reference)
        if content is None and reference.startswith("absent"):
            return self.reply(method, 404, "application/json", b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        if content is None:
            content = manifest_of(reference, LARGE_BYTES if repository.startswith("large") else 0)
            self.server.known[digest(content)] = content
            self.server.known[digest(blob_of(reference))] = blob_of(reference)
        return self.reply(method, 200, MANIFEST_TYPE, content, {"Docker-Content-Digest": digest(content)})

    def blobs(self, method, _, reference):
        content = self.server.known.get(reference)
        if reference == self.server.large_blob_digest:
            content = self.server.large_blob
        if content is None:
            return self.reply(method, 404, "application/json", b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
        return self.reply(method, 200, "application/octet-stream", content)

    def tags(self, method, repository, _):
        tags = [f"{number:06d}-{'x' * 120}" for number in range(LARGE_BYTES // 131)]
        content = json.dumps({"name": repository, "tags": tags}).encode()
        return self.reply(method, 200, "application/json", content)

    def drip(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(200):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(DRIP_INTERVAL)
        return False

    def reply(self, method, status, content_type, content, headers=None):
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self.wfile.write(head.encode() + b"\r\n" + (b"" if method == "HEAD" else content))
        return True


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024


def upstream(options):
    server = Server(("127.0.0.1", options.port), Registry)
    server.delay = options.delay_ms / 1000
    server.known = {digest(b"{}"): b"{}"}
    server.large_blob = b"b" * (64 * 1000 * 1000)
    server.large_blob_digest = digest(server.large_blob)
    server.serve_forever()


# ---- Clients that do not read -------------------------------------------------------------------------------------------

def resident_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))


def unread_path(kind, registry, number):
    """Returns the path for client `number`. The number makes the responses of some kinds differ."""
    large_blob = digest(b"b" * (64 * 1000 * 1000)) if kind == "blob" else ""
    return {
        "blob": f"/v2/many/app/blobs/{large_blob}?ns={registry}",
        "manifest": f"/v2/large/app/manifests/one?ns={registry}",
        "manifests": f"/v2/large/app/manifests/m{number % 100}?ns={registry}",
        "cold": f"/v2/large/app/manifests/c{number}?ns={registry}",
        "list": f"/v2/large/app/tags/list?ns={registry}",
        "lists": f"/v2/large/app/tags/list?n={20000 + number}&ns={registry}",
        "error": f"/v2/large/app/manifests/absent-{number}?ns={registry}",
    }[kind]


def get(port, path, seconds=60):
    connection = HTTPConnection("127.0.0.1", port, timeout=seconds)
    connection.request("GET", path)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def unread(options):
    wanted = 404 if options.kind == "error" else 200
    # Except for `cold`, cache the content first, to measure the memory of responses without that of downloads.
    for number in range({"manifests": 100, "cold": 0}.get(options.kind, 1)):
        status, _ = get(options.port, unread_path(options.kind, options.registry, number))
        if status != wanted:
            sys.exit(f"the server answered {status} instead of {wanted}")
    before, held = resident_kib(options.pid), []
    path = unread_path(options.kind, options.registry, 0)
    for number in range(options.clients):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", options.port))
        if options.kind in ("manifests", "cold", "lists", "error"):
            path = unread_path(options.kind, options.registry, number)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        held.append(client)
    peak = 0
    for _ in range(options.seconds * 5):
        peak = max(peak, resident_kib(options.pid))
        time.sleep(0.2)
    status, _ = get(options.port, "/v2/")
    if status != 200:
        sys.exit(f"with clients that do not read, the server answered /v2/ with {status}")
    print(f"before_kib={before} peak_kib={peak}")


# ---- Cold pulls during an attack ----------------------------------------------------------------------------------------

def pull_cold(port, registry, name, until, results, lock):
    """Pulls uncached images, one after the other."""
    number = 0
    while time.monotonic() < until:
        tag = f"{name}-{number}"
        number += 1
        began = time.monotonic()
        try:
            status, content = get(port, f"/v2/team/app/manifests/{tag}?ns={registry}", 40)
            is_right = status == 200 and content == manifest_of(tag, 0)
            if is_right:
                status, content = get(port, f"/v2/team/app/blobs/{digest(blob_of(tag))}?ns={registry}", 40)
                is_right = status == 200 and content == blob_of(tag)
            if status == 200 and not is_right:
                sys.stderr.write(f"wrong bytes for {tag}\n")
                os._exit(1)
        except (OSError, HTTPException):
            is_right = False
        with lock:
            results.append((is_right, time.monotonic() - began))


def rate_of(port, registry, name, seconds):
    results, lock = [], threading.Lock()
    until = time.monotonic() + seconds
    clients = [
        threading.Thread(target=pull_cold, args=(port, registry, f"{name}{client}", until, results, lock))
        for client in range(WELL_BEHAVED_CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    good = [seconds for is_right, seconds in results if is_right]
    return len(good) / seconds, len(results) - len(good), max(good, default=0)


class Attack:
    """Sends the requests of `kind` until it is stopped. Never reads."""

    def __init__(self, kind, port, registry, hostile):
        self.port, self.registry, self.hostile, self.held, self.requests = port, registry, hostile, [], 0
        self.is_stopped = threading.Event()
        self.thread = threading.Thread(target=getattr(self, kind))

    def send(self, text, is_held):
        client = socket.socket()
        client.settimeout(5)
        try:
            client.connect(("127.0.0.1", self.port))
            client.sendall(text.encode())
        except OSError:
            client.close()
            return
        if is_held:
            self.held.append(client)
        else:
            client.close()

    def request(self, path, registry, is_held):
        # Use two hostile registries, because larder limits the share of one.
        if registry == self.hostile:
            self.requests += 1
            registry = f"{self.requests // 2 % 2}.{registry}"
        self.send(f"GET {path}?ns={registry} HTTP/1.1\r\nHost: bench\r\n\r\n", is_held)

    def at_a_rate(self, send):
        number = 0
        while not self.is_stopped.wait(1 / ATTACK_RATE):
            number += 1
            send(number)

    def hang(self):
        self.at_a_rate(lambda number: self.request(f"/v2/hang/a/manifests/t{number}", self.hostile, False))

    def invent(self):
        self.at_a_rate(lambda number: self.request(f"/v2/x/a/manifests/absent-{number}", self.registry, False))

    def drip(self):
        for number in range(40):
            self.request(f"/v2/drip/a/blobs/{digest(str(number).encode())}", self.hostile, True)
            self.request(f"/v2/drip/a/manifests/t{number}", self.hostile, True)
        self.is_stopped.wait()

    def burst(self):
        while not self.is_stopped.wait(5):
            for number in range(1000):
                self.request(f"/v2/hang/b/manifests/t{number}", self.hostile, False)

    def heads(self):
        while not self.is_stopped.wait(0.001):
            if len(self.held) < 4000:
                self.send("GET /v2/ HTTP/1.1\r\nHost: b", True)

    def __enter__(self):
        self.thread.start()
        # Let the attack start before the measurement.
        time.sleep(5)
        return self

    def __exit__(self, *_):
        self.is_stopped.set()
        self.thread.join()
        for client in self.held:
            client.close()


def abuse(options):
    alone, failed_alone, _ = rate_of(options.port, options.registry, f"{options.attack}-alone", options.seconds)
    if failed_alone:
        sys.exit(f"{failed_alone} cold pulls failed before the attack")
    with Attack(options.attack, options.port, options.registry, options.hostile):
        beside, failed, slowest = rate_of(options.port, options.registry, f"{options.attack}-beside", options.seconds)
    print(f"alone={alone:.2f} beside={beside:.2f} failed={failed} slowest_ms={slowest * 1000:.0f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["unread", "abuse", "upstream"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--registry")
    parser.add_argument("--hostile")
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--kind")
    parser.add_argument("--attack")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--delay-ms", type=int, default=0)
    options = parser.parse_args()
    {"unread": unread, "abuse": abuse, "upstream": upstream}[options.mode](options)


if __name__ == "__main__":
    main()
