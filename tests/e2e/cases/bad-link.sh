# Proves pulls over a bad link between larder and its registry: packets are lost (and delayed, if the kernel supports that), and
# each connection is reset after some hundred kilobytes. Several skopeo processes pull images at the same time and get the
# right bytes, and the registry sends little more than the size of the images. No pull fails because the network has dropped
# idle connections.
# shellcheck shell=bash source=../lib.sh

# Runs in its own network namespace.
if [[ -z ${E2E_NAMESPACE:-} ]] && unshare --net true; then
  E2E_NAMESPACE=own exec unshare --net bash "${BASH_SOURCE[0]}"
fi
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
[[ -n ${E2E_NAMESPACE:-} ]] || skip "this machine has no network namespaces"

readonly IMAGES=4 LAYERS=3 LAYER_BYTES=1200000
readonly LOSS_PERCENT=3
# Each connection is reset after this many bytes, so no layer fits through one connection.
readonly RESET_AFTER_BYTES=500000
# Bytes in the send buffer are lost with the connection, so the buffer is small compared to a layer.
readonly SEND_BUFFER_BYTES=65536
# The limit for all bytes that the registry sends, in percent of the size of the images: with packet headers, retransmissions,
# and bytes in flight when a connection is reset.
readonly SENT_PERCENT_MAX=150
# The number of idle connections that the network drops: too many for a request that is retried once.
readonly FORGOTTEN=4
# Addresses reserved for documentation (RFC 5737), in a network without other hosts.
readonly NEAR=192.0.2.1 FAR=192.0.2.2

# ---- Images ------------------------------------------------------------------------------------------------------------

# Creates an image with unique layers in a directory in skopeo's format.
make_image() { # DIR
  local n hex layers=()
  mkdir -p "$1"
  printf 'Directory Transport Version: 1.1\n' >"$1/version"
  for ((n = 0; n < LAYERS; n++)); do
    head -c "$LAYER_BYTES" /dev/urandom >"$CASE_DIR/tmp/data"
    tar -C "$CASE_DIR/tmp" -cf "$CASE_DIR/tmp/layer" data
    hex=$(sha256sum "$CASE_DIR/tmp/layer" | cut -d ' ' -f 1)
    mv "$CASE_DIR/tmp/layer" "$1/$hex"
    layers+=("$hex $(stat -c %s "$1/$hex")")
  done
  printf '%s\n' "${layers[@]}" | jq -Rnc '[inputs | split(" ")[0]] |
    {architecture: "amd64", os: "linux", config: {}, rootfs: {type: "layers", diff_ids: map("sha256:" + .)}}' \
    >"$CASE_DIR/tmp/config"
  hex=$(sha256sum "$CASE_DIR/tmp/config" | cut -d ' ' -f 1)
  mv "$CASE_DIR/tmp/config" "$1/$hex"
  printf '%s\n' "${layers[@]}" | jq -Rnc --arg config "$hex" --argjson size "$(stat -c %s "$1/$hex")" '
    "application/vnd.oci.image." as $type |
    {schemaVersion: 2, mediaType: ($type + "manifest.v1+json"),
     config: {mediaType: ($type + "config.v1+json"), digest: ("sha256:" + $config), size: $size},
     layers: [inputs | split(" ") |
       {mediaType: ($type + "layer.v1.tar"), digest: ("sha256:" + .[0]), size: (.[1] | tonumber)}]}' >"$1/manifest.json"
}

step "push $IMAGES images of $LAYERS layers each over a good link"
ip link set lo up
mkdir -p "$CASE_DIR/storage"
registry_start "$CASE_DIR/storage"
for ((n = 1; n <= IMAGES; n++)); do
  make_image "$CASE_DIR/image-$n"
  skopeo_ copy --quiet --preserve-digests --dest-tls-verify=false "dir:$CASE_DIR/image-$n" \
    "docker://127.0.0.1:$REGISTRY_PORT/bad/image-$n:v1"
done
make_image "$CASE_DIR/image-late"
for name in image-late $(seq -f 'idle-%g' "$FORGOTTEN"); do
  skopeo_ copy --quiet --preserve-digests --dest-tls-verify=false "dir:$CASE_DIR/image-late" \
    "docker://127.0.0.1:$REGISTRY_PORT/bad/$name:v1"
done
registry_stop

# ---- The link ----------------------------------------------------------------------------------------------------------

# Restarts the registry in another network namespace, connected by a veth pair.
step "move the registry to the other end of a bad link"
sed -i "s/addr: \"127.0.0.1:/addr: \"0.0.0.0:/" "$CASE_DIR/registry.yml"
start_server registry unshare --net env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/registry.yml"
has_moved() { [[ $(readlink "/proc/${SERVER_PID[registry]}/ns/net") != "$(readlink /proc/self/ns/net)" ]]; }
wait_for_server registry has_moved
far() { nsenter --net --target "${SERVER_PID[registry]}" "$@"; }
ip link add near type veth peer name far netns "${SERVER_PID[registry]}" || skip "the kernel offers no veth"
# Limit packets to the size that they have on a real network.
ip addr add "$NEAR/30" dev near
ip link set near up gso_max_segs 1
far ip addr add "$FAR/30" dev far
far ip link set far up gso_max_segs 1
far sh -c "echo 4096 $((SEND_BUFFER_BYTES / 4)) $SEND_BUFFER_BYTES >/proc/sys/net/ipv4/tcp_wmem"
wait_for_server registry curl -fsS --max-time 2 "http://$FAR:$REGISTRY_PORT/v2/"

# Drops incoming packets at both ends.
lose() {
  local way
  if tc qdisc add dev near root netem delay 30ms loss "$LOSS_PERCENT%" 2>/dev/null; then
    far tc qdisc add dev far root netem delay 30ms loss "$LOSS_PERCENT%"
    echo "netem: delay and loss"
    return
  fi
  for way in '' far; do
    $way iptables -w -A INPUT -p tcp -i "${way:-near}" -m statistic --mode random --probability "0.0$LOSS_PERCENT" \
      -j DROP 2>/dev/null || return 1
  done
  echo "iptables: loss"
}
lose || skip "the kernel offers neither netem nor iptables' statistic match"
far iptables -w -I INPUT -p tcp --dport "$REGISTRY_PORT" -m connbytes --connbytes "$RESET_AFTER_BYTES:" \
  --connbytes-dir reply --connbytes-mode bytes -j REJECT --reject-with tcp-reset 2>/dev/null ||
  skip "the kernel does not offer iptables' connbytes match"
# The log of docker-registry does not show broken responses, so iptables counts packets.
far iptables -w -A OUTPUT -p tcp --sport "$REGISTRY_PORT" -j ACCEPT
# Prints how many packets (1) or bytes (2) matched the rules of a chain with a target at the far end.
counted() { # CHAIN TARGET COLUMN
  far iptables -w -nvxL "$1" | awk -v target="$2" -v column="$3" '$3 == target { sum += $column } END { print sum + 0 }'
}

# ---- Pulls over it -----------------------------------------------------------------------------------------------------

cat >"$CASE_DIR/larder.yaml" <<YAML
registries:
  - name: bad.test
    endpoints: ["http://$FAR:$REGISTRY_PORT"]
YAML
larder_start
# Pulls through larder, and compares with the pushed image.
pull() { # IMAGE
  skopeo_ copy --quiet --src-tls-verify=false "docker://127.0.0.1:$LARDER_PORT/bad.test/bad/image-$1:v1" \
    "dir:$CASE_DIR/pulled-$1"
  same_tree "image $1" "$CASE_DIR/image-$1" "$CASE_DIR/pulled-$1"
}
pull_at_once() { # IMAGE…
  local image pid pids=()
  for image; do
    pull "$image" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || fail "a pull failed"
  done
}

step "pull all images at the same time"
mapfile -t all < <(seq 1 "$IMAGES")
before=$(counted OUTPUT ACCEPT 2)
pull_at_once "${all[@]}"
sent=$(($(counted OUTPUT ACCEPT 2) - before))

step "the link lost packets and connections, and larder resumed the downloads"
resets=$(counted INPUT REJECT 1)
resumed=$(larder_lines 'WARN  download interrupted; it is resumed .* received=[1-9][0-9.]*(bytes?|[kMG]B) ')
size=$(find "${all[@]/#/$CASE_DIR/image-}" -type f ! -name version -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
echo "sent $sent bytes for $size ($((sent * 100 / size)) %), $resets resets, $resumed resumed"
((resets > 0)) || fail "no connection was reset"
((resumed >= IMAGES * LAYERS)) || fail "only $resumed downloads were resumed"
((sent > size)) || fail "only $sent bytes were counted for images of $size"
((sent * 100 <= size * SENT_PERCENT_MAX)) || fail "the registry sent $sent bytes for images of $size"

# ---- Idle connections that the network drops ---------------------------------------------------------------------------

# A router that has restarted, or that drops idle connections, answers the next packet with a reset.
larder_connections() { ss -Htn state "$1" dst "$FAR" | awk '{ sub(/.*:/, "", $3); print $3 }'; }
enough_connecting() { (($(larder_connections syn-sent | wc -l) >= FORGOTTEN)); }
larder_stop
# Prefetched layers are larger than a connection lives: with them, resets in the background close idle connections as well.
printf 'prefetch: false\n' >>"$CASE_DIR/larder.yaml"
larder_start
step "$FORGOTTEN requests at the same time, which leave as many idle connections"
far iptables -w -I OUTPUT -p tcp --sport "$REGISTRY_PORT" -j DROP
pids=()
for ((n = 1; n <= FORGOTTEN; n++)); do
  curl -fsS --max-time "$GIVE_UP_LIMIT" -o /dev/null "$LARDER_URL/v2/bad.test/bad/idle-$n/manifests/v1" &
  pids+=($!)
done
wait_until 15 "$FORGOTTEN connections in SYN-SENT" enough_connecting
far iptables -w -D OUTPUT -p tcp --sport "$REGISTRY_PORT" -j DROP
for pid in "${pids[@]}"; do
  wait "$pid" || fail "a request failed"
done

step "the network drops them, and the next pull succeeds"
mapfile -t ports < <(larder_connections established)
echo "${#ports[@]} idle connections"
((${#ports[@]} >= 2)) || fail "larder keeps ${#ports[@]} idle connections"
for port in "${ports[@]}"; do
  far iptables -w -I INPUT -p tcp --sport "$port" -j REJECT --reject-with tcp-reset
done
pull late
cache_is_sound
larder_stop
