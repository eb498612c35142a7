# Proves pulls by podman with a [[registry.mirror]] whose location contains the registry's name (podman and CRI-O do not send
# ?ns=): cold, warm and without the upstream, with the image removed in between.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
larder_start

readonly IMAGE=docker.io/library/hello:v1
cat >"$CASE_DIR/registries.conf" <<TOML
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "127.0.0.1:$LARDER_PORT/docker.io"
insecure = true
TOML
export CONTAINERS_REGISTRIES_CONF="$CASE_DIR/registries.conf"
pull() {
  podman_ pull --quiet --signature-policy "$PODMAN_POLICY" "$IMAGE"
  equal "the image's id" "${HELLO_CONFIG#sha256:}" "$(podman_ image inspect --format '{{.Id}}' "$IMAGE")"
  equal "the image's digest" "$HELLO_DIGEST" "$(podman_ image inspect --format '{{.Digest}}' "$IMAGE")"
}
forget() {
  podman_ rmi "$IMAGE"
  equal "the images left" "" "$(podman_ images --quiet)"
}

step "cold"
pull
larder_logged "a request with the registry in the path" 'GET:/v2/docker\.io/library/hello/'
blob_gets=$(registry_requests 'GET /v2/library/hello/blobs/')
((blob_gets > 0)) || fail "the cold pull did not reach the upstream"

step "warm"
forget
pull
equal "blob GETs at the upstream" "$blob_gets" "$(registry_requests 'GET /v2/library/hello/blobs/')"

step "upstream stopped"
registry_stop
forget
pull
larder_stop
