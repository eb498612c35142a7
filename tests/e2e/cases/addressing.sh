# Proves that every way to name an upstream returns the same bytes (host with port in the path, alias in the path, ?ns= encoded
# and not, X-Registry, OCI-Namespace, --default-ns), that `ns` takes precedence, and that names that are not configured get
# NAME_UNKNOWN before any connection is made.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
larder_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"

is_hello() { # WHAT URL [CURL OPTION…]
  local what=$1
  shift
  step "$what"
  get "$@"
  expect_status "$what" 200
  equal "$what: digest header" "$HELLO_DIGEST" "$(header Docker-Content-Digest)"
  equal "$what: digest of the bytes" "$HELLO_DIGEST" "sha256:$(sha256sum <"$BODY_FILE" | cut -d ' ' -f 1)"
}

is_hello "in-path, host with port" "$LARDER_URL/v2/$UPSTREAM/demo/hello/manifests/v1"
is_hello "in-path, alias" "$LARDER_URL/v2/$ALIAS/demo/hello/manifests/v1"
is_hello "in-path, docker.io" "$LARDER_URL/v2/docker.io/library/hello/manifests/v1"
is_hello "in-path, docker.io, library/ left out" "$LARDER_URL/v2/docker.io/hello/manifests/v1"
is_hello "ns, percent-encoded port" "$LARDER_URL/v2/demo/hello/manifests/v1?ns=127.0.0.1%3A$REGISTRY_PORT"
is_hello "ns, plain port" "$LARDER_URL/v2/demo/hello/manifests/v1?ns=$UPSTREAM"
is_hello "ns, alias" "$LARDER_URL/v2/demo/hello/manifests/v1?ns=$ALIAS"
is_hello "ns, docker.io" "$LARDER_URL/v2/library/hello/manifests/v1?ns=docker.io"
is_hello "ns, docker.io in upper case" "$LARDER_URL/v2/library/hello/manifests/v1?ns=Docker.IO"
is_hello "ns, index.docker.io" "$LARDER_URL/v2/library/hello/manifests/v1?ns=index.docker.io"
is_hello "header X-Registry" "$LARDER_URL/v2/demo/hello/manifests/v1" -H "X-Registry: $UPSTREAM"
is_hello "header OCI-Namespace" "$LARDER_URL/v2/demo/hello/manifests/v1" -H "OCI-Namespace: $UPSTREAM"
is_hello "ns takes precedence over X-Registry" "$LARDER_URL/v2/demo/hello/manifests/v1?ns=$ALIAS" -H "X-Registry: nowhere.invalid"
is_hello "percent-encoded digest" "$LARDER_URL/v2/$ALIAS/demo/hello/manifests/sha256%3A${HELLO_DIGEST#sha256:}"

step "one registry has one entry in the cache under all its names"
equal "manifest GETs at the upstream for demo/hello" 1 "$(registry_requests 'GET /v2/demo/hello/manifests/')"
equal "manifest GETs at the upstream for library/hello" 1 "$(registry_requests 'GET /v2/library/hello/manifests/')"

unknown() { # WHAT PATH [CURL OPTION…]
  local what=$1 path=$2
  shift 2
  step "$what is unknown"
  get "$LARDER_URL$path" "$@"
  expect_status "$what" 404
  matches "$what: content type" '^application/json' "$(header Content-Type)"
  equal "$what: code" NAME_UNKNOWN "$(error_code)"
}
unknown "a request without an upstream" /v2/demo/hello/manifests/v1
unknown "an unlisted loopback address" "/v2/demo/hello/manifests/v1?ns=127.0.0.9:$REGISTRY_PORT"
unknown "an unlisted loopback address in the path" "/v2/127.0.0.9:$REGISTRY_PORT/demo/hello/manifests/v1"
unknown "an unlisted loopback address in X-Registry" /v2/demo/hello/manifests/v1 -H "X-Registry: 127.0.0.9:$REGISTRY_PORT"
unknown "another port of the listed address" "/v2/demo/hello/manifests/v1?ns=127.0.0.1:9"
unknown "the metadata service" "/v2/demo/hello/manifests/v1?ns=169.254.169.254"
unknown "localhost, not listed" "/v2/demo/hello/manifests/v1?ns=localhost:$REGISTRY_PORT"
unknown "a single-label name" "/v2/demo/hello/manifests/v1?ns=intranet"

step "--default-ns sets the upstream of requests without one"
larder_stop
larder_start --default-ns "$UPSTREAM"
is_hello "--default-ns" "$LARDER_URL/v2/demo/hello/manifests/v1"
is_hello "ns takes precedence over --default-ns" "$LARDER_URL/v2/library/hello/manifests/v1?ns=docker.io"
larder_stop
