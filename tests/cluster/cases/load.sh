# Proves that probes succeed under load: with a quarter of a CPU, sixteen clients read blobs and two nodes pull for 45 s. The pod is
# not restarted and stays ready.
# shellcheck shell=bash

larder_install --set resources.limits.cpu=250m --set resources.limits.memory=256Mi
mirror "$NODE_URL"
image_push demo/load:v1 80
must_pull 1 demo/load:v1
wait_until 30 "the end of all downloads" is_idle
url=http://$(node_address 1):31080/v2/demo/load
manifest=$(hub curl -fsS "$url/manifests/v1?ns=$PUBLIC")
blob=$(jq -r '.layers | max_by(.size).digest' <<<"$manifest")

# Every change of the pod's readiness is a line.
kubectl --namespace "$NAMESPACE" get pods --selector app.kubernetes.io/component=server --watch --output \
  'jsonpath={.status.conditions[?(@.type=="Ready")].status}{"\n"}' >"$SCRATCH/readiness" &
watch=$!
read_blobs() { # SECONDS
  local pids=()
  for _ in {1..16}; do
    # shellcheck disable=SC2016  # expanded by the inner shell
    timeout "$1" bash -c 'while :; do nsenter --target "$1" --net curl -fsS -o /dev/null "$2"; done' - "$(<"$RUN/hub.pid")" \
      "$url/blobs/$blob?ns=$PUBLIC" 2>/dev/null &
    pids+=($!)
  done
  wait "${pids[@]}" || true
}
while_pulling "$APP" read_blobs 45
kill "$watch" 2>/dev/null || true
no_pull_failed
equal "restarts" 0 "$(restarts)"
equal "states of readiness" True "$(sort -u "$SCRATCH/readiness")"
