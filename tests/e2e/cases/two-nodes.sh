# Proves the promise to a cluster, with two nodes: containerds with the CRI plugin, and crictl. One node pulls a pod's images
# through larder, including the sandbox image, and runs the pod. Then the registry is removed, larder is killed and restarted, and
# the other node, which has never pulled, starts the pod without a request to any registry. While larder is down, a node pulls
# from the registry directly. tests/cluster and tests/kind prove the same in a Kubernetes cluster.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=../../kind/assertions.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../../kind/assertions.sh"
trap stop_nodes EXIT

need_containerd
need_tool crictl

# ---- A registry with images for pods -------------------------------------------------------------------------------------

readonly SANDBOX=registry.k8s.io/pause:3.9 APP=docker.io/demo/app:v1 OTHER=docker.io/demo/other:v1
readonly GREETING="open for business"
# For the assertions.
readonly SCRATCH="$CASE_DIR/tmp" IMAGES=(docker.io/demo/app registry.k8s.io/pause)

# The program of the pods prints a line and runs until SIGTERM. A file with the name makes each image different.
step "push a sandbox image, and two images for pods"
cat >"$CASE_DIR/tmp/app.c" <<'C'
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
static void end(int signal) { (void)signal; _exit(0); }
int main(int argc, char **argv) {
  signal(SIGTERM, end);
  if (argc > 1) { puts(argv[1]); fflush(stdout); }
  for (;;) pause();
}
C
musl-gcc -static -Os -s -o "$CASE_DIR/tmp/app" "$CASE_DIR/tmp/app.c"
push() { # REPOSITORY:TAG [ARGUMENT]
  local layout="$CASE_DIR/tmp/layout" root="$CASE_DIR/tmp/root" layer config
  rm -rf "$layout" "$root"
  mkdir -p "$layout/blobs/sha256" "$root"
  cp "$CASE_DIR/tmp/app" "$root/app"
  printf '%s\n' "$1" >"$root/name"
  tar -C "$root" -cf "$CASE_DIR/tmp/layer.tar" app name
  layer=$(gzip -nc "$CASE_DIR/tmp/layer.tar" | blob_of "$layout" application/vnd.oci.image.layer.v1.tar+gzip)
  config=$(jq -nc --arg diff "sha256:$(sha256sum <"$CASE_DIR/tmp/layer.tar" | cut -d ' ' -f 1)" --args '{architecture: "amd64",
    os: "linux", config: {Entrypoint: (["/app"] + $ARGS.positional)}, rootfs: {type: "layers", diff_ids: [$diff]}}' "${@:2}" |
    blob_of "$layout" application/vnd.oci.image.config.v1+json)
  printf '{"imageLayoutVersion": "1.0.0"}' >"$layout/oci-layout"
  jq -nc --argjson config "$config" --argjson layer "$layer" '{schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layer]}' |
    blob_of "$layout" application/vnd.oci.image.manifest.v1+json |
    jq -c '{schemaVersion: 2, manifests: [.]}' >"$layout/index.json"
  skopeo_ copy --quiet --dest-tls-verify=false "oci:$layout" "docker://127.0.0.1:$REGISTRY_PORT/$1"
}
REGISTRY_STORAGE=$(own_storage)
registry_start
push pause:3.9
push demo/app:v1 "$GREETING"
push demo/other:v1 "$GREETING"

# ---- Larder, and two nodes -----------------------------------------------------------------------------------------------

METRICS_PORT=$(free_port)
readonly METRICS_PORT
larder_yaml() { # TAG_TTL
  cat >"$CASE_DIR/larder.yaml" <<YAML
registries:
  - {name: docker.io, endpoints: ["http://127.0.0.1:$REGISTRY_PORT"]}
  - {name: registry.k8s.io, endpoints: ["http://127.0.0.1:$REGISTRY_PORT"]}
  - {name: "127.0.0.1:$REGISTRY_PORT", scheme: http}
metrics: $METRICS_PORT
tagTtl: '$1'
revalidateTimeout: 2s
YAML
}
metrics_to() { # FILE
  curl -fsS --max-time 5 -o "$1" "http://127.0.0.1:$METRICS_PORT/metrics"
}
# log_to writes larder's log since the last log_from_here to a file. Larder logs a request after its response, so a line may be late.
LOGGED=0
log_from_here() { LOGGED=$(wc -l <"$LARDER_LOG"); }
log_to() { # FILE
  tail -n "+$((LOGGED + 1))" "$LARDER_LOG" >"$1"
}
pod_runs() { # NODE POD
  pod_start "$1" "$2" "$APP"
  wait_until 20 "the output of $2 on $1" container_logged "$1" "$CONTAINER" "$GREETING"
  equal "the state of $2" CONTAINER_RUNNING "$(crictl_ "$1" inspect "$CONTAINER" | jq -r .status.state)"
}
has_no_image() { # NODE
  equal "the images on node $1" "" "$(crictl_ "$1" images --quiet)"
}

larder_yaml 5m
larder_start
node_start one "$SANDBOX"
node_start two "$SANDBOX"

step "node one starts a pod and pulls all images through larder"
first_node_pulls one app "${IMAGES[@]}"

step "larder is down: node one pulls from the registry, and the pod keeps running"
stop_server larder KILL
gets=$(registry_requests 'GET /v2/demo/hello/blobs/')
crictl_ one pull "127.0.0.1:$REGISTRY_PORT/demo/hello:v1"
(($(registry_requests 'GET /v2/demo/hello/blobs/') > gets)) || fail "the registry got no request"
equal "the state of the pod" CONTAINER_RUNNING "$(crictl_ one inspect "$CONTAINER" | jq -r .status.state)"

step "the registry and its storage are removed, and larder restarts"
registry_stop
rm -rf "$REGISTRY_STORAGE"
larder_start

step "node two, which has never pulled, starts the pod without a request to a registry"
other_node_starts two app "${IMAGES[@]}"
# There were no failed requests either, because the tags were confirmed less than tagTtl ago.
equal "requests to registries" 0 "$(metric "$SCRATCH/after" larder_upstream_requests_total)"
equal "the digest on node two" "$(digest_on one "$APP")" "$(digest_on two "$APP")"

step "an image that was never pulled fails"
must_fail "a pull of $OTHER" crictl_ two pull "$OTHER"

step "expired tags: node two removes its images, pulls them again and starts a pod"
pods_remove two
crictl_ two rmi --all
larder_stop
larder_yaml 0
larder_start
other_node_starts two again docker.io/demo/app
some_line "the tag" ' cache=stale' "$(lines_of "$SCRATCH/log" docker.io demo/app manifests)"

step "node two restarts and pulls again"
pods_remove two
stop_server two
node_start two "$SANDBOX"
crictl_ two rmi --all
pod_runs two once-more
larder_stop
cache_is_sound
