"""A mock of the management API that serves the page without a larder.

    page_mock.py PORT [friendly|hostile]

`friendly` has typical data; in `hostile`, upstreams and clients put markup into every string of the API. Listens on 127.0.0.1;
port 0 takes a free port. The token is TOKEN. Changes are kept in memory.
"""

import datetime
import hashlib
import http.server
import json
import math
import pathlib
import random
import re
import sys
import threading
import urllib.parse

TOKEN = "mock-token"
PAGE = pathlib.Path(__file__).parents[2] / "src/api/management/page"
FILES = {"/": ("index.html", "text/html; charset=utf-8"), "/page.css": ("page.css", "text/css; charset=utf-8")}
FILES |= {f"/{path.name}": (path.name, "text/javascript; charset=utf-8") for path in sorted(PAGE.glob("*.js"))}
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HOSTILE = "<img src=x onerror=\"window.injected=1;alert(1)\"><script>window.injected=1</script><style>*{display:none}</style>"
MB, GB = 10**6, 10**9


def ago(seconds):
    moment = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=seconds)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def digest(number):
    return "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()


def image(number, name, megabytes, platforms, pulled, missing=0, **more):
    repository = re.sub(r"(@.*|:[^/]*)$", "", name)
    return {"image": name, "repository": repository, "digest": digest(number), "mediaType": "application/vnd.oci.image.index.v1+json",
            "sizeBytes": int(megabytes * MB), "missingBytes": int(missing * MB), "complete": missing == 0, "platforms": platforms,
            "manifests": 1 + len(platforms), "blobs": 4 * len(platforms), "created": ago(pulled + 20 * 86400),
            "fetched": ago(pulled + 3 * 86400), "checked": ago(240), "goneUpstream": None, "pulled": ago(pulled),
            "pinned": False, "stale": False, "held": None, "heldSince": None,
            "pulls": {"sinceStart": number * 37 % 101, "lastClient": f"10.244.{number % 4}.{number * 7}", "lastAgent": "containerd/2.1.4"}} | more


def peer(url, **more):
    return {"url": url, "isThisProcess": False, "rank": None, "version": "0.1.0", "differences": [], "failing": 0, "failingSince": None,
            "lastFailure": None, "lastFailureTime": None} | more


def friendly():
    both = ["linux/amd64", "linux/arm64"]
    images = [
        image(1, "docker.io/library/alpine:3.20", 7.8, both, 190),
        image(2, "docker.io/library/nginx:1.27", 146.2, both, 1500),
        image(3, "docker.io/library/postgres:16.4", 311.9, both, 7300),
        image(4, "docker.io/library/redis:7.4-alpine", 34.1, ["linux/amd64", "linux/arm/v7", "linux/arm64", "linux/s390x"], 3700),
        image(5, "quay.io/cilium/cilium:v1.16.3", 412.6, both, 10900),
        image(6, "quay.io/jetstack/cert-manager-controller:v1.16.1", 40.2, both, 16000, held=digest(606), heldSince=ago(9000)),
        image(7, "quay.io/prometheus/node-exporter:v1.8.2", 24.7, both, 420),
        image(8, "quay.io/jupyter/scipy-notebook:2024-10-14", 824.3, ["linux/amd64"], 60, missing=194.6),
        image(9, "registry.k8s.io/coredns/coredns:v1.11.3", 18.6, both, 90000),
        image(10, "registry.k8s.io/etcd:3.5.15-0", 56.9, both, 260000, goneUpstream=ago(86400 * 2), stale=True),
        image(11, "registry.k8s.io/kube-proxy:v1.31.2", 92.3, both, 900),
        image(12, "registry.k8s.io/pause:3.10", 0.7, both, 35),
    ]
    def endpoint(url, breaker="closed", again=None, failures=0, last=None, limit=None, success=40, failed=5000):
        return {"url": url, "breaker": breaker, "askedAgainInSeconds": again, "failuresInARow": failures,
                "lastSuccess": success and ago(success), "lastFailure": last, "lastFailureTime": last and ago(failed),
                "unreachableSince": None if breaker == "closed" else ago(failed + 900), "rateLimit": limit}
    upstreams = [
        {"name": "docker.io", "endpoints": [
            endpoint("https://hub-mirror.example", "open", 23.4, 5,
                     "GET https://hub-mirror.example/v2/library/nginx/manifests/1.27: connection refused", success=7000, failed=12),
            endpoint("https://registry-1.docker.io", limit={"limit": 100, "remaining": 76, "windowSeconds": 21600})]},
        {"name": "quay.io", "endpoints": [endpoint("https://quay.io", last="GET https://quay.io/v2/cilium/cilium/manifests/v1.16.3: 502")]},
        {"name": "registry.k8s.io", "endpoints": [
            endpoint("https://registry.k8s.io", "open", 4.2, 9, "GET https://registry.k8s.io/v2/: timed out (connecting)", success=8000, failed=3)]},
        {"name": "ghcr.io", "endpoints": [endpoint("https://ghcr.io", success=None)]},
    ]
    pins = [{"pattern": "registry.k8s.io/*", "source": "configuration"},
            {"pattern": "docker.io/library/alpine:3.20", "source": "cache"}]
    flights = [{"upstream": "quay.io", "repository": "quay.io/jupyter/scipy-notebook", "digest": digest(80),
                "bytes": 314_400_000, "sizeBytes": 512_000_000}]
    partials = [{"upstream": "docker.io", "digest": digest(81), "bytes": 18_300_000, "written": ago(5400)}]
    peers = [peer("http://10.244.1.17:8080", isThisProcess=True), peer("http://10.244.2.9:8080", differences=["tagTtl"]),
             peer("http://10.244.3.30:8080", failing=2, failingSince=ago(800), lastFailureTime=ago(20), lastFailure="GET http://10.244.3.30:8080/v2/: timed out (connecting)")]
    bucket = {"url": "https://s3.example.com/larder/cluster-a/", "readOnly": False, "queued": 12, "running": 4, "done": 8134,
              "bytesSent": 91 * GB, "failure": {"since": ago(190), "text": "PUT https://s3.example.com/larder/…: 503 SlowDown"},
              "reads": {"url": "https://s3.example.com/larder/cluster-a/", "breaker": "closed", "askedAgainInSeconds": None,
                        "failuresInARow": 0, "lastSuccess": ago(9), "lastFailure": None, "lastFailureTime": None,
                        "unreachableSince": None, "rateLimit": None},
              "probe": {"error": None, "readable": True, "writable": True, "createsIfAbsent": True, "verifiesChecksums": True}}
    state = {"level": "error", "problems": [
        {"kind": "upstreams", "level": "error", "text": "1 upstream down", "since": ago(903)},
        {"kind": "images", "level": "warning", "text": "1 image incomplete", "since": None},
        {"kind": "disk", "level": "warning", "text": "disk 92 %", "since": None}]}
    def request(seconds, method, path, status, how, size, took, **more):
        return {"time": ago(seconds), "method": method, "path": path, "status": status, "bytes": size, "milliseconds": took,
                "client": "10.244.1.20", "agent": "containerd/2.1.4", "user": None, "cache": how, "reason": None,
                "upstream": "docker.io", "ended": None, "error": None} | more
    requests = [
        request(3, "GET", f"/v2/library/nginx/blobs/{digest(5)}", 200, "hit", 29_100_000, 211.4),
        request(4, "GET", f"/v2/library/nginx/manifests/{digest(2)}", 200, "hit", 2295, 0.4),
        request(4, "HEAD", "/v2/library/nginx/manifests/1.27", 200, "hit", 0, 0.3),
        request(31, "GET", "/v2/coredns/coredns/manifests/v1.12", 504, "none", 118, 10021.7, reason="upstream", upstream="registry.k8s.io"),
        request(64, "GET", f"/v2/jupyter/scipy-notebook/blobs/{digest(80)}", 200, "miss", 130_400_000, 60211.0, upstream="quay.io",
                reason="not-cached", ended="client-gone", agent="skopeo/1.16"),
        request(130, "GET", "/v2/library/ngnix/manifests/latest", 404, "none", 97, 340.2, agent="docker/27.3", user="ci", reason="unknown")]
    requests += [request(200 + each, "GET", f"/v2/library/redis/blobs/{digest(each)}", 200, "hit", 3_000_000 + each, 12.5) for each in range(20)]
    def event(number, seconds, kind, subject, **details):
        return {"number": number, "time": ago(seconds), "type": kind, "subject": subject, "details": details}
    events = [
        event(31, 903, "registry-down", "registry.k8s.io", reason="GET https://registry.k8s.io/v2/: timed out (connecting)"),
        event(30, 4000, "sync-failed", "platform", missing="1 image", reason="quay.io/org/app:v9: no tag matches"),
        event(29, 9000, "tag-held", "quay.io/jetstack/cert-manager-controller:v1.16.1", **{"from": digest(6), "to": digest(606)}),
        event(28, 9800, "tag-moved", "docker.io/library/nginx:1.27", **{"from": digest(22), "to": digest(2)}),
        event(27, 86400 * 2, "damaged", digest(7), reason="its bytes have another digest"),
    ] + [event(26 - each, 86400 * 2 + 60 * each, "image-complete", f"docker.io/library/redis@{digest(each)}", digest=digest(each)) for each in range(9)]
    def entry(name, **more):
        return {"name": name, "state": "idle", "done": 0, "total": 0, "runs": 3, "next": ago(-4000), "started": ago(17000), "ended": ago(16900),
                "succeeded": ago(16900), "images": 14, "unconfirmedImages": 0, "missingImages": 0, "missing": [], "unconfirmed": []} | more
    sync = {"suspended": None, "entries": [
        entry("base"),
        entry("platform", state="running", done=12, total=31, next=None, succeeded=ago(86400), images=30, missingImages=1, unconfirmedImages=2,
              missing=[{"image": "quay.io/org/app:v9", "reason": "no tag matches"}])]}
    lines = [{"time": ago(17), "level": "warning", "text": "the endpoint is not asked for a while upstream=registry.k8s.io endpoint=https://registry.k8s.io wait=30s error=\"GET https://registry.k8s.io/v2/: timed out (connecting)\""},
             {"time": ago(190), "level": "error", "text": "objectStore: uploads fail; they wait files=7 error=\"PUT https://s3.example.com/larder/…: 503 SlowDown\""},
             {"time": ago(90_000), "level": "warning", "text": "management: wrong token (logged once a minute) ip=10.0.0.7"}]
    configuration = {"file": "/etc/larder/larder.yaml", "loaded": ago(4000), "afterRestart": ["port"], "refused": None,
                     "effective": "cacheSize: 3GB\nfreeSpace: 10GB\nregistries:\n- name: docker.io\n  endpoints:\n  - https://hub-mirror.example\n"
                                  "  - https://registry-1.docker.io\n  credentials:\n    username: ci\n    password: '***'\n"}
    return {"images": images, "bucket": bucket, "upstreams": upstreams, "peers": peers, "pins": pins, "flights": flights, "partials": partials,
            "state": state, "requests": requests, "lines": lines, "configuration": configuration, "prefetches": [],
            "events": events, "sync": sync}


def hostile():
    data = friendly()
    for number, each in enumerate(data["images"]):
        each.update(image=HOSTILE + str(number), repository=HOSTILE, mediaType=HOSTILE, digest=HOSTILE, platforms=[HOSTILE] * 5, created=HOSTILE)
    for upstream in data["upstreams"]:
        upstream["name"] += HOSTILE
        for endpoint in upstream["endpoints"]:
            endpoint.update(url="javascript:alert(1)//" + HOSTILE, lastFailure=HOSTILE, breaker=endpoint["breaker"] + HOSTILE)
    data["bucket"].update(url="javascript:alert(1)//" + HOSTILE, failure={"since": ago(10), "text": HOSTILE})
    data["bucket"]["reads"].update(lastFailure=HOSTILE)
    for each in data["peers"]:
        each.update(url="javascript:alert(1)//" + HOSTILE + each["url"], version=HOSTILE, differences=[HOSTILE], lastFailure=HOSTILE)
    for each in data["images"]:
        each["pulls"].update(lastClient=HOSTILE, lastAgent=HOSTILE)
    for number, each in enumerate(data["requests"]):
        each.update(path=HOSTILE * (1 + number % 3), method=HOSTILE, client=HOSTILE, agent=HOSTILE, user=HOSTILE, cache=HOSTILE, reason=HOSTILE,
                    upstream=HOSTILE, ended=HOSTILE, error=HOSTILE)
    for each in data["lines"]:
        each.update(text=HOSTILE, level=HOSTILE)
    for each in data["state"]["problems"]:
        each.update(text=HOSTILE)
    for each in data["events"]:
        each.update(subject=HOSTILE, type=each["type"] + HOSTILE, details={HOSTILE: HOSTILE, "from": HOSTILE, "to": HOSTILE})
    data["sync"]["suspended"] = HOSTILE
    for each in data["sync"]["entries"]:
        each.update(name=each["name"] + HOSTILE, state=HOSTILE, missing=[{"image": HOSTILE, "reason": HOSTILE}] * 9, missingImages=12)
    data["configuration"].update(file=HOSTILE, effective=HOSTILE, afterRestart=[HOSTILE], refused={"since": ago(5), "text": HOSTILE})
    data["prefetches"] = [{"image": HOSTILE, "state": "failed", "since": ago(3), "reason": HOSTILE}]
    data["pins"] = [{"pattern": HOSTILE, "source": "cache"}, {"pattern": "\u202e" + HOSTILE * 20, "source": HOSTILE}]
    for number, each in enumerate(data["flights"] + data["partials"]):
        each.update(upstream=HOSTILE, repository=HOSTILE, digest=HOSTILE + str(number))
    return data


def history():
    """Returns a day with a quiet night, some deployments, and a node that joins in the afternoon. Reproducible."""
    chance = random.Random(7)
    steps = []
    for minute in range(1440):
        day = 1.5 + 9 * max(0, math.sin((minute - 640) / 1440 * 2 * math.pi))
        rollout = 12 if minute % 211 < 18 else 38 if 1120 < minute < 1150 else 0
        answers = int((day + rollout) * chance.random())
        misses = sum(chance.random() < (0.2 if rollout == 12 else 0.05) for _ in range(answers))
        steps.append({"time": ago((1439 - minute) * 60), "hits": answers - misses, "misses": misses,
                      "bytesServed": answers * 6_100_000, "bytesFetched": misses * 7_400_000})
    return steps


class Mock(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port, data):
        super().__init__(("127.0.0.1", port), Handler)
        self.data = data
        # is_locked: reading needs the token, as from another machine. is_silent: connections are closed without a response.
        self.is_locked = self.is_silent = False
        self.changes = []
        self.history = history()
        self.details = {"created": ago(30 * 86400), "platform": "linux/amd64", "entrypoint": ["/docker-entrypoint.sh"],
                        "command": ["nginx", "-g", "daemon off;"], "user": "101", "workingDirectory": "/srv", "ports": ["80/tcp"],
                        "labels": [{"name": "org.opencontainers.image.source", "value": "https://github.com/nginx/docker-nginx"}]}
        if data["lines"][0]["text"] == HOSTILE:
            self.details = {key: [HOSTILE] * 3 if isinstance(value, list) else HOSTILE for key, value in self.details.items()}
            self.details["labels"] = [{"name": HOSTILE, "value": HOSTILE}]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self


def is_pinned(data, name):
    def matches(pattern):
        return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name)
    return any(matches(pin["pattern"]) for pin in data["pins"])


def matching(data, query):
    """Applies the filters of /api/v1/images that the page uses."""
    found = [each | {"pinned": is_pinned(data, each["image"])} for each in data["images"]]
    if query.get("pattern"):
        glob = ".*".join(map(re.escape, query["pattern"].split("*")))
        found = [each for each in found if re.fullmatch(glob, each["image"])]
    if query.get("registry"):
        found = [each for each in found if each["image"].startswith(query["registry"] + "/")]
    if query.get("state") == "held":
        found = [each for each in found if each["held"]]
    elif query.get("state"):
        found = [each for each in found if each["complete"] == (query["state"] == "complete")]
    if query.get("pinned"):
        found = [each for each in found if each["pinned"] == (query["pinned"] == "true")]
    keys = {"size": "sizeBytes", "pulled": "pulled", "fetched": "fetched", "created": "created"}
    sort = query.get("sort", "name")
    order = query.get("order", "ascending" if sort == "name" else "descending")
    key = (lambda each: each["pulls"]["sinceStart"]) if sort == "pulls" else (lambda each: each[keys.get(sort, "image")])
    return sorted(found, key=key, reverse=order == "descending")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.serve()

    do_POST = do_DELETE = do_GET

    def serve(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if self.server.is_silent:
            self.close_connection = True
            return
        if self.command == "GET" and url.path in FILES:
            name, kind = FILES[url.path]
            self.send(200, (PAGE / name).read_bytes(), kind)
            return
        if (self.command != "GET" or self.server.is_locked) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_json(401, {"error": "the bearer token is missing or is not that of management.tokenFile"})
            return
        if self.command != "GET":
            self.server.changes.append((self.command, url.path, query))
        name = f"{self.command.lower()}_{url.path.removeprefix('/api/v1/').replace('/', '_').replace('-', '_')}"
        answer = getattr(self, name, None)
        self.send_json(*(answer(query) if answer else (404, {"error": "not found"})))

    def get_status(self, _):
        images, steps = self.server.data["images"], self.server.history
        names = sorted({each["image"].split("/")[0] for each in images})
        def registry(name):
            own = [each for each in images if each["image"].startswith(name)]
            return {"name": name, "repositories": len(own), "images": len(own), "bytes": sum(each["sizeBytes"] for each in own),
                    "pulled": max((each["pulled"] for each in own), default=None)}
        used = sum(each["sizeBytes"] for each in images)
        # Totals of nine such days.
        total = {key: 9 * sum(step[key] for step in steps) for key in ("hits", "misses", "bytesServed", "bytesFetched")}
        return 200, {
            "version": "0.1.0", "started": ago(9 * 86400 + 4000), "now": ago(0), "ready": True, "state": self.server.data["state"], "offline": False, "airGapped": False,
            "readOnly": False,
            "usage": {"asOf": ago(12), "tookMilliseconds": 48, "images": len(images),
                      "completeImages": sum(each["complete"] for each in images), "repositories": len(images), "manifests": 37,
                      "manifestBytes": 51_000, "blobs": 143, "blobBytes": used, "registries": [registry(name) for name in names]},
            "disk": {"usedBytes": used, "freeBytes": 41 * GB, "sizeBytes": 512 * GB, "freeInodes": 9_000_000, "inodes": 10_000_000, "cacheSizeBytes": 3 * GB, "freeSpaceBytes": 10 * GB},
            "traffic": {"hit": total["hits"], "join": total["misses"] // 3, "miss": total["misses"] - total["misses"] // 3,
                        "stale": 14, "bypass": 0, "bytesServed": total["bytesServed"], "bytesFetched": total["bytesFetched"],
                        "bytesReceived": {"registry": total["bytesFetched"] // 3, "parent": 0, "peer": total["bytesFetched"] // 3,
                                          "bucket": total["bytesFetched"] // 3}},
            "connections": 14, "busyWorkers": 1,
            "counts": {"damagedFiles": 0, "blobsNotCached": 0, "manifestsNotCached": 0, "imagesEvicted": 31, "bytesEvicted": 5_820_000_000}}

    def get_history(self, query):
        seconds, steps = {"hour": (60, 60), "day": (900, 96), "week": (3600, 168)}[query["span"]]
        if query["span"] == "week":
            # One day with traffic, one without, and then one with a single busy hour.
            steps = [step for number, step in enumerate(self.server.history) if number < 100]
            return 200, {"stepSeconds": seconds, "history": [dict(step, time=ago((120 - number) * 3600)) for number, step in enumerate(steps)
                                                             if number < 60 or number == 80]}
        return 200, {"stepSeconds": seconds, "history": self.server.history[-seconds // 60 * steps:]}

    def get_requests(self, _):
        return 200, {"requests": self.server.data["requests"]}

    def get_log(self, _):
        return 200, {"lines": self.server.data["lines"]}

    def get_events(self, _):
        return 200, {"events": self.server.data["events"]}

    def get_sync(self, _):
        return 200, self.server.data["sync"]

    def post_sync(self, query):
        return 202, {"requested": [{"name": query["name"], "run": 4}]}

    def post_tags_accept(self, query, decision="accepted"):
        for each in self.server.data["images"]:
            if each["image"] == query["image"]:
                each["held"] = each["heldSince"] = None
        return 200, {"image": query["image"], "digest": query["digest"], "decision": decision}

    def post_tags_reject(self, query):
        return self.post_tags_accept(query, "rejected")

    def get_prefetches(self, _):
        return 200, {"prefetches": self.server.data["prefetches"]}

    def get_configuration(self, _):
        return 200, self.server.data["configuration"]

    def get_client_configuration(self, query):
        client, server = query.get("client", "containerd"), query.get("server")
        if server is not None and not re.fullmatch("https?://[a-z0-9.:-]+", server):
            return 400, {"error": f"server: {server} is not a URL such as http://10.0.0.5:8080"}
        assumptions = [] if server else ["clients reach the server under the name by which you opened this page, at the port of the configuration"]
        server = server or "http://127.0.0.1:8080"
        text = f"# Written by larder hosts-toml\n\n[host.\"{server}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        paths = {"containerd": ["/etc/containerd/certs.d/_default/hosts.toml", "/etc/containerd/certs.d/docker.io/hosts.toml"]}
        files = [{"path": path, "text": text} for path in paths.get(client, [f"/etc/{client}.conf"])]
        return 200, {"client": client, "server": server, "assumptions": assumptions, "files": files, "effect": f"{client} uses it from the next pull on"}

    def get_images(self, query):
        found = matching(self.server.data, query)
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 100))
        end = offset + limit
        return 200, {"asOf": ago(12), "total": len(found), "next": end if end < len(found) else None, "images": found[offset:end]}

    def get_image(self, query):
        found = [each for each in matching(self.server.data, {}) if each["image"] == query.get("image")]
        if not found:
            return 404, {"error": f"{query.get('image')} is not in the cache"}
        tree = [{"digest": found[0]["digest"], "sizeBytes": 1638, "platform": None, "present": True, "details": None, "blobs": []}]
        for number, platform in enumerate(found[0]["platforms"]):
            blobs = [{"role": "layer" if each else "config", "digest": digest(900 + number * 9 + each), "sizeBytes": 3_400_000 + 7 ** each, "present": found[0]["complete"] or each == 0} for each in range(3)]
            tree.append({"digest": digest(800 + number), "sizeBytes": 1024, "platform": platform, "present": True, "details": self.server.details, "blobs": blobs})
        previous = [{"digest": digest(700 + each), "fetched": ago(86400 * (5 + each))} for each in range(2)]
        return 200, found[0] | {"tree": tree, "previous": previous}

    def get_flights(self, _):
        flights = self.server.data["flights"]
        for each in flights:
            # Progress between polls, up to the state in the screenshots.
            each["bytes"] = min(each["bytes"] + 3_100_000, int(each["sizeBytes"] * 0.629))
        return 200, {"flights": flights, "partials": self.server.data["partials"]}

    def delete_flights(self, query):
        self.server.data["flights"] = [each for each in self.server.data["flights"] if each["digest"] != query["digest"]]
        return 202, {"cancelled": query["digest"]}

    def post_flights_resume(self, _):
        resumed, self.server.data["partials"] = len(self.server.data["partials"]), []
        return 202, {"resumed": resumed}

    def get_upstreams(self, _):
        return 200, {"upstreams": self.server.data["upstreams"]}

    def get_bucket(self, _):
        return 200, {"bucket": self.server.data["bucket"]}

    def get_peers(self, _):
        return 200, {"peers": self.server.data["peers"]}

    def get_pins(self, _):
        return 200, {"pins": self.server.data["pins"], "problem": None}

    def post_pins(self, query):
        pin = {"pattern": query["pattern"], "source": "cache"}
        changed = pin not in self.server.data["pins"]
        if changed:
            self.server.data["pins"].append(pin)
        return 200, {"pattern": query["pattern"], "changed": changed}

    def delete_pins(self, query):
        pin = {"pattern": query["pattern"], "source": "cache"}
        if pin not in self.server.data["pins"]:
            return 404, {"error": f"{query['pattern']} is not pinned"}
        self.server.data["pins"].remove(pin)
        return 200, {"pattern": query["pattern"], "changed": True}

    def post_prune(self, query):
        if not {"pattern", "unusedFor", "createdBefore"} & set(query):
            return 400, {"error": "say what is to go: unusedFor, createdBefore or pattern"}
        found = matching(self.server.data, {"pattern": query.get("pattern", "*")})
        gone = [each for each in found if not each["pinned"] or query.get("includePinned") == "true"]
        if query.get("dryRun") != "true":
            self.server.data["images"] = [each for each in self.server.data["images"] if each["image"] not in [one["image"] for one in gone]]
        return 200, {"dryRun": query.get("dryRun") == "true", "images": [each["image"] for each in gone], "removed": len(gone),
                     "freedBytes": sum(each["sizeBytes"] for each in gone), "blobsRemoved": 4 * len(gone), "blobsShared": 2,
                     "blobsYoung": 0, "partials": 0, "keptPinned": len(found) - len(gone), "keptInUse": 0, "partial": False}

    def post_prefetch(self, query):
        name = query["image"] if "/" in query["image"] else f"docker.io/library/{query['image']}"
        known = any(each["image"] == name for each in self.server.data["images"])
        self.server.data["prefetches"].insert(0, {"image": name, "state": "found" if known else "failed", "since": ago(0),
                                                  "reason": None if known else f"GET https://registry.test/v2/{name}: 404"})
        return 202, {"image": query["image"]}

    def post_check(self, query):
        target = query["target"]
        steps = [{"name": "name", "state": "ok", "text": "192.0.2.1", "remedy": None},
                 {"name": "connection", "state": "failed", "text": f"{target} refuses connections", "remedy": f"start {target}"}]
        return 200, {"target": target, "endpoints": [{"target": target, "url": f"https://{target}", "kind": "registry", "ok": False, "steps": steps}]}

    def send_json(self, status, value):
        self.send(status, json.dumps(value).encode(), "application/json")

    def send(self, status, body, kind):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY,
                            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Logs nothing."""


if __name__ == "__main__":
    server = Mock(int(sys.argv[1]), {"friendly": friendly, "hostile": hostile}[(sys.argv[2:] or ["friendly"])[0]]())
    print(server.url, flush=True)
    server.serve_forever()
