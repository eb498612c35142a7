# Proves that pods pull with the tokens of their service accounts: the kubelets run `larder credential-provider`, and Larder
# verifies the tokens with the keys of the cluster, also when it was killed and the registry is gone. What a namespace may not
# pull, its pods do not get, though the nodes have it.
# shellcheck shell=bash disable=SC2034  # lib.sh uses POD_NAMESPACE
# shellcheck source=tests/cluster/pki.sh
. "$HERE/pki.sh"

LARDER=$ROOT/target/static/$(dpkg --print-architecture)/larder
readonly LARDER URL=https://127.0.0.1:31080
account() { printf 'user=system:serviceaccount:%s:default' "$1"; } # NAMESPACE
# Lines of Larder's log about manifests of the image of this case.
requests() { lines_of "$SCRATCH/log" "$PUBLIC" "${APP%:*}" manifests; }

step "install Larder, which trusts the cluster"
pod_security restricted
certificate server /CN=larder "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth"
kubectl --namespace "$NAMESPACE" create secret tls larder-server --cert "$PKI/server.crt" --key "$PKI/server.key" >/dev/null
cat >"$SCRATCH/values.yaml" <<YAML
serviceAccount: {automount: true}
serverTls: {enabled: true, secretName: larder-server}
serverConfig:
  configuration:
    serverAuthConfig:
      oidc:
        - issuer: https://kubernetes.default.svc
          audience: larder
          ca: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
          tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
          allow:
            - {claims: {kubernetes.io.namespace: team-a}, repositories: [$PUBLIC/demo/*]}
            - {claims: {kubernetes.io.namespace: team-b}, repositories: [$PUBLIC/other]}
YAML
larder_install --values "$SCRATCH/values.yaml"

step "configure the nodes"
# As in docs/configuration.md.
sed -n '/^   apiVersion: rbac/,/^   ```$/p' "$ROOT/docs/configuration.md" | sed '$d; s/^   //' >"$SCRATCH/rights.yaml"
(($(grep -c '^kind: ' "$SCRATCH/rights.yaml") == 2)) || fail "docs/configuration.md has no ClusterRole with its binding"
kubectl apply --filename "$SCRATCH/rights.yaml" >/dev/null
kubectl label --filename "$SCRATCH/rights.yaml" larder=test >/dev/null
for n in "${NODES[@]}"; do
  node_file "$n" /etc/larder/ca.crt <"$PKI/ca.crt"
  node "$n" "$LARDER" hosts-toml --registry "$PUBLIC" --ca /etc/larder/ca.crt --no-fallback --write /etc/containerd/certs.d "$URL"
  node "$n" install -D "$LARDER" "$PROVIDERS/larder"
  node "$n" "$LARDER" hosts-toml --for kubelet --registry "$PUBLIC" --write "$PROVIDERS.yaml"
  kubelet_restart "$n"
done
for name in team-a team-b team-c; do
  kubectl create namespace "$name" >/dev/null
  kubectl label namespace "$name" larder=test >/dev/null
  wait_until 30 "the service account of $name" kubectl --namespace "$name" get serviceaccount default
done

step "pods of team-a pull, on a node with containerd 2 and on one with 1.6"
POD_NAMESPACE="team-a"
for n in "${NODES[@]}"; do
  pod_create "$n" "a$n" "$APP"
  pod_ready "a$n"
done
log_to "$SCRATCH/log"
requests >"$SCRATCH/requests"
some_line "a pull of team-a" "status=200 .*$(account team-a)" "$(<"$SCRATCH/requests")"

step "pods of other teams do not get the image that the nodes have"
refused() { # TEAM REGEX: what the log has of it
  local n
  POD_NAMESPACE=$1
  log_from_here
  for n in "${NODES[@]}"; do
    pod_create "$n" "$1-$n" "$APP"
    wait_until "$READY_LIMIT" "the failed pull of $1 on node $n" waits_for_its_image "$1-$n"
  done
  log_to "$SCRATCH/log"
  some_line "a refused pull of $1" "$2" "$(requests)"
  every_line "the pulls of $1" 'status=40[13] ' "$(requests)"
}
refused team-b "status=403 .* reason=token-denied .*$(account team-b)"
# No entry of `allow` is for this one.
refused team-c "status=403 .* reason=token-denied .*$(account team-c)"

step "without the registry, and after Larder was killed, team-a pulls and team-b does not"
registry_stop
pods_delete
for n in "${NODES[@]}"; do forget "$n" "$APP"; done
larder_kill "$(node_of_larder)"
mirror_has_started() { node 1 curl -sS --max-time 2 --cacert "$PKI/ca.crt" --output /dev/null "$URL/v2/"; }
wait_until 60 "Larder" mirror_has_started
POD_NAMESPACE="team-b"
pod_create 1 b-again "$APP"
wait_until "$READY_LIMIT" "the failed pull of team-b" waits_for_its_image b-again
POD_NAMESPACE="team-a"
for n in "${NODES[@]}"; do
  pod_create "$n" "again$n" "$APP"
  pod_ready "again$n"
done

step "no token is in the log or in the cache"
kubectl --namespace "$NAMESPACE" logs "$(pod_names)" --container larder --previous >"$SCRATCH/log"
kubectl --namespace "$NAMESPACE" logs "$(pod_names)" --container larder >>"$SCRATCH/log"
readonly TOKEN='eyJ[A-Za-z0-9_-]{20}'
! grep -E "$TOKEN" "$SCRATCH/log" || fail "the log has a token"
# shellcheck disable=SC2016  # expanded by the inner shell
node "$(node_of_larder)" bash -euc '
  shopt -s globstar
  files=(/var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/**/blobs/sha256/*)
  test -f "${files[0]}"
  ! grep -rE "$1" /var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/' - "$TOKEN" || fail "the cache has a token, or is elsewhere"
