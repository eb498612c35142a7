# Proves that an update, a rollback and a changed configuration interrupt no pull: two nodes pull in a loop while Larder is
# upgraded with another value, rolled back, and told to reload without a restart. Afterwards it is uninstalled completely. Objects for
# an operator that the cluster does not have are left out.
# shellcheck shell=bash

larder_install
mirror "$NODE_URL"
for n in "${NODES[@]}"; do must_pull "$n" "$APP"; done
log_level() { kubectl --namespace "$NAMESPACE" get configmap larder-config --output jsonpath='{.data}' | grep -o 'logLevel: [a-z]*'; }

step "upgrade, with a ServiceMonitor that the cluster does not know"
first=$(pod_names)
while_pulling "$APP" larder_install --values "$CHART/ci/observability-values.yaml" --set serverConfig.configuration.logLevel=debug
grep -q ServiceMonitor "$SCRATCH/notes" || fail "the notes do not mention what was left out: $(cat "$SCRATCH/notes")"
no_pull_failed
[[ $(pod_names) != "$first" ]] || fail "the changed configuration did not replace the pod"
equal "the configuration" "logLevel: debug" "$(log_level)"

step "roll back"
roll_back() {
  helm rollback larder 1 --namespace "$NAMESPACE" --wait --timeout "${READY_LIMIT}s" >/dev/null
  no_former_pods
}
while_pulling "$APP" roll_back
no_pull_failed
equal "the configuration" "logLevel: info" "$(log_level)"

step "reload without a restart"
larder_install --set serverConfig.restartOnChange=false
pod=$(pod_names)
reload() {
  larder_install --set serverConfig.restartOnChange=false --set serverConfig.configuration.logLevel=debug
  # The kubelet updates the file at its next sync of the pod, and Larder checks it every few seconds.
  wait_until 120 "the reload in the log" has_reloaded
}
has_reloaded() { log_of "$pod" | grep -qE 'configuration reloaded .*logLevel'; }
while_pulling "$APP" reload
no_pull_failed
equal "the pod" "$pod" "$(pod_names)"
equal "restarts" 0 "$(restarts)"

step "uninstall"
helm uninstall larder --namespace "$NAMESPACE" --wait >/dev/null
remaining() {
  kubectl --namespace "$NAMESPACE" get all,configmaps,secrets,persistentvolumeclaims,serviceaccounts \
    --selector app.kubernetes.io/instance=larder --output name
}
nothing_remains() { [[ -z $(remaining) ]]; }
wait_until "$READY_LIMIT" "the end of all objects" nothing_remains
