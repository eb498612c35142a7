# Proves TLS to clients and users of an htpasswd file with the clients themselves: curl and openssl in both versions of TLS,
# containerd by a certificate of its own (hosts.toml: ca, client) or by a password, skopeo and podman by their directories of
# certificates and with a password; that a renewed certificate is shown while an image is being pulled
# over the old connection, and that who has nothing to show gets nothing.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# ---- Certificates ------------------------------------------------------------------------------------------------------

readonly PKI="$CASE_DIR/pki"
mkdir -p "$PKI"
readonly HOST="127.0.0.1:$LARDER_PORT"
readonly URL="https://$HOST"

authority() { # NAME
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 2 -subj "/CN=$1" \
    -keyout "$PKI/$1.key" -out "$PKI/$1.pem" 2>/dev/null
}
# A key and a certificate of AUTHORITY for it.
certificate() { # NAME AUTHORITY EXTENSIONS
  printf '%s\n' "$3" >"$PKI/extensions"
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/$1.key"
  openssl req -new -key "$PKI/$1.key" -subj "/CN=$1" -out "$PKI/request"
  openssl x509 -req -sha256 -days 2 -in "$PKI/request" -CA "$PKI/$2.pem" -CAkey "$PKI/$2.key" -CAcreateserial \
    -extfile "$PKI/extensions" -out "$PKI/$1.pem" 2>/dev/null
}
serial() { openssl x509 -noout -serial "$@"; }
shown_serial() {
  openssl s_client -connect "$HOST" -cert "$PKI/node.pem" -key "$PKI/node.key" </dev/null 2>/dev/null | serial
}

step "an authority, a server's certificate and its successor, a node's, a stranger's"
authority ca
authority other-ca
for name in server next; do
  certificate "$name" ca $'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth'
done
certificate node ca 'extendedKeyUsage=clientAuth'
certificate stranger other-ca 'extendedKeyUsage=clientAuth'
cp "$PKI/server.pem" "$PKI/tls.pem"
cp "$PKI/server.key" "$PKI/tls.key"
htpasswd -Bbn nodes 'open sesame' >"$CASE_DIR/htpasswd"

# ---- TLS ---------------------------------------------------------------------------------------------------------------

configure() { # FURTHER
  larder_config "127.0.0.1:$REGISTRY_PORT"
  printf '%s\n' "$1" >>"$CASE_DIR/larder.yaml"
}
reload() { # FURTHER
  configure "$1"
  local before
  before=$(larder_lines 'configuration reloaded')
  kill -s HUP "${SERVER_PID[larder]}"
  more() { (($(larder_lines 'configuration reloaded') > before)); }
  wait_until 10 "the reloaded configuration" more
}
readonly TLS="serverTlsConfig: {cert: $PKI/tls.pem, key: $PKI/tls.key"

registry_start
configure "$TLS}"
LARDER_READY=(curl -fsS --max-time 2 --cacert "$PKI/ca.pem" "$URL/v2/")
larder_start --default-ns docker.io

step "both versions of TLS, and no older one"
for version in 1.2 1.3; do
  get "$URL/v2/library/hello/manifests/v1" --cacert "$PKI/ca.pem" "--tlsv$version" --tls-max "$version"
  expect_status "TLS $version" 200
done
must_fail "TLS 1.1" openssl s_client -connect "$HOST" -tls1_1 -cipher DEFAULT@SECLEVEL=0 </dev/null >/dev/null 2>&1

step "a request in the clear is told what to do, a client that does not know the authority is not fooled"
get "http://$HOST/v2/"
expect_status "plain HTTP" 400
matches "the answer" 'https://' "$(cat "$BODY_FILE")"
get "$URL/v2/"
equal "curl's exit status without the authority" 60 "$CURL_EXIT"
larder_logged "why there was no session" "does not trust the server's certificate"

step "skopeo and podman, by a directory of certificates"
mkdir -p "$CASE_DIR/certs"
cp "$PKI/ca.pem" "$CASE_DIR/certs/ca.crt"
skopeo_ copy --quiet --src-cert-dir "$CASE_DIR/certs" "docker://$HOST/docker.io/library/hello:v1" "dir:$CASE_DIR/by-skopeo"
equal "the digest by skopeo" "${HELLO_DIGEST#sha256:}" "$(sha256sum "$CASE_DIR/by-skopeo/manifest.json" | cut -d ' ' -f 1)"
must_fail "skopeo without the authority" copy "$HOST/docker.io/library/hello:v1" not-trusted --src-tls-verify=true

# ---- Clients' certificates ---------------------------------------------------------------------------------------------

step "only who shows a certificate of the authority is served"
reload "$TLS, clientAuth: verify, ca: $PKI/ca.pem}"
get "$URL/v2/" --cacert "$PKI/ca.pem"
((CURL_EXIT != 0)) || fail "no certificate: got $STATUS"
get "$URL/v2/" --cacert "$PKI/ca.pem" --cert "$PKI/stranger.pem" --key "$PKI/stranger.key"
((CURL_EXIT != 0)) || fail "a stranger's certificate: got $STATUS"
get "$URL/v2/" --cacert "$PKI/ca.pem" --cert "$PKI/node.pem" --key "$PKI/node.key"
expect_status "the node's certificate" 200
larder_logged "the client without" 'presented no certificate'
larder_logged "the stranger" 'certificate is not accepted'

step "containerd shows its own, and the image runs"
containerd_start "$URL" --ca "$PKI/ca.pem" --client-cert "$PKI/node.pem" --client-key "$PKI/node.key"
ctr_pull docker.io/library/hello:v1
equal "the digest in containerd" "$HELLO_DIGEST" "$(digest_in_ctr docker.io/library/hello:v1)"
equal "what it says" "hello from the larder" \
  "$(ctr_ run --rm --snapshotter native --net-host docker.io/library/hello:v1 larder-e2e-visitors)"

step "a renewed certificate, shown to new connections while an old one is in the middle of a blob"
equal "the certificate shown" "$(serial -in "$PKI/server.pem")" "$(shown_serial)"
curl -sS --max-time "$GIVE_UP_LIMIT" --limit-rate 8M --cacert "$PKI/ca.pem" --cert "$PKI/node.pem" --key "$PKI/node.key" \
  -o "$CASE_DIR/blob" "$URL/v2/demo/big/blobs/$BIG_LAYER" &
DOWNLOAD=$!
wait_until 10 "the first bytes" at_least_bytes "$CASE_DIR/blob" 1
for kind in key pem; do
  cp "$PKI/next.$kind" "$PKI/tls.$kind.new"
  mv "$PKI/tls.$kind.new" "$PKI/tls.$kind"
done
renewed() { [[ $(shown_serial) == "$(serial -in "$PKI/next.pem")" ]]; }
wait_until 15 "the new certificate" renewed
is_running "$DOWNLOAD" || fail "the download had ended before the certificate was renewed: it proves nothing"
wait "$DOWNLOAD" || fail "the download over the old connection broke: curl $?"
equal "the blob" "${BIG_LAYER#sha256:}" "$(sha256sum "$CASE_DIR/blob" | cut -d ' ' -f 1)"

# ---- Users -------------------------------------------------------------------------------------------------------------

step "users and passwords"
reload "$TLS}
serverAuthConfig: {htpasswd: $CASE_DIR/htpasswd}"
get "$URL/v2/" --cacert "$PKI/ca.pem"
expect_status "nobody" 401
matches "the challenge" '^Basic realm=' "$(header WWW-Authenticate)"
equal "the code" UNAUTHORIZED "$(error_code)"
get "$URL/v2/" --cacert "$PKI/ca.pem" --user 'nodes:open sesame'
expect_status "a user" 200
readonly FROM="docker://$HOST/docker.io/library/hello:v1"
trusting=(--quiet --src-cert-dir "$CASE_DIR/certs")
must_fail "skopeo without a password" skopeo_ copy "${trusting[@]}" "$FROM" "dir:$CASE_DIR/without"
must_fail "skopeo with a wrong one" skopeo_ copy "${trusting[@]}" --src-creds 'nodes:sesame' "$FROM" "dir:$CASE_DIR/wrong"
skopeo_ copy "${trusting[@]}" --src-creds 'nodes:open sesame' "$FROM" "dir:$CASE_DIR/with"

step "podman logs in, and pulls"
podman_login() { podman_ login --cert-dir "$CASE_DIR/certs" --authfile "$CASE_DIR/auth.json" --username nodes "$HOST" "$@"; }
must_fail "podman login with a wrong password" podman_login --password sesame
podman_login --password 'open sesame'
podman_ pull --quiet --signature-policy "$PODMAN_POLICY" --cert-dir "$CASE_DIR/certs" --authfile "$CASE_DIR/auth.json" \
  "$HOST/docker.io/library/hello:v1"
podman_ rmi "$HOST/docker.io/library/hello:v1"

step "containerd says who it is by a header of its hosts.toml"
stop_server containerd
rm -rf "$CONTAINERD_DIR"
containerd_start "$URL" --ca "$PKI/ca.pem"
cat >>"$CONTAINERD_DIR/certs.d/_default/hosts.toml" <<TOML
[host."$URL"]
  ca = "$PKI/ca.pem"
  [host."$URL".header]
    authorization = "Basic $(printf 'nodes:open sesame' | base64)"
TOML
ctr_pull docker.io/library/hello:v1
equal "the digest in containerd" "$HELLO_DIGEST" "$(digest_in_ctr docker.io/library/hello:v1)"

step "no password in the log"
must_fail "a password in the log" grep -qE "sesame|[$]2y[$]" "$LARDER_LOG"
larder_stop

# ---- The operating system's authorities --------------------------------------------------------------------------------

step "without ca, the operating system's authorities vouch for clients"
configure "$TLS, clientAuth: verify}"
export SSL_CERT_FILE="$PKI/ca.pem"
LARDER_READY=(curl -fsS --max-time 2 --cacert "$PKI/ca.pem" --cert "$PKI/node.pem" --key "$PKI/node.key" "$URL/v2/")
larder_start
larder_logged "what that means" 'every authority that this machine trusts'
get "$URL/v2/" --cacert "$PKI/ca.pem" --cert "$PKI/stranger.pem" --key "$PKI/stranger.key"
((CURL_EXIT != 0)) || fail "a stranger's certificate: got $STATUS"
larder_stop

step "and where it has none, larder says so instead of serving everybody"
export SSL_CERT_FILE=/dev/null SSL_CERT_DIR="$CASE_DIR/tmp"
status=0
said=$("$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" serve --host 127.0.0.1 \
  --port "$LARDER_PORT" 2>&1) || status=$?
equal "its exit status" 2 "$status"
matches "what it says" 'set ca to the certificate of your clients. authority' "$said"
