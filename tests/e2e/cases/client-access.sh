# Proves TLS for clients and the users of an htpasswd file with real clients: curl and openssl with both versions of TLS,
# containerd with a client certificate (hosts.toml: ca, client) or a password, skopeo and podman with a directory of certificates
# and a password. New connections get a renewed certificate while a download continues on an old connection. Clients without a
# valid certificate or password are rejected.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_containerd
# ---- Certificates ------------------------------------------------------------------------------------------------------

readonly HOST="127.0.0.1:$LARDER_PORT"
readonly URL="https://$HOST"
serial() { openssl x509 -noout -serial "$@"; }
shown_serial() {
  openssl s_client -connect "$HOST" -cert "$PKI/node.pem" -key "$PKI/node.key" </dev/null 2>/dev/null | serial
}

step "create a CA, two server certificates, a client certificate, and one from another CA"
authority ca
authority other-ca
for name in server next; do
  certificate "$name" ca $'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth'
done
certificate node ca 'extendedKeyUsage=clientAuth'
certificate other-client other-ca 'extendedKeyUsage=clientAuth'
cp "$PKI/server.pem" "$PKI/tls.pem"
cp "$PKI/server.key" "$PKI/tls.key"
htpasswd -Bbn nodes 'open sesame' >"$CASE_DIR/htpasswd"

# ---- TLS ---------------------------------------------------------------------------------------------------------------

configure() { # MORE
  larder_config "127.0.0.1:$REGISTRY_PORT"
  printf '%s\n' "$1" >>"$CASE_DIR/larder.yaml"
}
reload() { # MORE
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

step "TLS 1.2 and 1.3 work, older versions do not"
for version in 1.2 1.3; do
  get "$URL/v2/library/hello/manifests/v1" --cacert "$PKI/ca.pem" "--tlsv$version" --tls-max "$version"
  expect_status "TLS $version" 200
done
must_fail "TLS 1.1" openssl s_client -connect "$HOST" -tls1_1 -cipher DEFAULT@SECLEVEL=0 </dev/null >/dev/null 2>&1

step "plain HTTP gets a hint, and a client that does not know the CA fails"
get "http://$HOST/v2/"
expect_status "plain HTTP" 400
matches "the response" 'https://' "$(cat "$BODY_FILE")"
get "$URL/v2/"
equal "curl's exit status without the CA" 60 "$CURL_EXIT"
larder_logged "the reason for the failed handshake" "does not trust the server's certificate"

step "skopeo with a directory of certificates"
mkdir -p "$CASE_DIR/certs"
cp "$PKI/ca.pem" "$CASE_DIR/certs/ca.crt"
skopeo_ copy --quiet --src-cert-dir "$CASE_DIR/certs" "docker://$HOST/docker.io/library/hello:v1" "dir:$CASE_DIR/with-skopeo"
equal "the digest for skopeo" "${HELLO_DIGEST#sha256:}" "$(sha256sum "$CASE_DIR/with-skopeo/manifest.json" | cut -d ' ' -f 1)"
must_fail "skopeo without the CA" copy "$HOST/docker.io/library/hello:v1" not-trusted --src-tls-verify=true

# ---- Client certificates -----------------------------------------------------------------------------------------------

step "only clients with a certificate from the CA are served"
reload "$TLS, clientAuth: verify, ca: $PKI/ca.pem}"
get "$URL/v2/" --cacert "$PKI/ca.pem"
((CURL_EXIT != 0)) || fail "no certificate: got $STATUS"
get "$URL/v2/" --cacert "$PKI/ca.pem" --cert "$PKI/other-client.pem" --key "$PKI/other-client.key"
((CURL_EXIT != 0)) || fail "a certificate from another CA: got $STATUS"
get "$URL/v2/" --cacert "$PKI/ca.pem" --cert "$PKI/node.pem" --key "$PKI/node.key"
expect_status "the node's certificate" 200
larder_logged "the client without a certificate" 'presented no certificate'
larder_logged "the certificate from another CA" 'certificate is not accepted'

step "containerd pulls with its client certificate, and the image runs"
containerd_start "$URL" --ca "$PKI/ca.pem" --client-cert "$PKI/node.pem" --client-key "$PKI/node.key"
ctr_pull docker.io/library/hello:v1
equal "the digest in containerd" "$HELLO_DIGEST" "$(digest_in_ctr docker.io/library/hello:v1)"
equal "the container's output" "hello from the larder" \
  "$(ctr_ run --rm --snapshotter native --net-host docker.io/library/hello:v1 larder-e2e-client-access)"

step "new connections get a renewed certificate while an old one downloads a blob"
equal "the certificate before the renewal" "$(serial -in "$PKI/server.pem")" "$(shown_serial)"
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
is_running "$DOWNLOAD" || fail "the download ended before the certificate was renewed, so it proves nothing"
wait "$DOWNLOAD" || fail "the download on the old connection failed: curl status $?"
equal "the blob" "${BIG_LAYER#sha256:}" "$(sha256sum "$CASE_DIR/blob" | cut -d ' ' -f 1)"

# ---- Users -------------------------------------------------------------------------------------------------------------

step "users and passwords"
reload "$TLS}
serverAuthConfig: {htpasswd: $CASE_DIR/htpasswd}"
get "$URL/v2/" --cacert "$PKI/ca.pem"
expect_status "a request without a password" 401
matches "the challenge" '^Basic realm=' "$(header WWW-Authenticate)"
equal "the code" UNAUTHORIZED "$(error_code)"
get "$URL/v2/" --cacert "$PKI/ca.pem" --user 'nodes:open sesame'
expect_status "a request with the password" 200
readonly FROM="docker://$HOST/docker.io/library/hello:v1"
trusting=(--quiet --src-cert-dir "$CASE_DIR/certs")
must_fail "skopeo without a password" skopeo_ copy "${trusting[@]}" "$FROM" "dir:$CASE_DIR/without"
must_fail "skopeo with a wrong password" skopeo_ copy "${trusting[@]}" --src-creds 'nodes:sesame' "$FROM" "dir:$CASE_DIR/wrong"
skopeo_ copy "${trusting[@]}" --src-creds 'nodes:open sesame' "$FROM" "dir:$CASE_DIR/with"

step "podman logs in and pulls"
podman_login() { podman_ login --cert-dir "$CASE_DIR/certs" --authfile "$CASE_DIR/auth.json" --username nodes "$HOST" "$@"; }
must_fail "podman login with a wrong password" podman_login --password sesame
podman_login --password 'open sesame'
podman_ pull --quiet --signature-policy "$PODMAN_POLICY" --cert-dir "$CASE_DIR/certs" --authfile "$CASE_DIR/auth.json" \
  "$HOST/docker.io/library/hello:v1"
podman_ rmi "$HOST/docker.io/library/hello:v1"

step "containerd authenticates with a header in hosts.toml"
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

# ---- The operating system's CAs ----------------------------------------------------------------------------------------

step "without ca, clients are verified against the operating system's CAs"
configure "$TLS, clientAuth: verify}"
export SSL_CERT_FILE="$PKI/ca.pem"
LARDER_READY=(curl -fsS --max-time 2 --cacert "$PKI/ca.pem" --cert "$PKI/node.pem" --key "$PKI/node.key" "$URL/v2/")
larder_start
larder_logged "a warning about that" 'every authority that this machine trusts'
get "$URL/v2/" --cacert "$PKI/ca.pem" --cert "$PKI/other-client.pem" --key "$PKI/other-client.key"
((CURL_EXIT != 0)) || fail "a certificate from another CA: got $STATUS"
larder_stop

step "without any CA, larder does not start instead of serving all clients"
export SSL_CERT_FILE=/dev/null SSL_CERT_DIR="$CASE_DIR/tmp"
status=0
output=$("$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" serve --host 127.0.0.1 \
  --port "$LARDER_PORT" 2>&1) || status=$?
equal "the exit status" 2 "$status"
matches "the error" 'set ca to the certificate of your clients. authority' "$output"
