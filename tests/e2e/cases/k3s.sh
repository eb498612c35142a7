# Proves that the parser of k3s and RKE2 (rancher/wharfie) understands the registries.yaml that `larder hosts-toml` writes, and
# that its mirrors lead to larder: registries that are listed, all others, a registry with plain HTTP and a port, several
# servers, and TLS with a client certificate. k3s translates the mirrors for containerd; here, wharfie pulls with them.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_puller k3s
registry_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"
readonly FILE="$CASE_DIR/registries.yaml"
hosts_toml() { "$E2E_LARDER" --config-file "$CASE_DIR/clients.yaml" hosts-toml --write "$FILE" "$@"; }
pull() { client "$TOOL" "$FILE" "$@" 2>>"$LOGS/k3s.log"; }
pulls_all() { # WHEN
  equal "$1: the digest from docker.io" "$HELLO_DIGEST" "$(pull docker.io/library/hello:v1)"
  equal "$1: the digest from $UPSTREAM" "$BIG_DIGEST" "$(pull "$UPSTREAM/demo/big:v1")"
  equal "$1: the digest from quay.io, by digest" "$HELLO_V2_DIGEST" "$(pull "quay.io/demo/hello@$HELLO_V2_DIGEST")"
  larder_logged "$1: docker.io" 'GET:/v2/library/hello/manifests/v1\?ns=docker\.io'
  larder_logged "$1: $UPSTREAM" "GET:/v2/demo/big/manifests/v1\\?ns=127\\.0\\.0\\.1%3A$REGISTRY_PORT"
  larder_logged "$1: quay.io" "GET:/v2/demo/hello/manifests/$HELLO_V2_DIGEST\\?ns=quay\\.io"
  larder_logged "$1: the layer of quay.io" 'GET:/v2/demo/hello/blobs/sha256:[0-9a-f]*\?ns=quay\.io'
}

step "one server, and one that is down before it"
mirror_config
larder_start
hosts_toml http://127.0.0.1:9 "$LARDER_URL" --for k3s
pulls_all "plain HTTP"

step "without larder, it pulls from the registry, and without fallback it does not list the registry"
larder_stop
equal "the digest from the registry itself" "$HELLO_DIGEST" "$(pull "$UPSTREAM/demo/hello:v1")"
must_fail "a pull of docker.io without larder" pull docker.io/library/hello:v1
hosts_toml "$LARDER_URL" --for k3s --no-fallback
must_fail "the URL of the registry" grep -F "http://$UPSTREAM" "$FILE"

step "TLS with a client certificate, for RKE2"
tls_mirror_start
hosts_toml "$MIRROR_TLS_URL" --for rke2
must_fail "a pull of docker.io without the CA" pull docker.io/library/hello:v1
hosts_toml "$MIRROR_TLS_URL" --for rke2 --skip-verify
must_fail "a pull of docker.io without a client certificate" pull docker.io/library/hello:v1
hosts_toml "$MIRROR_TLS_URL" --for rke2 --ca "$PKI/ca.pem" --client-cert "$PKI/node.pem" --client-key "$PKI/node.key"
pulls_all TLS
larder_stop
