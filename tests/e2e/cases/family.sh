# Proves what several Larders promise together, on hosts (network namespaces) with a bridge between them. Three members of a
# group (peers), found by DNS or listed, download an image once while 300 clients pull it. If the member that downloads a layer
# is killed, frozen, cut off or behind a slow link in the middle of it, the clients of the others get the right bytes without an
# error, and the registry sends them only the missing bytes. Tags that come from a member with a wrong clock are as fresh as
# configured. No pull fails twice while the members restart one after another. A chain of three (parents) downloads once, and
# two Larders that are each other's parent serve their clients.
# shellcheck shell=bash source=../lib.sh

# Runs in its own network namespace, which is the host of the registry, and in its own mount namespace.
if [[ -z ${E2E_NAMESPACE:-} ]] && unshare --net --mount true; then
  E2E_NAMESPACE=own exec unshare --net --mount bash "${BASH_SOURCE[0]}"
fi
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
[[ -n ${E2E_NAMESPACE:-} ]] || skip "this machine has no network namespaces"

readonly MEMBERS=(one two three)
# Addresses reserved for documentation (RFC 5737), in a network without other hosts.
readonly REGISTRY_HOST=192.0.2.1
declare -rA ADDRESS=([clients]=192.0.2.2 [one]=192.0.2.11 [two]=192.0.2.12 [three]=192.0.2.13)
readonly PORT=8080
# The registry sends this much per second and connection, so that a layer takes some seconds.
readonly RATE=1m
# Smaller than 8 MiB, so that one connection receives it.
readonly LAYER_BYTES=3500000
# Bytes in buffers are lost with a connection, so buffers are small compared to a layer.
readonly BUFFER_BYTES=65536
# More than the bytes in buffers, the requests for the manifest and the config, and retransmissions.
readonly SLACK_BYTES=700000
# In percent, for the headers of packets.
readonly HEADERS_PERCENT=8
readonly CLIENTS=100 FEWER_CLIENTS=5
# A slow link that also loses packets, which delays those that follow. Not every kernel has netem.
readonly SLOW_RATE=4mbit SLOW_LOSS=0.02
# For a group of clients: many times what the slowest one takes.
readonly PULL_LIMIT=150
PULLER="$(dirname -- "${BASH_SOURCE[0]}")/../family.py"
readonly PULLER

# ---- Hosts ---------------------------------------------------------------------------------------------------------------

# Runs a command on a host.
on() { # HOST COMMAND…
  nsenter --net="/proc/${SERVER_PID[host-$1]}/ns/net" "${@:2}"
}

host_is_there() { # HOST
  [[ $(readlink "/proc/${SERVER_PID[host-$1]}/ns/net") != "$(readlink /proc/self/ns/net)" ]]
}

# The namespace exists as long as its process. Its link has the name of the host at the bridge, and `eth0` on the host.
host_add() { # HOST
  start_server "host-$1" unshare --net sleep infinity
  wait_for_server "host-$1" host_is_there "$1"
  ip link add name "$1" type veth peer name eth0 netns "${SERVER_PID[host-$1]}" || skip "the kernel offers no veth"
  ip link set dev "$1" up master bridge
  on "$1" ip link set lo up
  on "$1" ip link set eth0 up
  on "$1" ip addr add "${ADDRESS[$1]}/24" dev eth0
  [[ $1 == clients ]] || on "$1" sh -c "echo 4096 $BUFFER_BYTES $BUFFER_BYTES >/proc/sys/net/ipv4/tcp_rmem"
}

step "a registry, three hosts for larders, and one for clients"
# The usual packets of loopback are as large as the buffers below.
ip link set lo up mtu 1500
ip link add name bridge type bridge || skip "the kernel offers no bridges"
ip addr add "$REGISTRY_HOST/24" dev bridge
ip link set dev bridge up
for host in clients "${MEMBERS[@]}"; do host_add "$host"; done
echo "4096 $((BUFFER_BYTES / 4)) $BUFFER_BYTES" >/proc/sys/net/ipv4/tcp_wmem
# The log of nginx shows responses when they end, so iptables counts packets to each member.
for host in "${MEMBERS[@]}"; do
  iptables -w -A OUTPUT -p tcp --sport "$PORT" -d "${ADDRESS[$host]}" -j ACCEPT || skip "the kernel does not offer iptables"
done

# ---- The registry --------------------------------------------------------------------------------------------------------

# In memory, because pushing many images to a busy disk takes longer than the rest of the case.
mkdir -p "$CASE_DIR/storage"
mount -t tmpfs -o size=256m tmpfs "$CASE_DIR/storage"
registry_start "$CASE_DIR/storage"
nginx_start link "log_format family '\$remote_addr \$request_method \$uri \$status \$body_bytes_sent \"\$http_range\"';
  server {
    listen $REGISTRY_HOST:$PORT;
    access_log $LOGS/requests.log family;
    location / {
      proxy_pass http://127.0.0.1:$REGISTRY_PORT;
      proxy_http_version 1.1;
      proxy_max_temp_file_size 0;
      limit_rate $RATE;
    }
  }" curl -fsS --max-time 2 "http://$REGISTRY_HOST:$PORT/v2/"

# Sets LAYERS to the digests of the layers of the last image.
push() { # LAYERS BYTES IMAGE…
  mapfile -t LAYERS < <(python3 "$PULLER" push --registry "127.0.0.1:$REGISTRY_PORT" --layers "$1" --bytes "$2" "${@:3}")
  ((${#LAYERS[@]} == $1)) || fail "not pushed: ${*:3}"
}
# Prints the bytes that the registry has sent to a member, with the headers of packets.
sent_to() { # MEMBER
  iptables -w -nvxL OUTPUT | awk -v to="${ADDRESS[$1]}" '$9 == to { print $2 }'
}
sent() { echo $(($(sent_to one) + $(sent_to two) + $(sent_to three))); }
# Prints the logged requests since the start of the scenario that match REGEX.
requests() { # REGEX
  tail -n "+$((LOGGED + 1))" "$LOGS/requests.log" | grep -E -- "$1" || true
}

# ---- The members ---------------------------------------------------------------------------------------------------------

LISTED="peers: {urls: [$(printf "\"http://%s:$PORT\", " "${ADDRESS[one]}" "${ADDRESS[two]}" "${ADDRESS[three]}")]}"
readonly LISTED
{
  echo "127.0.0.1 localhost"
  for host in "${MEMBERS[@]}"; do echo "${ADDRESS[$host]} larders.test"; done
} >"$CASE_DIR/hosts"

member_is_up() { curl -fsS --max-time 2 "http://${ADDRESS[$1]}:$PORT/v2/"; } # MEMBER

# How far the clock of a member is wrong, if it is: +1h.
declare -A CLOCK=()

# Starts a member with its cache directory, and with the addresses of larders.test.
member_start() { # MEMBER SETTINGS
  local clock=()
  # As faketime does, which would fork. The dynamic linker expands $LIB.
  # shellcheck disable=SC2016
  [[ -z ${CLOCK[$1]:-} ]] ||
    clock=(env 'LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1' "FAKETIME=${CLOCK[$1]}" FAKETIME_DONT_FAKE_MONOTONIC=1)
  cat >"$CASE_DIR/$1.yaml" <<YAML
tagTtl: $TAG_TTL
registries:
  - {name: reg.test, endpoints: ["http://$REGISTRY_HOST:$PORT"]}
$2
YAML
  # shellcheck disable=SC2016  # expanded by the inner shell
  start_server "$1" nsenter --net="/proc/${SERVER_PID[host-$1]}/ns/net" unshare --mount \
    sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$CASE_DIR/hosts" "${clock[@]}" "${OFFLINE[@]}" RUST_BACKTRACE=1 \
    "$E2E_LARDER" --config-file "$CASE_DIR/$1.yaml" --image-path "$CASE_DIR/cache-$1" --log-level info \
    serve --host 0.0.0.0 --port "$PORT"
}

# Starts the members with empty caches, and with the same settings or each with its own. All counts begin here.
group_start() { # SETTINGS…
  local host settings=("$@")
  for host in "${MEMBERS[@]}"; do
    stop_server "$host" KILL
    rm -rf -- "$CASE_DIR/cache-$host"
    member_start "$host" "${settings[0]}"
    ((${#settings[@]} == 1)) || settings=("${settings[@]:1}")
  done
  for host in "${MEMBERS[@]}"; do wait_for_server "$host" member_is_up "$host"; done
  LOGGED=$(wc -l <"$LOGS/requests.log")
  iptables -w -Z OUTPUT
}

caches_are_sound() {
  local file
  while IFS= read -r file; do
    equal "the content of $file" "${file##*/}" "$(sha256sum -- "$file" | cut -d ' ' -f 1)"
  done < <(find "$CASE_DIR"/cache-*/blobs/sha256 -type f 2>/dev/null)
}

# ---- Clients -------------------------------------------------------------------------------------------------------------

# Starts clients of a member, on their own host.
clients_start() { # MEMBER CLIENTS IMAGE…
  start_server "clients-$1" nsenter --net="/proc/${SERVER_PID[host-clients]}/ns/net" timeout "$PULL_LIMIT" \
    python3 "$PULLER" pull --hosts "${ADDRESS[$1]}:$PORT" --clients "$2" "${@:3}"
}
# Waits for the clients of a member, of which none may have failed.
clients_succeed() { # MEMBER
  local pid=${SERVER_PID[clients-$1]}
  wait "$pid" || fail "clients of $1: $(tail -n 3 "$LOGS/clients-$1.log")"
  unset "SERVER_PID[clients-$1]"
  echo "clients of $1: $(tail -n 1 "$LOGS/clients-$1.log")"
}
pull_through() { # MEMBER IMAGE…
  clients_start "$1" 1 "${@:2}"
  clients_succeed "$1"
}

# ---- A cold image, and members that DNS finds ----------------------------------------------------------------------------

step "three members that DNS finds, with $CLIENTS clients each: the registry sends every blob once"
push 3 1500000 family/all:v1
group_start "peers: {dns: larders.test, port: $PORT}"
for host in "${MEMBERS[@]}"; do wait_until 10 "three members at $host" grep -q 'peers: the members have changed count=3' "$LOGS/$host.log"; done
for host in "${MEMBERS[@]}"; do clients_start "$host" "$CLIENTS" reg.test/family/all:v1; done
for host in "${MEMBERS[@]}"; do clients_succeed "$host"; done
equal "requests for a blob that was requested before" "" "$(requests ' GET /v2/family/all/blobs/' | cut -d ' ' -f 3 | sort | uniq -d)"
equal "blobs" 4 "$(requests ' GET /v2/family/all/blobs/' | wc -l)"
for layer in "${LAYERS[@]}"; do
  equal "the requests for $layer" "200 1500000" "$(requests " GET .*/$layer " | cut -d ' ' -f 4-5)"
done
for host in "${MEMBERS[@]}"; do echo "bytes sent to $host: $(sent_to "$host")"; done
caches_are_sound

# ---- Faults in the middle of a layer -------------------------------------------------------------------------------------

# Sets RESPONSIBLE to the member to which the registry has sent half of the layer.
half_is_sent() {
  local host
  for host in "${MEMBERS[@]}"; do
    if (($(sent_to "$host") > LAYER_BYTES / 2)); then
      RESPONSIBLE=$host
      return
    fi
  done
  return 1
}
# Clients of all three begin to pull an image with one layer, of which half is sent. Sets OTHERS to the members that get it from
# RESPONSIBLE.
half_a_pull() { # NAME
  local host
  push 1 "$LAYER_BYTES" "family/$1:v1"
  group_start "$LISTED"
  for host in "${MEMBERS[@]}"; do
    stop_server "clients-$host"
    clients_start "$host" "$FEWER_CLIENTS" "reg.test/family/$1:v1"
  done
  wait_until 20 "half of the layer" half_is_sent
  OTHERS=()
  for host in "${MEMBERS[@]}"; do [[ $host == "$RESPONSIBLE" ]] || OTHERS+=("$host"); done
}
others_succeed() {
  local host
  for host in "${OTHERS[@]}"; do clients_succeed "$host"; done
}
# Checks what the registry has sent. BYTES is without headers of packets.
sent_at_most() { # BYTES
  local bytes
  bytes=$(sent)
  echo "bytes sent: $bytes for a layer of $LAYER_BYTES, at most $1"
  ((bytes <= $1 * (100 + HEADERS_PERCENT) / 100 + SLACK_BYTES)) || fail "the registry sent $bytes bytes"
}
# One of the others has requested the layer, from the byte on at which it stopped.
missing_bytes_were_requested() {
  local lines
  lines=$(requests "^($(address_of "${OTHERS[0]}")|$(address_of "${OTHERS[1]}")) GET .*/${LAYERS[0]} ")
  echo "requests of the others: ${lines:-none}"
  matches "the request for the missing bytes" '^[^ ]+ GET [^ ]+ 206 [0-9]+ "bytes=[1-9][0-9]*-[0-9]*"$' "$lines"
}
address_of() { printf '%s\n' "${ADDRESS[$1]//./\\.}"; } # MEMBER

step "the responsible member is killed"
half_a_pull killed
stop_server "$RESPONSIBLE" KILL
others_succeed
sent_at_most "$LAYER_BYTES"
missing_bytes_were_requested
caches_are_sound

step "the responsible member freezes, and continues later"
half_a_pull frozen
kill -s STOP "${SERVER_PID[$RESPONSIBLE]}"
others_succeed
sent_at_most "$LAYER_BYTES"
missing_bytes_were_requested
kill -s CONT "${SERVER_PID[$RESPONSIBLE]}"
clients_succeed "$RESPONSIBLE"
caches_are_sound

step "the responsible member loses its link"
half_a_pull unplugged
on "$RESPONSIBLE" ip link set eth0 down
others_succeed
sent_at_most "$LAYER_BYTES"
missing_bytes_were_requested
stop_server "clients-$RESPONSIBLE"
on "$RESPONSIBLE" ip link set eth0 up
caches_are_sound

step "packets between the responsible member and the others are dropped: it continues, and the others download the rest once"
half_a_pull partitioned
for host in "${OTHERS[@]}"; do
  on "$RESPONSIBLE" iptables -w -A INPUT -s "${ADDRESS[$host]}" -j DROP
  on "$RESPONSIBLE" iptables -w -A OUTPUT -d "${ADDRESS[$host]}" -j DROP
done
others_succeed
clients_succeed "$RESPONSIBLE"
sent_at_most "$((LAYER_BYTES + LAYER_BYTES / 2))"
missing_bytes_were_requested
on "$RESPONSIBLE" iptables -w -F
caches_are_sound

step "the link of the responsible member becomes slow, in both directions"
half_a_pull slow
# They would use the same link.
stop_server "clients-$RESPONSIBLE"
tc qdisc add dev "$RESPONSIBLE" root tbf rate "$SLOW_RATE" burst 16kb latency 200ms || skip "the kernel does not offer tbf"
on "$RESPONSIBLE" tc qdisc add dev eth0 root tbf rate "$SLOW_RATE" burst 16kb latency 200ms
on "$RESPONSIBLE" iptables -w -A INPUT -p tcp -m statistic --mode random --probability "$SLOW_LOSS" -j DROP
others_succeed
# The others may continue at the slow rate, or download the rest from the registry once.
sent_at_most "$((LAYER_BYTES + LAYER_BYTES / 2))"
tc qdisc del dev "$RESPONSIBLE" root
on "$RESPONSIBLE" tc qdisc del dev eth0 root
on "$RESPONSIBLE" iptables -w -F
caches_are_sound

# ---- Wrong clocks --------------------------------------------------------------------------------------------------------

readonly TAGS=24
push_tags() {
  push 1 1000 "family/clock:$(seq -s , -f 't%g' "$TAGS")"
}
# Prints the digest, age and warning of each tag from a member.
tags_from() { # MEMBER
  curl -fsS --max-time 20 -I -H "Accept: application/vnd.oci.image.manifest.v1+json" \
    "http://${ADDRESS[$1]}:$PORT/v2/reg.test/family/clock/manifests/t[1-$TAGS]" |
    tr -d '\r' | awk 'tolower($1) ~ /^(docker-content-digest|age|warning):$/ { print tolower($1), $2 }'
}
clock_is_off_by() { # MEMBER +HOURSh
  local now off hours=${2%h}
  now=$(date -u +%s)
  off=$(($(date -u -d "$(curl -fsSI --max-time 2 "http://${ADDRESS[$1]}:$PORT/v2/" | tr -d '\r' | sed -n 's/^date: //Ip')" +%s) - now))
  equal "the hours by which the clock of $1 is off" "${hours#+}" $(((off + 7200 + 1800) / 3600 - 2))
}
all_tags_are() { # DIGEST
  local host
  for host in "${MEMBERS[@]}"; do
    [[ $(tags_from "$host" | grep -cF "docker-content-digest: $1") == "$TAGS" ]] || return 1
  done
}

step "one clock is an hour ahead, one an hour behind: $TAGS tags have the right age at all members"
if [[ $(ldd "$E2E_LARDER" 2>/dev/null) == *libc.so* ]]; then CLOCK=([one]=+1h [two]=-1h); else echo "a static larder always has the right clock"; fi
push_tags
group_start "$LISTED"
clock_is_off_by one "${CLOCK[one]:-0}"
clock_is_off_by two "${CLOCK[two]:-0}"
# An age that depends on both clocks would be an hour, or 0.
for host in three two one three; do
  tags=$(tags_from "$host")
  equal "tags at $host" "$TAGS" "$(grep -c '^docker-content-digest:' <<<"$tags")"
  equal "ages of tags at $host" "$TAGS" "$(grep -cE '^age: [1-8]?[0-9]?[0-9]$' <<<"$tags")"
  equal "warnings at $host" 0 "$(grep -c '^warning:' <<<"$tags" || true)"
done
# Each tag comes from the member that is responsible for it, and is fresh at all of them.
equal "tags that the registry was asked for twice" "" "$(requests ' HEAD .*/manifests/t' | cut -d ' ' -f 3 | sort | uniq -d)"
for host in "${MEMBERS[@]}"; do
  matches "requests of $host for tags" '[1-9]' "$(requests "^$(address_of "$host") [A-Z]* .*/manifests/t" | wc -l)"
done

step "all tags move: all members have the new image after tagTtl"
TAG_TTL=1s
for host in "${MEMBERS[@]}"; do
  stop_server "$host"
  member_start "$host" "$LISTED"
done
for host in "${MEMBERS[@]}"; do wait_for_server "$host" member_is_up "$host"; done
push_tags
moved=$(curl -fsSI --max-time 5 -H "Accept: application/vnd.oci.image.manifest.v1+json" \
  "http://127.0.0.1:$REGISTRY_PORT/v2/family/clock/manifests/t1" | tr -d '\r' | sed -n 's/^docker-content-digest: //Ip')
wait_until 20 "the moved tags" all_tags_are "$moved"
TAG_TTL=5m
CLOCK=()

# ---- Restarts ------------------------------------------------------------------------------------------------------------

readonly ROLLED=24
step "the members restart one after another while clients pull $ROLLED images: no pull fails twice"
mapfile -t images < <(seq -f 'family/rolled-%g:v1' "$ROLLED")
push 1 2000000 "${images[@]}"
group_start "$LISTED"
start_server clients nsenter --net="/proc/${SERVER_PID[host-clients]}/ns/net" timeout "$PULL_LIMIT" python3 "$PULLER" pull \
  --hosts "${ADDRESS[one]}:$PORT,${ADDRESS[two]}:$PORT,${ADDRESS[three]}:$PORT" --clients 12 --retry \
  --until "$CASE_DIR/tmp/rolled" "${images[@]/#/reg.test/}"
served() { grep -cE " GET:/v2/reg.test/.*/blobs/.* status=200 .* ip=${ADDRESS[clients]} " "$LOGS/$1.log" || true; } # MEMBER
served_more() { (($(served "$1") > $2)); } # MEMBER COUNT
for host in "${MEMBERS[@]}"; do
  before=$(served "$host")
  wait_until 20 "pulls through $host" served_more "$host" "$before"
  stop_server "$host"
  equal "the exit status of $host after SIGTERM" 0 "$STOPPED_WITH"
  member_start "$host" "$LISTED"
  wait_for_server "$host" member_is_up "$host"
  before=$(served "$host")
  wait_until 20 "pulls through $host after its restart" served_more "$host" "$before"
done
touch "$CASE_DIR/tmp/rolled"
wait "${SERVER_PID[clients]}" || fail "clients: $(tail -n 5 "$LOGS/clients.log")"
unset "SERVER_PID[clients]"
tail -n 4 "$LOGS/clients.log"
echo "bytes sent: $(sent) for $((ROLLED * 2000000))"
caches_are_sound

# ---- Parents -------------------------------------------------------------------------------------------------------------

parent() { echo "parents: [\"http://${ADDRESS[$1]}:$PORT\"]"; } # MEMBER
# The registry has sent the layers of the last image once.
sent_once() { # NAME BYTES
  equal "requests for layers" "${#LAYERS[@]}" "$(requests " GET /v2/family/$1/blobs/" | grep -c " $2 ")"
}

step "a chain of three: only its head contacts the registry, which sends every layer once"
push 2 2000000 family/chain:v1
group_start "" "$(parent one)" "$(parent two)"
for host in three one; do clients_start "$host" "$FEWER_CLIENTS" reg.test/family/chain:v1; done
for host in three one; do clients_succeed "$host"; done
sent_once chain 2000000
equal "requests of members with a parent" "" "$(requests "^($(address_of two)|$(address_of three)) ")"

# If both ask each other at the same moment, both get 508 and ask the registry. A parent prefetches layers, so a pull through one
# of them is enough for that.
step "two that are each other's parent: both serve, and each requests a layer at most once"
push 2 2000000 family/ring:v1
group_start "$(parent two)" "$(parent one)" ""
clients_start one "$FEWER_CLIENTS" reg.test/family/ring:v1
clients_succeed one
clients_start two "$FEWER_CLIENTS" reg.test/family/ring:v1
clients_succeed two
requests " GET /v2/family/ring/blobs/"
equal "blobs that a member requested twice" "" "$(requests ' GET /v2/family/ring/blobs/' | cut -d ' ' -f 1-3 | sort | uniq -d)"

step "both begin at the same time"
push 2 2000000 family/both:v1
for host in one two; do clients_start "$host" "$FEWER_CLIENTS" reg.test/family/both:v1; done
for host in one two; do clients_succeed "$host"; done
equal "blobs that a member requested twice" "" "$(requests ' GET /v2/family/both/blobs/' | cut -d ' ' -f 1-3 | sort | uniq -d)"
caches_are_sound
for host in one two three; do
  stop_server "$host"
  equal "the exit status of $host after SIGTERM" 0 "$STOPPED_WITH"
done
