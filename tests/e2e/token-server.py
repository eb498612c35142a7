"""A small token server for the end-to-end cases: Docker registry token authentication with RS256, signed by openssl.

    token-server.py PORT KEY CERTIFICATE DIRECTORY

DIRECTORY has files that may change while it runs: `users`, with lines `name:password:repository…`, and `life`, the number of
seconds that a token is valid. In `users` the line `::repository…` lists public repositories; without it all requests need a
password. The server prints one line for each response: status, user (- if none), scope.
"""

import base64
import http.server
import json
import pathlib
import subprocess
import sys
import time
import urllib.parse

PORT, KEY, CERTIFICATE, DIRECTORY = int(sys.argv[1]), sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
# docker-registry accepts a token for a minute after it has expired, because clocks differ.
REGISTRY_LEEWAY = 60


def users():
    lines = (DIRECTORY / "users").read_text().splitlines()
    entries = (line.split(":", 2) for line in lines)
    return {(name, password): repositories.split() for name, password, repositories in entries}


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def token(user, service, access):
    pem = pathlib.Path(CERTIFICATE).read_text()
    der = "".join(line for line in pem.splitlines() if not line.startswith("-"))
    now, life = int(time.time()), int((DIRECTORY / "life").read_text())
    head = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
    claims = {"iss": "e2e-tokens", "sub": user, "aud": service, "jti": str(time.monotonic_ns()), "access": access,
              "iat": now, "nbf": now - REGISTRY_LEEWAY, "exp": now + life - REGISTRY_LEEWAY}
    signed = b".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
    openssl = ["openssl", "dgst", "-sha256", "-sign", KEY]
    signature = subprocess.run(openssl, input=signed, stdout=subprocess.PIPE, check=True).stdout
    return {"token": (signed + b"." + encoded(signature)).decode(), "expires_in": life}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        service, scopes = query.get("service", [""])[0], query.get("scope", [])
        authorization = self.headers.get("Authorization", "")
        pair = ("", "")
        if authorization.startswith("Basic "):
            name, _, password = base64.b64decode(authorization[6:]).decode().partition(":")
            pair = (name, password)
        allowed = users().get(pair)
        if allowed is None:
            self.answer(401, {"errors": [{"code": "UNAUTHORIZED"}]}, pair[0], scopes)
            return
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            repository, _, actions = rest.rpartition(":")
            if kind == "repository" and repository in allowed and "pull" in actions.split(","):
                access.append({"type": kind, "name": repository, "actions": ["pull"]})
        self.answer(200, token(pair[0], service, access), pair[0], scopes)

    def answer(self, status, document, user, scopes):
        body = json.dumps(document).encode()
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="e2e-tokens"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        print(status, user or "-", *scopes, flush=True)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
