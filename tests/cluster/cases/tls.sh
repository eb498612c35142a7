# Proves that nodes pull over TLS with client certificates, and that a replaced secret takes effect without a restart and without
# a failed pull.
# shellcheck shell=bash
# shellcheck source=tests/cluster/pki.sh
. "$HERE/pki.sh"

# Also replaces the secret.
server_certificate() { # COMMON_NAME
  certificate server "/CN=$1" "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth"
  kubectl --namespace "$NAMESPACE" create secret generic larder-server --dry-run=client --output yaml \
    --from-file "tls.crt=$PKI/server.crt" --from-file "tls.key=$PKI/server.key" --from-file "ca.crt=$PKI/ca.crt" | kubectl apply --filename - >/dev/null
}
pod_security restricted
server_certificate first
certificate client "/CN=node" "extendedKeyUsage=clientAuth"
larder_install --values "$CHART/ci/tls-values.yaml"
for n in "${NODES[@]}"; do
  for file in ca.crt client.crt client.key; do node_file "$n" "/etc/containerd/certs.d/$file" <"$PKI/$file"; done
done
hosts_toml https://127.0.0.1:31080 'ca = "/etc/containerd/certs.d/ca.crt"' \
  'client = [["/etc/containerd/certs.d/client.crt", "/etc/containerd/certs.d/client.key"]]'
presented() { # Prints the name in Larder's certificate.
  node 1 openssl s_client -connect 127.0.0.1:31080 -CAfile "$PKI/ca.crt" </dev/null 2>/dev/null | sed -n 's/^subject=.*CN = //p'
}
presents() { [[ $(presented) == "$1" ]]; }
wait_until 30 "the first certificate" presents first

step "pull with a client certificate, and be refused without"
for n in "${NODES[@]}"; do must_pull "$n" "$APP"; done
! node 1 curl -fsS --max-time 5 --cacert "$PKI/ca.crt" https://127.0.0.1:31080/v2/ || fail "a client without a certificate was served"

step "replace the secret"
pod=$(pod_names)
rotate() {
  server_certificate second
  wait_until 180 "the second certificate" presents second
}
while_pulling "$APP" rotate
no_pull_failed
equal "the pod" "$pod" "$(pod_names)"
equal "restarts" 0 "$(restarts)"
