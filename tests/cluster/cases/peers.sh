# Proves that three pods with a cache each are one cache (`peers.enabled`): clients of all of them together cause one download of
# each blob, a blob survives the loss of the pod that downloads it, and no pull fails while all pods are replaced.
#
# The cluster has no service discovery, so this case names the pods as the headless Service would.
# shellcheck shell=bash

readonly MEMBERS=3 CLIENTS=100
name_members() {
  local service
  service=$(kubectl --namespace "$NAMESPACE" get services --output json | jq -r '.items[] | select(.spec.clusterIP == "None") | .metadata.name')
  [[ -n $service ]] || fail "the chart has no headless Service"
  server_pods | jq -r --arg name "$service.$NAMESPACE.svc" '.[].status.podIP | . + " " + $name' | name_hosts
}
# How many members a pod knows, with itself.
known_to() { # POD
  kubectl --namespace "$NAMESPACE" exec "$1" --container larder -- /larder --config-file /etc/larder/larder.yaml peers --json 2>/dev/null |
    jq length
}
all_know_each_other() {
  local pod
  for pod in $(pod_names); do [[ $(known_to "$pod") == "$MEMBERS" ]] || return 1; done
}
addresses() { server_pods | jq -r '.[].status.podIP'; }
layers() { # REPOSITORY TAG
  hub curl -fsS --header 'Accept: application/vnd.oci.image.manifest.v1+json' "$REGISTRY_ADDRESS/v2/$1/manifests/$2" |
    jq -r '(.layers[], .config) | "\(.digest) \(.size)"'
}
received_from_registry() {
  metrics_to "$SCRATCH/received"
  metric "$SCRATCH/received" larder_received_bytes_total 'from="registry"'
}

larder_install --set peers.enabled=true,replicaCount="$MEMBERS",serverConfig.configuration.management.port=8090 "$(slow 4MB)"
name_members
wait_until 60 "that all members know each other" all_know_each_other
image_push demo/peers:a 20 20
image_push demo/peers:b 40

step "$CLIENTS clients of each of the $MEMBERS pods pull a cold image"
before=$(received_from_registry)
wanted=0 transfers=()
while read -r digest size; do
  wanted=$((wanted + size))
  for address in $(addresses); do
    for ((client = 0; client < CLIENTS; client++)); do
      transfers+=(--next --silent --show-error --fail --max-time 120 --output /dev/null
        "http://$address:8080/v2/demo/peers/blobs/$digest?ns=$PUBLIC")
    done
  done
done < <(layers demo/peers a)
hub curl --parallel --parallel-max $((CLIENTS * MEMBERS)) "${transfers[@]:1}" || fail "a client failed"
equal "bytes from the registry" "$wanted" "$(($(received_from_registry) - before))"

step "the pod that downloads is killed"
mirror "$NODE_URL"
for n in "${NODES[@]}"; do pod_create "$n" "peers$n" demo/peers:b; done
downloads_slowly() { [[ -n $(hub ss -Htn state established "sport = :5000" | awk '$2 > 0') ]]; }
wait_until 60 "a slow connection to the registry" downloads_slowly
downloader=$(hub ss -Htn state established "sport = :5000" | sort -rn -k 2 | awk 'NR == 1 { sub(/:[0-9]+$/, "", $4); print $4 }')
name=$(server_pods | jq -r --arg ip "$downloader" '.[] | select(.status.podIP == $ip).metadata.name')
[[ -n $name ]] || fail "no pod has the address $downloader"
kubectl --namespace "$NAMESPACE" delete pod "$name" --grace-period 0 --force >/dev/null 2>&1
for n in "${NODES[@]}"; do pod_ready "peers$n"; done
no_former_pods
name_members
wait_until 60 "that all members know each other" all_know_each_other

step "all pods are replaced while both nodes pull"
while_pulling "$APP" roll
no_second_attempt_failed
