# Proves that configureNodes writes hosts.toml on all nodes, also over a file that the user copied from the chart's notes, but not
# over another file; and that it can use the own address of each node, which kube-proxy needs in nftables and IPVS mode.
# shellcheck shell=bash

pod_security privileged
file=/etc/containerd/certs.d/_default/hosts.toml

step "the file of the notes on node 1, nothing on node 2"
larder_install
awk '/\[host\."/ { inside = 1 } inside && NF == 0 { exit } inside' "$SCRATCH/notes" | node_file 1 "$file"
node 1 grep -qF "$NODE_URL" "$file" || fail "the notes have no hosts.toml: $(cat "$SCRATCH/notes")"
larder_install --set configureNodes.enabled=true
wait_until 30 "hosts.toml on node 2" node 2 grep -qF "$NODE_URL" "$file"
mirror_answers "$NODE_URL"
for n in "${NODES[@]}"; do must_pull "$n" "$APP"; done

step "the own address of each node"
larder_install --set configureNodes.enabled=true,configureNodes.address=HOST_IP
for n in "${NODES[@]}"; do
  wait_until 30 "the address of node $n in its hosts.toml" node "$n" grep -qF "http://$(node_address "$n"):31080" "$file"
  forget "$n" "$APP"
  must_pull "$n" "$APP"
done

step "the file of another program"
printf '[host."http://other.test"]\n' | node_file 1 "$file"
former=$(node 1 cat "$file")
kubectl --namespace "$NAMESPACE" rollout restart daemonset/larder-configure >/dev/null
refused() {
  kubectl --namespace "$NAMESPACE" logs --selector app.kubernetes.io/component=configure-nodes --tail -1 | grep -qF "$file"
}
wait_until 60 "an error in the log" refused
equal "the file" "$former" "$(node 1 cat "$file")"
