# Proves `access: client` with real clients and registries: docker-registry with passwords, one user for each part of it, and
# docker-registry with a token server. skopeo, podman, Docker, crane, oras, regctl and containerd (two versions, with the CRI and
# with ctr) pull with the right credentials, not with others, and from an open registry without any. Permissions count while
# the registry is down, a changed password takes effect, guessing is limited, a thousand logins need little memory, credentials
# go to no other registry, and no password is in the log or the cache.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
trap stop_nodes EXIT

need_tool crane
CRANE=$TOOL
need_tool oras
ORAS=$TOOL
need_tool regctl
REGCTL=$TOOL
need_tool crictl
readonly CRANE ORAS REGCTL DEBIAN_PATH=$PATH
need_containerd

# A user of each part of the registry, and a wrong password of the first one.
readonly ANN='ann:right-h0rse battery' BOB='bob:other-h0rse staple' WRONG='ann:wr0ng-h0rse battery'
readonly ANN_NEW='ann:new-h0rse battery'
readonly PULLERS=1000 PULLER_PASSWORD='each-h0rse clip'
# A connection and its buffers for each login would need 270 KiB each. Larder keeps some of them.
readonly GROWTH_KIB_MAX=$((40 * 1024))
LOG_LEVEL=debug

# ---- The registries ----------------------------------------------------------------------------------------------------

readonly STORAGE="$CASE_DIR/storage"
accounts() { # NAME USER:PASSWORD…
  local login
  for login in "${@:2}"; do htpasswd -bBn -C 4 "${login%%:*}" "${login#*:}"; done | sed '/^$/d' >"$CASE_DIR/$1.new"
  # All with one hash, because each one takes a while.
  [[ $1 != team-a ]] || htpasswd -bBn -C 4 puller "$PULLER_PASSWORD" | awk -F : -v count="$PULLERS" \
    'NF { for (n = 1; n <= count; n++) print "puller-" n ":" $2 }' >>"$CASE_DIR/$1.new"
  # With another time than before, which is what docker-registry looks at.
  mv "$CASE_DIR/$1.new" "$CASE_DIR/$1.htpasswd"
}
declare -A PORT_OF
# Succeeds if the registry answers that it requires credentials.
wants_login() { # PORT
  [[ $(curl -sS --max-time 2 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$1/v2/") == 401 ]]
}
protected_start() { # NAME AUTH
  PORT_OF[$1]=${PORT_OF[$1]:-$(free_port)}
  cat >"$CASE_DIR/$1.yml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $STORAGE}}
http: {addr: "127.0.0.1:${PORT_OF[$1]}", secret: e2e}
auth: {$2}
YAML
  start_server "$1" env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/$1.yml"
  wait_for_server "$1" wants_login "${PORT_OF[$1]}"
}
team_start() { protected_start "$1" "htpasswd: {realm: $1, path: $CASE_DIR/$1.htpasswd}"; }

step "start the registries: two with passwords behind one address, one with tokens, and an open one"
accounts team-a "$ANN"
accounts team-b "$BOB"
team_start team-a
team_start team-b
readonly TOKENS="$CASE_DIR/tokens"
mkdir -p "$TOKENS"
openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 2 -subj '/CN=e2e-tokens' \
  -keyout "$TOKENS/key.pem" -out "$TOKENS/cert.pem" 2>/dev/null
printf '%s\n' "$ANN:team-a/app" "$BOB:team-b/app" >"$TOKENS/users"
echo 300 >"$TOKENS/life"
TOKEN_PORT=$(free_port)
readonly REALM="http://127.0.0.1:$TOKEN_PORT/token"
start_server tokens python3 "${BASH_SOURCE[0]%/*}/../token-server.py" "$TOKEN_PORT" "$TOKENS/key.pem" "$TOKENS/cert.pem" "$TOKENS"
wait_for_server tokens curl -fsS --max-time 2 -u "$ANN" "$REALM?service=e2e"
protected_start by-token "token: {realm: \"$REALM\", service: e2e, issuer: e2e-tokens, rootcertbundle: $TOKENS/cert.pem}"
registry_start
FRONT_PORT=$(free_port) OPEN_PORT=$(free_port)
# The log tells who asked for what.
front_start() {
  nginx_start front "log_format logins '\$status \$request_method \$uri <\$remote_user>';
  log_format headers '\$status \$request_method \$uri <\$http_authorization>';
  server {
    listen 127.0.0.1:$FRONT_PORT;
    access_log $LOGS/front.log logins;
    proxy_set_header Host \$http_host;
    location / { proxy_pass http://127.0.0.1:${PORT_OF[team-a]}; }
    location /v2/team-b/ { proxy_pass http://127.0.0.1:${PORT_OF[team-b]}; }
  }
  server {
    listen 127.0.0.1:$OPEN_PORT;
    access_log $LOGS/open.log headers;
    location / { proxy_pass http://127.0.0.1:$REGISTRY_PORT; }
  }" wants_login "$FRONT_PORT"
}
front_start
asked() { grep -cE "$1" "$LOGS/front.log" || true; } # REGEX

# ---- Two images that share a layer ---------------------------------------------------------------------------------------

readonly OCI=application/vnd.oci.image
declare -A DIGEST_OF LAYER_OF
# Pushes an image of a layer of its own and of the shared one.
push() { # TEAM LOGIN
  local layout="$CASE_DIR/layout-$1" name layers=()
  mkdir -p "$layout/blobs/sha256" "$CASE_DIR/files"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  for name in shared "$1"; do
    head -c 100000 /dev/zero | openssl enc -aes-128-ctr -pass "pass:$name" -nosalt -md sha256 2>/dev/null >"$CASE_DIR/files/$name"
    layers+=("$(tar -C "$CASE_DIR/files" --owner=0 --group=0 --mtime=@0 -cf - "$name" | blob_of "$layout" "$OCI.layer.v1.tar")")
    LAYER_OF[$name]=$(jq -r .digest <<<"${layers[-1]}")
  done
  local config manifest
  config=$(jq -s '{architecture: "amd64", os: "linux", config: {}, rootfs: {type: "layers", diff_ids: map(.digest)}}' \
    <<<"${layers[*]}" | blob_of "$layout" "$OCI.config.v1+json")
  manifest=$(jq -s --argjson config "$config" --arg type "$OCI.manifest.v1+json" \
    '{schemaVersion: 2, mediaType: $type, config: $config, layers: .}' <<<"${layers[*]}" | blob_of "$layout" "$OCI.manifest.v1+json")
  jq -n --argjson manifest "$manifest" '{schemaVersion: 2, manifests: [$manifest]}' >"$layout/index.json"
  DIGEST_OF[$1]=$(jq -r .digest <<<"$manifest")
  skopeo_ copy --quiet --preserve-digests --dest-tls-verify=false --dest-creds "$2" "oci:$layout" \
    "docker://127.0.0.1:${PORT_OF[$1]}/$1/app:v1"
}
push team-a "$ANN"
push team-b "$BOB"
equal "copies of the shared layer in the registry" 1 "$(find "$STORAGE" -path "*/blobs/*/${LAYER_OF[shared]#sha256:}/data" | wc -l)"

# ---- Larder ------------------------------------------------------------------------------------------------------------

# Refusals are kept for as long as the case runs, so that all clients together use two guesses.
configure() { # MORE
  cat >"$CASE_DIR/larder.yaml" <<YAML
registries:
  - {name: private.test, endpoints: ["http://127.0.0.1:$FRONT_PORT"], access: client}
  - {name: tokens.test, endpoints: ["http://127.0.0.1:${PORT_OF[by-token]}"], access: client}
  - {name: open.test, endpoints: ["http://127.0.0.1:$OPEN_PORT"]}
defaultNs: open.test
revalidateTimeout: 2s
$1
YAML
}
configure 'negativeTtl: 10m'
larder_start
readonly THROUGH="127.0.0.1:$LARDER_PORT"
readonly A=private.test/team-a/app B=private.test/team-b/app
ask() { # LOGIN PATH [CURL OPTION…]
  get "$LARDER_URL/v2/$2" ${1:+-u "$1"} -H "Accept: $OCI.manifest.v1+json" "${@:3}"
  cat -- "$HEAD_FILE" "$BODY_FILE" >>"$CASE_DIR/responses"
}
# Succeeds if the request is answered so.
gets() { # STATUS LOGIN PATH [CURL OPTION…]
  ask "${@:2}"
  [[ $STATUS == "$1" ]]
}
expect() { # STATUS LOGIN PATH [CURL OPTION…]
  ask "${@:2}"
  expect_status "${2%%:*} and $3" "$1"
}
permissions() { # [ARGUMENT…]
  "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" access "$@"
}

# ---- The clients ---------------------------------------------------------------------------------------------------------
# CLIENT_pull pulls an image completely, into an empty store, and prints its digest.

layout_digest() { jq -r '.manifests[0].digest' "$1/index.json"; } # LAYOUT

skopeo_pull() { # LOGIN IMAGE
  local who=(--src-no-creds)
  [[ -z $1 ]] || who=(--src-creds "$1")
  rm -rf "$CASE_DIR/skopeo"
  copy "$THROUGH/$2" skopeo "${who[@]}" && printf 'sha256:%s\n' "$(sha256sum <"$CASE_DIR/skopeo/manifest.json" | cut -d ' ' -f 1)"
}
podman_login() { # LOGIN
  echo '{}' >"$CASE_DIR/auth.json"
  [[ -z $1 ]] || podman_ login --tls-verify=false --authfile "$CASE_DIR/auth.json" --username "${1%%:*}" \
    --password "${1#*:}" "$THROUGH" >&2
}
podman_get() { # IMAGE [OPTION…]
  podman_ rmi --all --force >&2 &&
    podman_ pull --quiet --tls-verify=false --authfile "$CASE_DIR/auth.json" --signature-policy "$PODMAN_POLICY" \
      "${@:2}" "$1" >&2 &&
    podman_ image inspect --format '{{.Digest}}' "$1"
}
podman_pull() { podman_login "$1" && podman_get "$THROUGH/$2"; } # LOGIN IMAGE
docker_pull() { # LOGIN IMAGE
  docker_ logout "$THROUGH" >&2
  [[ -z $1 ]] || docker_ login --username "${1%%:*}" --password-stdin "$THROUGH" <<<"${1#*:}" >&2
  docker_ rmi "$THROUGH/$2" >/dev/null 2>&1 || true
  docker_ pull --quiet "$THROUGH/$2" >&2 &&
    docker_ image inspect --format '{{index .RepoDigests 0}}' "$THROUGH/$2" | cut -d @ -f 2
}
crane_pull() { # LOGIN IMAGE
  local -x DOCKER_CONFIG="$CASE_DIR/crane"
  rm -rf "$DOCKER_CONFIG" "$CASE_DIR/pulled"
  [[ -z $1 ]] || client "$CRANE" auth login "$THROUGH" --username "${1%%:*}" --password "${1#*:}" >&2
  client "$CRANE" --insecure pull --format oci "$THROUGH/$2" "$CASE_DIR/pulled" && layout_digest "$CASE_DIR/pulled"
}
oras_pull() { # LOGIN IMAGE
  local who=()
  [[ -z $1 ]] || who=(--from-username "${1%%:*}" --from-password "${1#*:}")
  rm -rf "$CASE_DIR/pulled"
  client "$ORAS" copy --no-tty --from-plain-http "${who[@]}" --to-oci-layout "$THROUGH/$2" "$CASE_DIR/pulled:v1" >&2 &&
    layout_digest "$CASE_DIR/pulled"
}
regctl_pull() { # LOGIN IMAGE
  local -x REGCTL_CONFIG="$CASE_DIR/regctl.json"
  printf '{"hosts":{"%s":{"tls":"disabled"}}}' "$THROUGH" >"$REGCTL_CONFIG"
  rm -rf "$CASE_DIR/pulled"
  [[ -z $1 ]] || client "$REGCTL" registry login "$THROUGH" --user "${1%%:*}" --pass-stdin <<<"${1#*:}" >&2
  client "$REGCTL" image copy "$THROUGH/$2" "ocidir://$CASE_DIR/pulled:v1" >&2 && layout_digest "$CASE_DIR/pulled"
}
NODE=
cri_pull() { # LOGIN IMAGE
  crictl_ "$NODE" rmi --all >&2 &&
    wait_until 20 "containerd drops the images' content" no_content k8s.io &&
    crictl_ "$NODE" pull ${1:+--creds "$1"} "$2" >&2 &&
    digest_on "$NODE" "$2"
}
node_ctr() { client ctr --address "$CASE_DIR/$NODE/c.sock" "$@"; }
no_content() { [[ -z $(node_ctr --namespace "$1" content ls -q) ]]; } # NAMESPACE
ctr_login_pull() { # LOGIN IMAGE
  local how images
  mapfile -t how < <(ctr_options pull --local --skip-metadata)
  mapfile -t images < <(node_ctr images ls -q)
  ((${#images[@]} == 0)) || node_ctr images rm --sync "${images[@]}" >&2
  wait_until 20 "containerd drops the content" no_content default &&
    node_ctr images pull "${how[@]}" --snapshotter native --hosts-dir "$CASE_DIR/$NODE/certs.d" ${1:+--user "$1"} "$2" >&2 &&
    node_ctr images ls "name==$2" | awk 'NR == 2 { print $3 }'
}

# Docker without credentials gives up after the refusal of `GET /v2/`.
refusals() { larder_lines ":/v2/([^ ]*team-a/app/manifests/v1[^ ]*)? status=401"; }
refused_more_than() { (($(refusals) > $1)); } # COUNT
# The pull fails, and larder has refused it.
is_refused() { # PULL LOGIN IMAGE
  local before
  before=$(refusals)
  must_fail "$1 of $3 by '${2%%:*}'" "$@"
  wait_until 5 "a refusal by larder in its log" refused_more_than "$before"
}
pulls() { # PULL TEAM LOGIN IMAGE
  equal "$1 of $4 by '${3%%:*}'" "${DIGEST_OF[$2]}" "$("$1" "$3" "$4")"
}
DIGEST_OF[open]=$HELLO_DIGEST
check() { # PULL
  step "$1: its own images, and an open registry"
  pulls "$1" team-a "$ANN" "$A:v1"
  pulls "$1" team-b "$BOB" "$B:v1"
  pulls "$1" team-a "$ANN" tokens.test/team-a/app:v1
  pulls "$1" open "" open.test/demo/hello:v1
  pulls "$1" open "$ANN" open.test/demo/hello:v1
  step "$1: not without credentials, with a wrong password, or with those of another user"
  is_refused "$1" "" "$A:v1"
  is_refused "$1" "$WRONG" "$A:v1"
  is_refused "$1" "$BOB" "$A:v1"
  is_refused "$1" "$BOB" tokens.test/team-a/app:v1
}

step "start Docker and two versions of containerd"
docker_start --bridge none --registry-mirror "$LARDER_URL"
node_start new registry.k8s.io/pause:3.9
with_new_path=$PATH
PATH=$DEBIAN_PATH
node_start debian registry.k8s.io/pause:3.9
readonly CLIENTS=(skopeo_pull podman_pull docker_pull crane_pull oras_pull regctl_pull)
for_all_clients() { # COMMAND…
  local pull
  for pull in "${CLIENTS[@]}"; do "$1" "$pull" "${@:2}"; done
  for NODE in new debian; do
    PATH=$DEBIAN_PATH
    [[ $NODE == debian ]] || PATH=$with_new_path
    for pull in cri_pull ctr_login_pull; do
      step "containerd: $NODE"
      "$1" "$pull" "${@:2}"
    done
  done
  PATH=$with_new_path
}
step "Docker needs no login for its mirror"
docker_ pull --quiet demo/hello:v1
matches "the image's digest" "@$HELLO_DIGEST" "$(docker_ image inspect --format '{{.RepoDigests}}' demo/hello:v1)"
for_all_clients check
equal "requests with credentials at the open registry" 0 "$(grep -cvE '<->$' "$LOGS/open.log" || true)"

step "podman sends no credentials of a registry to its mirror, but those of the mirror"
cat >"$CASE_DIR/registries.conf" <<TOML
[[registry]]
prefix = "private.test"
location = "private.test"
[[registry.mirror]]
location = "$THROUGH/private.test"
insecure = true
TOML
podman_mirror() { CONTAINERS_REGISTRIES_CONF="$CASE_DIR/registries.conf" podman_get "$A:v1" "$@"; } # [OPTION…]
# With ann's password larder would serve it.
podman_login ""
before=$(refusals)
must_fail "a pull with --creds" podman_mirror --creds "$ANN"
jq -n --arg login "$(printf %s "$ANN" | base64 -w 0)" '{auths: {"private.test": {auth: $login}}}' >"$CASE_DIR/auth.json"
must_fail "a pull with a login for the registry" podman_mirror
wait_until 5 "two refusals" refused_more_than $((before + 1))
podman_login "$ANN"
equal "the digest with a login for the mirror" "${DIGEST_OF[team-a]}" "$(podman_mirror)"
jq -n --arg through "$THROUGH" --arg ann "$(printf %s "$ANN" | base64 -w 0)" --arg bob "$(printf %s "$BOB" | base64 -w 0)" \
  '{auths: {"\($through)/tokens.test": {auth: $bob}, "\($through)/private.test": {auth: $ann}}}' >"$CASE_DIR/auth.json"
equal "the digest with a login for each registry behind the mirror" "${DIGEST_OF[team-a]}" "$(podman_mirror)"

# ---- Blobs ---------------------------------------------------------------------------------------------------------------

step "the layer that both images share is in both repositories, the others are not"
expect 200 "$ANN" "$A/blobs/${LAYER_OF[shared]}"
expect 200 "$BOB" "$B/blobs/${LAYER_OF[shared]}"
expect 404 "$BOB" "$B/blobs/${LAYER_OF[team-a]}"
expect 401 "$BOB" "$A/blobs/${LAYER_OF[team-a]}"
expect 401 "$BOB" "$A/blobs/${LAYER_OF[shared]}"
expect 401 "" "$A/blobs/${LAYER_OF[shared]}"
expect 401 "" "$A/manifests/${DIGEST_OF[team-a]}"
expect 401 "$BOB" "$A/tags/list"
expect 200 "$ANN" "$A/tags/list"
expect 404 "" "open.test/demo/hello/blobs/${LAYER_OF[team-a]}"

# ---- Many logins ---------------------------------------------------------------------------------------------------------

memory_kib() { awk '/^VmRSS:/ { print $2 }' "/proc/${SERVER_PID[larder]}/status"; }
step "$PULLERS logins"
memory=$(memory_kib)
python3 - "$LARDER_PORT" "$A" "$PULLERS" "$PULLER_PASSWORD" >"$CASE_DIR/statuses" <<'PYTHON'
import base64, collections, http.client, sys
port, repository, count, password = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
larder, statuses = http.client.HTTPConnection("127.0.0.1", port), collections.Counter()
for number in range(1, count + 1):
    login = base64.b64encode(f"puller-{number}:{password}".encode()).decode()
    larder.request("HEAD", f"/v2/{repository}/manifests/v1", headers={"Authorization": f"Basic {login}"})
    response = larder.getresponse()
    response.read()
    statuses[response.status] += 1
print(dict(statuses))
PYTHON
equal "the responses by status" "{200: $PULLERS}" "$(<"$CASE_DIR/statuses")"
growth=$(($(memory_kib) - memory))
step "memory grew by $growth KiB, from $memory KiB"
((growth <= GROWTH_KIB_MAX)) || fail "$PULLERS logins need $growth KiB"

step "larder access lists the permissions, and forgets them"
permissions list --json >"$CASE_DIR/permissions.json"
equal "permissions for the pullers" "$PULLERS" \
  "$(jq '[.[] | select(.user | startswith("puller-"))] | length' "$CASE_DIR/permissions.json")"
equal "the other permissions" "ann:$A ann:tokens.test/team-a/app bob:$B" \
  "$(jq -r '.[] | select(.user | startswith("puller-") | not) | "\(.user):\(.repository)"' "$CASE_DIR/permissions.json" | sort | paste -sd ' ')"
permissions forget --user puller-7 2>&1
equal "the permissions left" $((PULLERS + 2)) "$(permissions list --json | jq length)"
permissions forget --all 2>&1
equal "the permissions left" 0 "$(permissions list --json | jq length)"
before=$(asked "^200 HEAD /v2/team-a/app/manifests/v1 <ann>")
asks_again() { gets 200 "$ANN" "$A/manifests/v1" && (($(asked "^200 HEAD /v2/team-a/app/manifests/v1 <ann>") > before)); }
wait_until 15 "the running server asks the registry again" asks_again

# ---- The registry is down --------------------------------------------------------------------------------------------------

step "the registry is down and larder was killed: permissions count, also for empty clients"
expect 200 "$ANN" "$A/manifests/v1"
expect 200 "$ANN" tokens.test/team-a/app/manifests/v1
for name in team-a team-b; do stop_server "$name"; done
equal "the registry" 502 "$(curl -sS -o /dev/null -w '%{http_code}' "http://127.0.0.1:$FRONT_PORT/v2/")"
expect 200 "$ANN" "$A/manifests/v1"
expect 503 "carol:h0rse" "$A/manifests/v1"
for name in front by-token tokens; do stop_server "$name"; done
expect 503 "carol:h0rse" "$A/manifests/v1"
stop_server larder KILL
larder_start
check_cached() { # PULL
  step "$1: without the registry"
  pulls "$1" team-a "$ANN" "$A:v1"
}
for_all_clients check_cached
pulls skopeo_pull team-a "$ANN" tokens.test/team-a/app:v1
expect 200 "$ANN" "$A/blobs/${LAYER_OF[team-a]}"
expect 503 "" "open.test/demo/hello/blobs/${LAYER_OF[team-a]}"
for login in "$BOB" "$WRONG" "puller-1:$PULLER_PASSWORD"; do
  expect 503 "$login" "$A/manifests/v1"
  expect 503 "$login" "$A/blobs/${LAYER_OF[shared]}"
done
matches "the error message" accessOffline "$(jq -r '.errors[0].message' "$BODY_FILE")"
must_fail "skopeo with another user's credentials" skopeo_pull "$BOB" "$A:v1"
expect 401 "" "$A/manifests/v1"
larder_stop

# ---- A changed password, and guesses -----------------------------------------------------------------------------------------

step "a changed password: the old one is refused once accessTtl has ended"
configure $'accessTtl: 2s\nnegativeTtl: 1s'
team_start team-a
team_start team-b
front_start
larder_start
expect 200 "$ANN" "$A/manifests/v1"
expect 401 "$ANN_NEW" "$A/manifests/v1"
accounts team-a "$ANN_NEW"
wait_until 10 "the new password" gets 200 "$ANN_NEW" "$A/manifests/v1"
wait_until 10 "the old password is refused" gets 401 "$ANN" "$A/manifests/v1"
stop_server front
wait_until 10 "the old password does not count while the registry is down" gets 503 "$ANN" "$A/manifests/v1"
expect 200 "$ANN_NEW" "$A/manifests/v1"
front_start

step "the eleventh wrong password of an address is not passed on, and others are"
readonly FROM=(--interface 127.0.0.9)
expect 200 "$ANN_NEW" "$A/manifests/v1" "${FROM[@]}"
for guess in {1..10}; do
  expect 401 "ann:h0rse-$guess" "$A/manifests/v1" "${FROM[@]}"
done
# nginx logs a request after its response.
sleep 1
before=$(asked '<ann>')
expect 429 "ann:h0rse-11" "$A/manifests/v1" "${FROM[@]}"
equal "requests with it at the registry" "$before" "$(asked '<ann>')"
matches "Retry-After" '^([1-9]|[1-5][0-9]|60)$' "$(header Retry-After)"
expect 401 "ann:h0rse-11" "$A/manifests/v1" --interface 127.0.0.10
# Longer than accessTtl: the permission has to be confirmed again.
sleep 2.5
expect 200 "$ANN_NEW" "$A/manifests/v1" "${FROM[@]}"
larder_stop

# ---- Secrets -------------------------------------------------------------------------------------------------------------

step "no password is in the log, in a response or in the cache"
printf '%s\n' h0rse "${PULLER_PASSWORD}" >"$CASE_DIR/secrets"
for login in "$ANN" "$ANN_NEW" "$BOB" "$WRONG" "puller-1:$PULLER_PASSWORD" ann:h0rse-1 carol:h0rse; do
  printf %s "$login" | base64 -w 0 && echo
done >>"$CASE_DIR/secrets"
grep -q . "$CASE_DIR/responses" || fail "no responses were kept"
[[ -n $(find "$LARDER_CACHE/access" -type f) ]] || fail "no permissions are in the cache"
must_fail "a secret in larder's log" grep -nFf "$CASE_DIR/secrets" "$LARDER_LOG"
must_fail "a secret in a response" grep -naFf "$CASE_DIR/secrets" "$CASE_DIR/responses"
must_fail "a secret in the cache" grep -rlaFf "$CASE_DIR/secrets" "$LARDER_CACHE"
cache_is_sound
