# Proves that CRI-O's library (go.podman.io/image, the version of CRI-O 1.37; the case podman uses Debian's, which is years
# older) understands the registries.conf that `larder hosts-toml` writes as a drop-in file, and pulls through larder: from
# public registries, from one with plain HTTP and a port, with several servers, and with TLS and a client certificate.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_puller crio
registry_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"
# The directory that is used as /etc/containers.
readonly ETC="$CASE_DIR/containers"
mkdir -p "$ETC/certs.d"
# The main file of a distribution, and another drop-in file. Both remain in effect.
printf 'unqualified-search-registries = ["docker.io"]\n[[registry]]\nprefix = "blocked.test"\nlocation = "blocked.test"\nblocked = true\n' \
  >"$ETC/registries.conf"

hosts_toml() { "$E2E_LARDER" --config-file "$CASE_DIR/clients.yaml" hosts-toml --for crio --write "$ETC/registries.conf.d" "$@"; }
pull() { client "$TOOL" "$ETC" "$CASE_DIR/image" "$@" 2>>"$LOGS/crio.log"; }
pulls_all() { # WHEN
  equal "$1: the digest from docker.io" "$HELLO_DIGEST" "$(pull docker.io/library/hello:v1)"
  equal "$1: the digest from $UPSTREAM" "$BIG_DIGEST" "$(pull "$UPSTREAM/demo/big:v1")"
  equal "$1: the digest from quay.io, by digest" "$HELLO_V2_DIGEST" "$(pull "quay.io/demo/hello@$HELLO_V2_DIGEST")"
  larder_logged "$1: docker.io" 'GET:/v2/docker\.io/library/hello/manifests/v1'
  larder_logged "$1: $UPSTREAM" "GET:/v2/${ALIAS//./\\.}/demo/big/manifests/v1"
  larder_logged "$1: quay.io" "GET:/v2/quay\\.io/demo/hello/manifests/$HELLO_V2_DIGEST"
}

step "a drop-in file with two servers, of which the first one is down"
mirror_config
larder_start
hosts_toml http://127.0.0.1:9 "$LARDER_URL"
equal "the drop-in files" 50-larder.conf "$(ls "$ETC/registries.conf.d")"
pulls_all "plain HTTP"
must_fail "a pull of a registry that the main file blocks" pull blocked.test/hello:v1
matches "the reason" 'blocked' "$(tail -n 1 "$LOGS/crio.log")"

step "without larder, it pulls from the registry, or fails without fallback"
larder_stop
equal "the digest from the registry itself" "$HELLO_DIGEST" "$(pull "$UPSTREAM/demo/hello:v1")"
must_fail "a pull of docker.io without larder" pull docker.io/library/hello:v1
hosts_toml "$LARDER_URL" --no-fallback
must_fail "a pull without larder and without fallback" pull "$UPSTREAM/demo/hello:v1"
larder_start
pulls_all "without fallback"
larder_stop

step "TLS with a client certificate, copied to where the comments say"
tls_mirror_start
hosts_toml "$MIRROR_TLS_URL" --ca "$PKI/ca.pem" --client-cert "$PKI/node.pem" --client-key "$PKI/node.key"
must_fail "a pull of docker.io without certificates" pull docker.io/library/hello:v1
copied=0
while read -r _ _ from _ to; do
  mkdir -p "$ETC/${to%/*}"
  cp "$from" "$ETC/$to"
  copied=$((copied + 1))
done < <(grep '^# Copy ' "$ETC/registries.conf.d/50-larder.conf" | sed 's# /etc/containers/# #')
equal "the number of certificates to copy" 3 "$copied"
pulls_all TLS
larder_stop
