# Proves pulls over a bad link between larder and its registry, and nothing else bad: packets are lost (and delayed, where
# the kernel can), and each connection is reset after some hundred kilobytes. Skopeos pull several images at a time, their
# bytes are right, and the registry sends little more than the images' size. Idle connections that the network has
# forgotten cost nobody a pull.
# shellcheck shell=bash source=../lib.sh

# In a network namespace of its own, which ends with it.
if [[ -z ${E2E_NAMESPACE:-} ]] && unshare --net true; then
  E2E_NAMESPACE=own exec unshare --net bash "${BASH_SOURCE[0]}"
fi
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
[[ -n ${E2E_NAMESPACE:-} ]] || skip "there are no network namespaces here"

readonly IMAGES=4 LAYERS=3 LAYER_BYTES=1200000
readonly LOSS_PERCENT=3
# Each connection is reset when it has carried so much: no layer comes over one.
readonly RESET_AFTER_BYTES=500000
# What a socket holds is lost with its connection, and is to be little beside a layer.
readonly SEND_BUFFER_BYTES=65536
# What may leave the registry in all, of what the images have: with packets' heads, what was lost and was sent once more, and
# what was on its way when a connection was reset.
readonly SENT_PERCENT_MAX=135
# Idle connections that are forgotten: more than a request that is repeated once would get past.
readonly FORGOTTEN=4
# The addresses that are kept for documents (RFC 5737): there is nobody else in this network.
readonly NEAR=192.0.2.1 FAR=192.0.2.2

# ---- Images ------------------------------------------------------------------------------------------------------------

# An image in a directory as skopeo keeps it, of layers that no other has.
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

step "$IMAGES images of $LAYERS layers each, pushed while all is well"
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

# The registry again, in a namespace of its own, at the other end of a cable.
step "the registry moves to the other end of a bad link"
sed -i "s/addr: \"127.0.0.1:/addr: \"0.0.0.0:/" "$CASE_DIR/registry.yml"
start_server registry unshare --net env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/registry.yml"
has_moved() { [[ $(readlink "/proc/${SERVER_PID[registry]}/ns/net") != "$(readlink /proc/self/ns/net)" ]]; }
wait_for_server registry has_moved
far() { nsenter --net --target "${SERVER_PID[registry]}" "$@"; }
ip link add near type veth peer name far netns "${SERVER_PID[registry]}" || skip "the kernel offers no veth"
# Packets are as large as on a network, and not as large as a machine can pass to itself.
ip addr add "$NEAR/30" dev near
ip link set near up gso_max_segs 1
far ip addr add "$FAR/30" dev far
far ip link set far up gso_max_segs 1
far sh -c "echo 4096 $((SEND_BUFFER_BYTES / 4)) $SEND_BUFFER_BYTES >/proc/sys/net/ipv4/tcp_wmem"
wait_for_server registry curl -fsS --max-time 2 "http://$FAR:$REGISTRY_PORT/v2/"

# Loses packets of both directions where they arrive.
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
# Docker-registry's log does not tell of what broke off, so packets are counted.
far iptables -w -A OUTPUT -p tcp --sport "$REGISTRY_PORT" -j ACCEPT
# Packets (1) or bytes (2) that the rules of a chain with a target have met at the far end.
met() { # CHAIN TARGET COLUMN
  far iptables -w -nvxL "$1" | awk -v target="$2" -v column="$3" '$3 == target { sum += $column } END { print sum + 0 }'
}

# ---- Pulls over it -----------------------------------------------------------------------------------------------------

cat >"$CASE_DIR/larder.yaml" <<YAML
registries:
  - name: bad.test
    endpoints: ["http://$FAR:$REGISTRY_PORT"]
YAML
larder_start
# Through larder, and compared with what was pushed.
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

step "all images at once"
mapfile -t all < <(seq 1 "$IMAGES")
before=$(met OUTPUT ACCEPT 2)
pull_at_once "${all[@]}"
sent=$(($(met OUTPUT ACCEPT 2) - before))

step "the link was as bad as it was meant to be, and what came was gone on with"
resets=$(met INPUT REJECT 1)
resumed=$(larder_lines '\[WARN\] .*; going on after [1-9][0-9]* bytes')
size=$(find "${all[@]/#/$CASE_DIR/image-}" -type f ! -name version -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
echo "sent $sent bytes for $size ($((sent * 100 / size)) %), $resets resets, went on $resumed times"
((resets > 0)) || fail "no connection was reset"
((resumed >= IMAGES * LAYERS)) || fail "only $resumed downloads were gone on with"
((sent > size)) || fail "only $sent bytes were counted for images of $size"
((sent * 100 <= size * SENT_PERCENT_MAX)) || fail "the registry sent $sent bytes for images of $size"

# ---- Connections that the network forgets ------------------------------------------------------------------------------

# What a router does that has restarted, or lost patience with who says nothing: the next packet is answered by a reset.
larder_connections() { ss -Htn state "$1" dst "$FAR" | awk '{ sub(/.*:/, "", $3); print $3 }'; }
as_many_begin() { (($(larder_connections syn-sent | wc -l) >= FORGOTTEN)); }
larder_stop
larder_start
step "$FORGOTTEN requests at once, so that as many connections idle after them"
far iptables -w -I OUTPUT -p tcp --sport "$REGISTRY_PORT" -j DROP
pids=()
for ((n = 1; n <= FORGOTTEN; n++)); do
  curl -fsS --max-time "$GIVE_UP_LIMIT" -o /dev/null "$LARDER_URL/v2/bad.test/bad/idle-$n/manifests/v1" &
  pids+=($!)
done
wait_until 4 "$FORGOTTEN connections on their way" as_many_begin
far iptables -w -D OUTPUT -p tcp --sport "$REGISTRY_PORT" -j DROP
for pid in "${pids[@]}"; do
  wait "$pid" || fail "a request failed"
done

step "the network forgets them, and nobody notices"
mapfile -t ports < <(larder_connections established)
echo "${#ports[@]} idle connections"
((${#ports[@]} >= 2)) || fail "larder keeps ${#ports[@]} idle connections"
for port in "${ports[@]}"; do
  far iptables -w -I INPUT -p tcp --sport "$port" -j REJECT --reject-with tcp-reset
done
pull late
cache_is_sound
larder_stop
