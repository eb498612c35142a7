# Proves that clients work with the configuration that `larder hosts-toml` writes: containerd (with and without fallback to the
# registry, and with several servers in order), podman (also for a registry with a port) and Docker. The cases
# buildkit, crio and k3s do this for other clients. Containerd runs the image that `helloWorld` serves, without any registry.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_containerd
registry_start
larder_config "127.0.0.1:$REGISTRY_PORT"
printf 'defaultNs: docker.io\nhelloWorld: true\nport: %s\nhost: 127.0.0.1\n' "$LARDER_PORT" >>"$CASE_DIR/larder.yaml"
larder_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"
readonly IMAGE=docker.io/library/hello:v1

# Uses the registries of the configuration file, and its address as the default.
hosts_toml() { "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" hosts-toml "$@"; }
forget() { # IMAGE…
  ctr_ images rm --sync "$@"
  wait_until 20 "containerd drops the content" no_content
}
no_content() { [[ -z $(ctr_ content ls -q) ]]; }

step "containerd: one file for all registries, and one for each configured registry"
containerd_start "$LARDER_URL"
rm -rf "$CONTAINERD_DIR/certs.d"
hosts_toml --write "$CONTAINERD_DIR/certs.d"
equal "the directories" "127.0.0.1:$REGISTRY_PORT _default docker.io " \
  "$(find "$CONTAINERD_DIR/certs.d" -mindepth 1 -type d -printf '%f\n' | LC_ALL=C sort | tr '\n' ' ')"
hits() { larder_lines "manifests/.*ns=$1"; }
ctr_pull "$IMAGE"
ctr_pull "$UPSTREAM/library/hello:v1"
(($(hits docker\\.io) > 0)) || fail "the pull from docker.io did not use larder"
(($(hits "127\\.0\\.0\\.1%3A$REGISTRY_PORT") > 0)) || fail "the pull from $UPSTREAM did not use larder"
equal "the digest in containerd" "$HELLO_DIGEST" "$(digest_in_ctr "$UPSTREAM/library/hello:v1")"

step "containerd: the built-in image runs, and larder does not contact a registry for it"
ctr_pull docker.io/library/hello-world:latest
matches "the output" "Hello from Larder!" \
  "$(ctr_ run --rm --snapshotter native --net-host docker.io/library/hello-world:latest larder-e2e-hello-world)"
larder_logged "a hit" 'hello-world/manifests/latest.*cache=hit'
equal "requests for the built-in image at the registry" 0 "$(registry_requests 'GET /v2/library/hello-world')"
if type -P qemu-aarch64 >/dev/null; then
  step "the program for arm64 runs too"
  skopeo_ copy --quiet --src-tls-verify=false --override-arch arm64 \
    "docker://127.0.0.1:$LARDER_PORT/docker.io/library/hello-world:latest" "dir:$CASE_DIR/arm64"
  tar -xf "$CASE_DIR/arm64/$(jq -r '.layers[0].digest' "$CASE_DIR/arm64/manifest.json" | cut -d : -f 2)" -C "$CASE_DIR"
  matches "the output" "Hello from Larder!" "$(qemu-aarch64 "$CASE_DIR/hello")"
fi

step "containerd: a server that is down is skipped"
forget "$IMAGE" "$UPSTREAM/library/hello:v1" docker.io/library/hello-world:latest
hosts_toml http://127.0.0.1:9 "$LARDER_URL" --no-fallback --write "$CONTAINERD_DIR/certs.d"
ctr_pull "$IMAGE"

step "containerd: without larder, it pulls from the registry, or fails without fallback"
forget "$IMAGE"
larder_stop
must_fail "a pull without larder and without fallback" ctr_pull "$UPSTREAM/library/hello:v1"
hosts_toml --write "$CONTAINERD_DIR/certs.d"
ctr_pull "$UPSTREAM/library/hello:v1"
equal "the digest in containerd" "$HELLO_DIGEST" "$(digest_in_ctr "$UPSTREAM/library/hello:v1")"
stop_server containerd
larder_start

step "podman: the registry in the path, or its alias if it has a port"
hosts_toml --for podman --write "$CASE_DIR/registries.conf"
export CONTAINERS_REGISTRIES_CONF="$CASE_DIR/registries.conf"
for image in "$IMAGE" "$UPSTREAM/demo/hello:v1"; do
  podman_ pull --quiet --signature-policy "$PODMAN_POLICY" "$image"
  podman_ image exists "$image"
done
larder_logged "docker.io in the path" 'GET:/v2/docker\.io/library/hello/manifests/'
larder_logged "the alias in the path" "GET:/v2/${ALIAS//./\\.}/demo/hello/manifests/"

step "docker: other settings are kept"
mkdir -p "$DOCKER_DIR"
printf '{"debug": false, "bridge": "none"}\n' >"$DOCKER_DIR/daemon.json"
hosts_toml --for docker --write "$DOCKER_DIR/daemon.json"
equal "the setting that existed before" none "$(jq -r .bridge "$DOCKER_DIR/daemon.json")"
docker_start
docker_ pull --quiet hello:v1
matches "the image's digest" "@$HELLO_DIGEST" "$(docker_ image inspect --format '{{.RepoDigests}}' hello:v1)"
stop_server dockerd
larder_stop
