# Proves that buildkitd builds from images that it pulls through larder, with the buildkitd.toml that `larder hosts-toml` writes:
# from public registries, from one with plain HTTP and a port, with several servers, and with TLS and a client certificate.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_tool buildkitd "LARDER_E2E_BUILDKIT=1 builds it"
readonly BUILDKITD=$TOOL BUILDCTL=${TOOL%/*}/buildctl
registry_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"
readonly CONTEXT="$CASE_DIR/context" OUT="$CASE_DIR/out"
# Short, because the path of a socket has at most 107 bytes.
readonly STATE="$CASE_DIR/b"
mkdir -p "$CONTEXT" "$STATE"

# Starts buildkitd without any content, with the configuration for SERVERS.
buildkit_start() { # SERVER… [OPTION OF hosts-toml…]
  stop_server buildkitd
  rm -rf "${STATE:?}/root"
  "$E2E_LARDER" --config-file "$CASE_DIR/clients.yaml" hosts-toml --for buildkit --write "$STATE/buildkitd.toml" "$@"
  start_server buildkitd "${OFFLINE[@]}" "$BUILDKITD" --config "$STATE/buildkitd.toml" --root "$STATE/root" \
    --addr "unix://$STATE/b.sock" --containerd-worker=false --oci-worker-snapshotter=native --oci-worker-net=host
  wait_for_server buildkitd buildctl_ debug workers
}
buildctl_() { client "$BUILDCTL" --addr "unix://$STATE/b.sock" "$@"; }
build() { # LINE OF THE DOCKERFILE…
  rm -rf "$OUT"
  printf '%s\n' "$@" >"$CONTEXT/Dockerfile"
  buildctl_ build --progress plain --no-cache --frontend dockerfile.v0 --local "context=$CONTEXT" --local "dockerfile=$CONTEXT" \
    --output "type=local,dest=$OUT"
}
builds_from_all() { # WHEN
  build 'FROM hello:v1 AS hub' 'RUN ["/hello"]' \
    "FROM quay.io/demo/hello@$HELLO_V2_DIGEST AS quay" \
    "FROM $UPSTREAM/demo/multi:v1 AS port" \
    'FROM scratch' 'COPY --from=hub /hello /hub' 'COPY --from=quay /note /quay' 'COPY --from=port /hello /port'
  equal "$1: the output of the program of docker.io" "hello from the larder" "$("$OUT/hub")"
  equal "$1: the file of quay.io" "second version" "$(cat "$OUT/quay")"
  same_bytes "$1: the program of $UPSTREAM" "$OUT/hub" "$OUT/port"
  larder_logged "$1: docker.io" '/v2/library/hello/manifests/v1\?ns=docker\.io'
  larder_logged "$1: quay.io" "/v2/demo/hello/manifests/$HELLO_V2_DIGEST\\?ns=quay\\.io"
  larder_logged "$1: $UPSTREAM" "/v2/demo/multi/manifests/v1\\?ns=127\\.0\\.0\\.1%3A$REGISTRY_PORT"
  larder_logged "$1: a layer" 'GET:/v2/demo/hello/blobs/sha256:[0-9a-f]*\?ns=quay\.io'
}

step "two servers, of which the first one is down"
mirror_config
larder_start
buildkit_start http://127.0.0.1:9 "$LARDER_URL"
builds_from_all "plain HTTP"

step "without larder, it pulls from the registry"
larder_stop
buildkit_start "$LARDER_URL"
build "FROM $UPSTREAM/demo/hello:v1"
equal "the output of the program from the registry itself" "hello from the larder" "$("$OUT/hello")"
must_fail "a build from docker.io without larder" build 'FROM hello:v1'

step "TLS with a client certificate"
tls_mirror_start
buildkit_start "$MIRROR_TLS_URL" --skip-verify
must_fail "a build from docker.io without a client certificate" build 'FROM hello:v1'
for trust in "--ca $PKI/ca.pem" --skip-verify; do
  : >"$LARDER_LOG"
  # shellcheck disable=SC2086  # an option and its value
  buildkit_start "$MIRROR_TLS_URL" $trust --client-cert "$PKI/node.pem" --client-key "$PKI/node.key"
  builds_from_all "${trust%% *}"
done
stop_server buildkitd
larder_stop
