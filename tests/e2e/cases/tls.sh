# Proves registries[].tls with registries whose certificates are from a private CA: which certificates larder trusts (the
# system's roots, tls.ca, any), the client certificates that it presents (with each key format, combined with each kind of
# trust), errors for unusable files at startup, and that a renewed client certificate is used without a restart.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# The time until a changed certificate file is used: larder checks every 10 s.
readonly RENEWAL_LIMIT=15
# The time limit for an error response when larder cannot connect to the registry.
readonly ERROR_LIMIT=5

# Every pull by tag checks the upstream.
TAG_TTL=0

# ---- Certificates ------------------------------------------------------------------------------------------------------

# Issues a certificate of the CA `ca` for the key NAME.key.
certificate_for_key() { # NAME EXTENSIONS
  printf '%s\n' "$2" >"$PKI/extensions"
  openssl req -new -key "$PKI/$1.key" -subj "/CN=$1" -out "$PKI/request"
  openssl x509 -req -sha256 -days 2 -in "$PKI/request" -CA "$PKI/ca.pem" -CAkey "$PKI/ca.key" -CAcreateserial \
    -extfile "$PKI/extensions" -out "$PKI/$1.pem" 2>/dev/null
}
has_format() { # NAME FIRST_LINE
  equal "the format of $1.key" "-----BEGIN $2-----" "$(head -n 1 "$PKI/$1.key")"
}

step "create CAs, the registry's certificate, and client certificates with each key format"
authority ca
authority other-ca
for name in server pkcs8 renewed; do
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/$name.key"
done
openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/sec1.key"
openssl genrsa -traditional -out "$PKI/pkcs1.key" 2048 2>/dev/null
has_format pkcs8 'PRIVATE KEY'
has_format sec1 'EC PRIVATE KEY'
has_format pkcs1 'RSA PRIVATE KEY'
certificate_for_key server $'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth'
for name in pkcs8 sec1 pkcs1 renewed; do
  certificate_for_key "$name" 'extendedKeyUsage=clientAuth'
done
cp "$PKI/pkcs8.pem" "$PKI/rotating.pem"
cp "$PKI/pkcs8.key" "$PKI/rotating.key"
printf 'not a certificate\n' >"$PKI/text.pem"

# ---- Registries --------------------------------------------------------------------------------------------------------

CURL_CERT=(--cert "$PKI/pkcs8.pem" --key "$PKI/pkcs8.key" --cacert "$PKI/ca.pem")
# Starts docker-registry with a certificate. MORE is additional YAML for http.tls.
https_registry_start() { # NAME PORT [MORE]
  cat >"$CASE_DIR/$1.yml" <<YAML
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $SAMPLES/registry}
http:
  addr: "127.0.0.1:$2"
  secret: e2e
  tls: {certificate: $PKI/server.pem, key: $PKI/server.key${3:+, $3}}
YAML
  start_server "$1" env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/$1.yml"
  wait_for_server "$1" curl -fsS --max-time 2 "${CURL_CERT[@]}" "https://127.0.0.1:$2/v2/"
}

# Starts nginx in front of the registry without TLS. It requires a client certificate too, but answers with an HTTP status, and
# logs the serial number of the certificate.
readonly SERIALS="$LOGS/gate-access.log"
gate_start() { # PORT
  nginx_start gate "
  log_format serial '\$ssl_client_serial \$status \$request';
  server {
    listen 127.0.0.1:$1 ssl;
    access_log $SERIALS serial;
    ssl_certificate $PKI/server.pem;
    ssl_certificate_key $PKI/server.key;
    ssl_client_certificate $PKI/ca.pem;
    ssl_verify_client on;
    location / { proxy_pass http://127.0.0.1:$REGISTRY_PORT; }
  }" curl -fsS --max-time 2 "${CURL_CERT[@]}" "https://127.0.0.1:$1/v2/"
}

step "start a registry with TLS, one that requires client certificates, and a gate that does too"
TLS_PORT=$(free_port)
MTLS_PORT=$(free_port)
GATE_PORT=$(free_port)
registry_start
https_registry_start tls-registry "$TLS_PORT"
https_registry_start mtls-registry "$MTLS_PORT" "clientcas: [$PKI/ca.pem]"
gate_start "$GATE_PORT"
must_fail "a request without a client certificate" \
  curl -fsS --max-time 2 --cacert "$PKI/ca.pem" "https://127.0.0.1:$MTLS_PORT/v2/"

# ---- Larder ------------------------------------------------------------------------------------------------------------

entry() { # NAME ADDRESS TLS
  printf '  - name: %s\n    endpoints: ["https://%s"]\n    tls: {%s}\n' "$1" "$2" "$3"
}
identity() { printf 'cert: %s, key: %s' "$PKI/$1.pem" "$PKI/$1.key"; }
readonly CA="ca: $PKI/ca.pem" SKIP="insecureSkipVerify: true"
{
  echo 'registries:'
  entry roots.test "127.0.0.1:$TLS_PORT" ''
  entry ca.test "127.0.0.1:$TLS_PORT" "$CA"
  entry other-ca.test "127.0.0.1:$TLS_PORT" "ca: $PKI/other-ca.pem"
  entry other-name.test "localhost:$TLS_PORT" "$CA"
  entry skip.test "127.0.0.1:$TLS_PORT" "$SKIP"
  entry anonymous.test "127.0.0.1:$MTLS_PORT" "$CA"
  entry anonymous-skip.test "127.0.0.1:$MTLS_PORT" "$SKIP"
  entry anonymous-gate.test "127.0.0.1:$GATE_PORT" "$CA"
  for name in pkcs8 sec1 pkcs1; do
    entry "$name.test" "127.0.0.1:$MTLS_PORT" "$CA, $(identity "$name")"
    entry "$name-skip.test" "127.0.0.1:$MTLS_PORT" "$SKIP, $(identity "$name")"
  done
  entry roots-pkcs8.test "127.0.0.1:$MTLS_PORT" "$(identity pkcs8)"
  entry gate.test "127.0.0.1:$GATE_PORT" "$CA, $(identity pkcs1)"
  entry gate-skip.test "127.0.0.1:$GATE_PORT" "$SKIP, $(identity sec1)"
  entry rotating.test "127.0.0.1:$GATE_PORT" "$CA, $(identity rotating)"
  # Without prefetching, because a blob fetched from one registry would be cached for all of them.
  printf "tagTtl: '%s'\nrevalidateTimeout: 2s\nprefetch: false\n" "$TAG_TTL"
} >"$CASE_DIR/larder.yaml"

# Pulls a manifest, for which larder contacts the registry each time.
pulled() { # REGISTRY
  get "$LARDER_URL/v2/$1/demo/hello/manifests/v1"
  expect_status "$1" 200
  equal "$1: the digest" "$HELLO_DIGEST" "$(header Docker-Content-Digest)"
  equal "$1: the Warning of a stale response" '' "$(header Warning)"
}
not_pulled() { # REGISTRY [REGEX]
  get "$LARDER_URL/v2/$1/demo/hello/manifests/v1" --max-time "$ERROR_LIMIT"
  expect_status "$1" 502
  matches "$1: the error" "${2:-.}" "$(jq -r '.errors[0].message' "$BODY_FILE")"
}

larder_start

# ---- Start of the renewal, which larder detects while the case continues -------------------------------------------------

# nginx and openssl both print serial numbers in upper-case hexadecimal.
serial() { openssl x509 -in "$PKI/$1.pem" -noout -serial | cut -d = -f 2; }
OLD_SERIAL=$(serial pkcs8)
NEW_SERIAL=$(serial renewed)
step "renew the certificate $OLD_SERIAL as $NEW_SERIAL"
pulled rotating.test
seen() { grep -qE "^$1 200 (GET|HEAD) /v2/demo/hello/manifests/v1 " "$SERIALS"; }
wait_until 5 "the old certificate at the gate" seen "$OLD_SERIAL"
must_fail "the new certificate at the gate, before the renewal" seen "$NEW_SERIAL"
for kind in key pem; do
  cp "$PKI/renewed.$kind" "$PKI/rotating.$kind.new"
  mv "$PKI/rotating.$kind.new" "$PKI/rotating.$kind"
done
RENEWED_AT=$SECONDS

# ---- Verification of the registry --------------------------------------------------------------------------------------

step "an unknown CA, another CA, another name: 502 with a TLS error"
for registry in roots.test other-ca.test other-name.test; do
  not_pulled "$registry" 'TLS failed'
done
get "$LARDER_URL/v2/roots.test/demo/hello/blobs/$HELLO_LAYER" --max-time "$ERROR_LIMIT"
expect_status "a blob from a registry with an unknown CA" 503

step "tls.ca"
pulled ca.test
for blob in "$HELLO_CONFIG" "$HELLO_LAYER"; do
  get "$LARDER_URL/v2/ca.test/demo/hello/blobs/$blob"
  expect_status "ca.test: $blob" 200
  same_bytes "ca.test: $blob" "$(registry_blob_file "$blob")" "$BODY_FILE"
done

step "insecureSkipVerify"
pulled skip.test

# ---- Client certificates -----------------------------------------------------------------------------------------------

step "without a client certificate pulls fail"
for registry in anonymous.test anonymous-skip.test anonymous-gate.test; do
  not_pulled "$registry"
done

step "tls.cert and tls.key, PKCS#8, SEC1 and PKCS#1, with tls.ca and with insecureSkipVerify"
for name in pkcs8 sec1 pkcs1; do
  pulled "$name.test"
  pulled "$name-skip.test"
done
pulled gate.test
pulled gate-skip.test
for name in pkcs1 sec1; do
  wait_until 5 "the certificate $name at the gate" seen "$(serial "$name")"
done

# ---- Unusable files ----------------------------------------------------------------------------------------------------

# `larder serve` does not start: exit status 2, and an error with the registry, the file and the reason.
does_not_start() { # WHAT REGEX TLS
  local status=0 output
  { echo 'registries:' && entry bad.test 127.0.0.1:9 "$3"; } >"$CASE_DIR/bad.yaml"
  output=$(client "$E2E_LARDER" --config-file "$CASE_DIR/bad.yaml" --image-path "$CASE_DIR/none" \
    serve --host 127.0.0.1 --port 0 2>&1) || status=$?
  equal "$1: the exit status" 2 "$status"
  matches "$1: the error" "bad\.test.*$2" "$output"
}

step "unusable files are errors at startup"
does_not_start "a missing ca" 'cannot read .*/missing\.pem' "ca: $PKI/missing.pem"
does_not_start "a ca that is not PEM" '/text\.pem is not a PEM' "ca: $PKI/text.pem"
does_not_start "a ca that is a key" 'no certificate in .*/ca\.key' "ca: $PKI/ca.key"
does_not_start "a missing certificate" 'cannot read .*/missing\.pem' "cert: $PKI/missing.pem, key: $PKI/pkcs8.key"
does_not_start "a missing key" 'cannot read .*/missing\.key' "cert: $PKI/pkcs8.pem, key: $PKI/missing.key"
does_not_start "a certificate that is not PEM" '/text\.pem is not a PEM' "cert: $PKI/text.pem, key: $PKI/pkcs8.key"
does_not_start "a key that is not PEM" '/text\.pem is not a PEM' "cert: $PKI/pkcs8.pem, key: $PKI/text.pem"
does_not_start "a key that is a certificate" 'no private key in .*/pkcs8\.pem' "cert: $PKI/pkcs8.pem, key: $PKI/pkcs8.pem"
does_not_start "another certificate's key" 'key .*/sec1\.key .*certificate .*/pkcs8\.pem' \
  "cert: $PKI/pkcs8.pem, key: $PKI/sec1.key"
does_not_start "another kind of key" 'key .*/pkcs1\.key .*certificate .*/pkcs8\.pem' \
  "cert: $PKI/pkcs8.pem, key: $PKI/pkcs1.key"
does_not_start "a certificate without its key" 'tls\.key' "cert: $PKI/pkcs8.pem"
does_not_start "a key without its certificate" 'tls\.cert' "key: $PKI/pkcs8.key"

# ---- End of the renewal ------------------------------------------------------------------------------------------------

# Repeats the pull until the gate has received the new certificate.
is_renewed() {
  get "$LARDER_URL/v2/rotating.test/demo/hello/manifests/v1"
  cat -- "$HEAD_FILE" >>"$CASE_DIR/rotating-heads"
  seen "$NEW_SERIAL"
}
step "the renewed certificate is used within $RENEWAL_LIMIT s, without failed pulls"
wait_until $((RENEWAL_LIMIT - SECONDS + RENEWED_AT)) "the new certificate at the gate" is_renewed
equal "responses to pulls in the meantime" 'HTTP/1.1 200 OK' "$(tr -d '\r' <"$CASE_DIR/rotating-heads" | grep '^HTTP/' | sort -u)"
must_fail "a stale response in the meantime" grep -i '^Warning:' "$CASE_DIR/rotating-heads"
larder_stop

# ---- The system's roots ------------------------------------------------------------------------------------------------

step "a CA of the system"
export SSL_CERT_FILE="$PKI/ca.pem"
larder_start
pulled roots.test
pulled roots-pkcs8.test
not_pulled anonymous.test
cache_is_sound
larder_stop
