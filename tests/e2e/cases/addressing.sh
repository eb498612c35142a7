# Proves that every way to name an upstream leads to the same bytes (in-path with port, in-path alias, ?ns= encoded and not,
# X-Registry, OCI-Namespace, --default-ns), that `ns` goes first, and that a name that is not configured is refused with
# NAME_UNKNOWN before anything is dialled.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
larder_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"

hello_arrives() { # WHAT URL [CURL OPTION…]
  local what=$1
  shift
  step "$what"
  get "$@"
  expect_status "$what" 200
  equal "$what: digest header" "$HELLO_DIGEST" "$(header Docker-Content-Digest)"
  equal "$what: digest of the bytes" "$HELLO_DIGEST" "sha256:$(sha256sum <"$BODY_FILE" | cut -d ' ' -f 1)"
}

hello_arrives "in-path, host with port" "$LARDER_URL/v2/$UPSTREAM/demo/hello/manifests/v1"
hello_arrives "in-path, alias" "$LARDER_URL/v2/$ALIAS/demo/hello/manifests/v1"
hello_arrives "in-path, docker.io" "$LARDER_URL/v2/docker.io/library/hello/manifests/v1"
hello_arrives "in-path, docker.io, library/ left out" "$LARDER_URL/v2/docker.io/hello/manifests/v1"
hello_arrives "ns, percent-encoded port" "$LARDER_URL/v2/demo/hello/manifests/v1?ns=127.0.0.1%3A$REGISTRY_PORT"
hello_arrives "ns, plain port" "$LARDER_URL/v2/demo/hello/manifests/v1?ns=$UPSTREAM"
hello_arrives "ns, alias" "$LARDER_URL/v2/demo/hello/manifests/v1?ns=$ALIAS"
hello_arrives "ns, docker.io" "$LARDER_URL/v2/library/hello/manifests/v1?ns=docker.io"
hello_arrives "ns, docker.io in upper case" "$LARDER_URL/v2/library/hello/manifests/v1?ns=Docker.IO"
hello_arrives "ns, index.docker.io" "$LARDER_URL/v2/library/hello/manifests/v1?ns=index.docker.io"
hello_arrives "header X-Registry" "$LARDER_URL/v2/demo/hello/manifests/v1" -H "X-Registry: $UPSTREAM"
hello_arrives "header OCI-Namespace" "$LARDER_URL/v2/demo/hello/manifests/v1" -H "OCI-Namespace: $UPSTREAM"
hello_arrives "ns goes before X-Registry" "$LARDER_URL/v2/demo/hello/manifests/v1?ns=$ALIAS" -H "X-Registry: nowhere.invalid"
hello_arrives "percent-encoded digest" "$LARDER_URL/v2/$ALIAS/demo/hello/manifests/sha256%3A${HELLO_DIGEST#sha256:}"

step "one registry, one entry in the cache, whatever it is called"
equal "manifest GETs that reached the upstream for demo/hello" 1 "$(registry_requests 'GET /v2/demo/hello/manifests/')"
equal "manifest GETs that reached the upstream for library/hello" 1 "$(registry_requests 'GET /v2/library/hello/manifests/')"

unknown() { # WHAT PATH [CURL OPTION…]
  local what=$1 path=$2
  shift 2
  step "$what is refused"
  get "$LARDER_URL$path" "$@"
  expect_status "$what" 404
  matches "$what: content type" '^application/json' "$(header Content-Type)"
  equal "$what: code" NAME_UNKNOWN "$(error_code)"
}
unknown "no upstream named at all" /v2/demo/hello/manifests/v1
unknown "an unlisted loopback address" "/v2/demo/hello/manifests/v1?ns=127.0.0.9:$REGISTRY_PORT"
unknown "an unlisted loopback address in the path" "/v2/127.0.0.9:$REGISTRY_PORT/demo/hello/manifests/v1"
unknown "an unlisted loopback address in X-Registry" /v2/demo/hello/manifests/v1 -H "X-Registry: 127.0.0.9:$REGISTRY_PORT"
unknown "another port of the listed address" "/v2/demo/hello/manifests/v1?ns=127.0.0.1:9"
unknown "the metadata service" "/v2/demo/hello/manifests/v1?ns=169.254.169.254"
unknown "localhost, not listed" "/v2/demo/hello/manifests/v1?ns=localhost:$REGISTRY_PORT"
unknown "a single-label name" "/v2/demo/hello/manifests/v1?ns=intranet"

step "--default-ns names the upstream of a request that names none"
larder_stop
larder_start --default-ns "$UPSTREAM"
hello_arrives "--default-ns" "$LARDER_URL/v2/demo/hello/manifests/v1"
hello_arrives "ns goes before --default-ns" "$LARDER_URL/v2/library/hello/manifests/v1?ns=docker.io"
larder_stop
