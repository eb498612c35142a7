# Proves that `helm test` pulls hello-world through Larder at the node port, and through the Service if there is no node port, without a
# registry and in a namespace that enforces the restricted Pod Security level; and that it fails if the image cannot be pulled.
# shellcheck shell=bash

# Succeeds if the test succeeds. Its output is in SCRATCH/helm-test.
helm_test() { helm test larder --namespace "$NAMESPACE" --logs --timeout "${READY_LIMIT}s" >"$SCRATCH/helm-test" 2>&1; }
pulled() { # URL
  helm_test || fail "helm test: $(cat "$SCRATCH/helm-test")"
  grep -qF "hello-world:latest: $1" "$SCRATCH/helm-test" || fail "helm test did not use $1: $(cat "$SCRATCH/helm-test")"
  grep -q 'content .*with the right digests' "$SCRATCH/helm-test" || fail "helm test pulled nothing: $(cat "$SCRATCH/helm-test")"
}
pod_security restricted
registry_stop

step "at the node port"
larder_install --set serverConfig.configuration.helloWorld=true
pulled "http://10."

step "through the Service"
larder_install --set serverConfig.configuration.helloWorld=true,service.type=ClusterIP
# The cluster has no service discovery, so this case names the Service.
kubectl --namespace "$NAMESPACE" get service larder --output jsonpath="{.spec.clusterIP} larder.$NAMESPACE.svc{'\n'}" | name_hosts
pulled "http://larder.$NAMESPACE.svc:8080"

step "an image that cannot be pulled"
larder_install --set "test.image=$PUBLIC/$APP"
! helm_test || fail "helm test succeeded without a registry: $(cat "$SCRATCH/helm-test")"
