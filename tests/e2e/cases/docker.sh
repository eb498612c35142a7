# Proves pulls by dockerd with --registry-mirror, whose requests do not name a registry: --default-ns docker.io serves them,
# cold, warm and without the upstream, with the image removed in between.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
larder_start --default-ns docker.io

docker_start --bridge none --registry-mirror "$LARDER_URL"

pull() {
  docker_ pull --quiet hello:v1
  equal "the image's id" "$HELLO_CONFIG" "$(docker_ image inspect --format '{{.Id}}' hello:v1)"
  matches "the image's digest" "@$HELLO_DIGEST" "$(docker_ image inspect --format '{{.RepoDigests}}' hello:v1)"
}
forget() {
  docker_ rmi hello:v1
  equal "the images left" "" "$(docker_ images --quiet)"
}

step "cold"
pull
larder_logged "a request without a registry" 'GET:/v2/library/hello/'
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
stop_server dockerd
larder_stop
