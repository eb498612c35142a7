# Proves that two pods on two nodes share a volume: clients of both together cause one download of each blob, a pod takes over
# the download of a killed one, and rolling updates interrupt no pull while there is no registry.
# shellcheck shell=bash

shared_volume "$SCRATCH/images"
larder_install "${ON_SHARED_VOLUME[@]}" "${SPREAD[@]}" "$(slow 4MB)"
equal "the nodes of Larder" "node1 node2" "$(server_pods | jq -r '[.[].spec.nodeName] | sort | join(" ")')"
mirror "$NODE_URL"
image_push demo/shared:a 20 20
image_push demo/shared:b 40 40

step "both nodes pull a cold image"
pull 1 demo/shared:a &
pid=$!
must_pull 2 demo/shared:a
wait "$pid" || fail "the pull on node 1: $(tail -n 1 "$SCRATCH/pull1")"
# Blobs below 1 MiB are downloaded without a partial file that the other pod could follow, so both may fetch them.
large=$(hub curl -fsS --header 'Accept: application/vnd.oci.image.manifest.v1+json' "$REGISTRY_ADDRESS/v2/demo/shared/manifests/a" | jq -r '.layers[] | select(.size > 1000000).digest')
[[ -n $large ]]
for layer in $large; do
  equal "requests for $layer" 1 "$(registry_requests "GET /v2/demo/shared/blobs/$layer")"
done

step "the pod that downloads is killed"
for n in "${NODES[@]}"; do pod_create "$n" "shared$n" demo/shared:b; done
# Data waits to be sent in connections that are slowed down by the rate limit. Pods of node N have addresses in 10.78.N.0/24.
downloader() {
  hub ss -Htn state established "sport = :5000" | sort -rn -k 2 | awk 'NR == 1 && $2 > 0 { split($4, part, "."); print part[3] }'
}
downloads_slowly() { [[ -n $(downloader) ]]; }
wait_until 60 "a slow connection to the registry" downloads_slowly
larder_kill "$(downloader)"
for n in "${NODES[@]}"; do pod_ready "shared$n"; done

step "two rolling updates without a registry"
larder_install "${ON_SHARED_VOLUME[@]}" "${SPREAD[@]}"
must_pull 1 "$APP"
# If HEAD for the tag and GET by digest reached different pods, the tag is stored when the first pod completes the image, 3 s later.
wait_until 30 "the tag in the cache" test -e "$SCRATCH/images/refs/$PUBLIC/${APP%:*}/_tags/${APP#*:}"
wait_until 30 "the end of all downloads" is_idle
registry_stop
updates() {
  roll
  larder_install "${ON_SHARED_VOLUME[@]}" "${SPREAD[@]}" --set serverConfig.configuration.tagTtl=4s
}
while_pulling "$APP" updates
no_pull_failed
