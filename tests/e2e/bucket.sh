# shellcheck shell=bash
# A bucket behind the caches, with a real registry, a real S3 server and real clients. A replica uploads what it has pulled, and
# another one with an empty directory serves it when the registry is gone. A killed upload is continued. While the bucket is
# down, pulls continue and nothing that is queued is lost. Damaged objects are never served completely, and are replaced. Wrong
# settings do not prevent pulls. A copy of the bucket is a cache directory.
#
# Sourced by the cases bucket-*, which set STORE (the command of the server) and STORE_PORT, and define object_damage.

readonly BUCKET=larder
# The smallest size that S3 allows.
readonly PART_BYTES=$((5 * 1024 * 1024))
readonly BIG_PARTS=$(((BIG_LAYER_SIZE + PART_BYTES - 1) / PART_BYTES))
# Bytes per second: the large layer takes some seconds.
readonly UPLOAD_RATE=12MB
# Of nginx, for each connection, of which a pull uses several.
readonly SLOW_RATE=2m
# A bucket that is back is noticed within a minute, but sooner after a short outage. SeaweedFS may need a minute for its first object.
readonly DRAIN_LIMIT=150

FRONT_PORT=$(free_port)
SLOW_PORT=$(free_port)
readonly FRONT_PORT SLOW_PORT

# ---- The bucket ----------------------------------------------------------------------------------------------------------

bucket_s3() { s3 "$STORE_PORT" "$BUCKET" "$@"; }

# nginx passes requests on and counts them. Its second port sends slowly.
bucket_start() {
  local server="proxy_pass http://127.0.0.1:$STORE_PORT;
    proxy_http_version 1.1;
    proxy_set_header Host \$http_host;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;"
  start_server store "${STORE[@]}"
  wait_for_server store bucket_s3 create
  nginx_start front "log_format s3 '\$request_method \$request_uri \$status';
  client_max_body_size 0;
  server { listen 127.0.0.1:$FRONT_PORT; access_log $LOGS/requests.log s3; location / { $server } }
  server { listen 127.0.0.1:$SLOW_PORT; access_log $LOGS/requests.log s3; location / { $server limit_rate $SLOW_RATE; } }" \
    curl -sS --max-time 2 -o /dev/null "http://127.0.0.1:$FRONT_PORT"
}

bucket_kill() {
  stop_server front KILL
  stop_server store KILL
}

# Prints the requests below a prefix that match REGEX.
requests() { # PREFIX REGEX
  grep -E -- "^[A-Z]+ /$BUCKET/$1/" "$LOGS/requests.log" | grep -E -- "$2" || true
}
# Prints `partNumber=3` for each part that the store has accepted, except for one whose response was lost in a kill.
parts_sent() { requests "$1" '^PUT .*partNumber=.* 200$' | grep -oE 'partNumber=[0-9]+' | sort; } # PREFIX
parts_are_sent() { (($(parts_sent "$1" | wc -l) >= $2)); }                                         # PREFIX COUNT
# No part was sent twice, and the upload has ended. The store may have accepted the part that was sent during a kill.
parts_were_sent_once() { # PREFIX
  echo "parts: $(parts_sent "$1" | wc -l) of $BIG_PARTS; not completed: $(requests "$1" '^PUT .*partNumber=' | grep -vc ' 200$' || true)"
  equal "parts that were sent twice below $1/" "" "$(parts_sent "$1" | uniq -d)"
  local sent
  sent=$(parts_sent "$1" | wc -l)
  ((sent >= BIG_PARTS - 1)) || fail "$sent of $BIG_PARTS parts below $1/ were sent"
  equal "uploads that have not ended" "" "$(bucket_s3 uploads)"
}

# ---- Larders -------------------------------------------------------------------------------------------------------------

declare -A PORT=() STATUS_PORT=()
# Settings of `objectStore` that are not the usual ones, a line each.
BUCKET_SETTINGS=
BUCKET_PORT=$FRONT_PORT

# Writes the configuration of a replica. Without PREFIX, it has no bucket.
replica() { # NAME PREFIX [SETTINGS]
  PORT[$1]=${PORT[$1]:-$(free_port)}
  STATUS_PORT[$1]=${STATUS_PORT[$1]:-$(free_port)}
  {
    cat <<YAML
registries: [{name: $ALIAS, endpoints: ["http://127.0.0.1:$REGISTRY_PORT"]}]
tagTtl: $TAG_TTL
revalidateTimeout: 2s
metrics: ${STATUS_PORT[$1]}
health: ${STATUS_PORT[$1]}
${3:-}
YAML
    [[ -z $2 ]] || cat <<YAML
objectStore:
  endpoint: http://127.0.0.1:$BUCKET_PORT
  bucket: $BUCKET
  region: us-east-1
  prefix: $2
  accessKeyId: $S3_ID
  secretAccessKey: $S3_SECRET
  partSize: $PART_BYTES
$BUCKET_SETTINGS
YAML
  } >"$CASE_DIR/$1.yaml"
}

replica_start() { # NAME
  start_server "$1" "${OFFLINE[@]}" RUST_BACKTRACE=1 "$E2E_LARDER" --config-file "$CASE_DIR/$1.yaml" --image-path "$CASE_DIR/cache-$1" \
    --log-level "$LOG_LEVEL" serve --host 127.0.0.1 --port "${PORT[$1]}"
  wait_for_server "$1" curl -fsS --max-time 2 "http://127.0.0.1:${PORT[$1]}/v2/"
}

replica_stop() { # NAME
  local file
  stop_server "$1"
  equal "the exit status of $1 after SIGTERM" 0 "$STOPPED_WITH"
  while IFS= read -r file; do
    equal "the content of $file" "${file##*/}" "$(sha256sum -- "$file" | cut -d ' ' -f 1)"
  done < <(find "$CASE_DIR/cache-$1/blobs" -type f)
}

# Pulls an image with skopeo, which verifies digests.
try_pull() { # NAME IMAGE
  rm -rf -- "$CASE_DIR/tmp/pulled-$1"
  copy "127.0.0.1:${PORT[$1]}/$ALIAS/demo/$2" "tmp/pulled-$1"
}
# Compares it with that of the registry.
pull() { # NAME IMAGE
  try_pull "$@"
  same_tree "demo/$2 through $1" "$CASE_DIR/images/$2" "$CASE_DIR/tmp/pulled-$1"
}

# Prints the sum of a metric.
metric() { # NAME METRIC [REGEX]
  curl -fsS --max-time 5 "http://127.0.0.1:${STATUS_PORT[$1]}/metrics" | awk -v name="$2" -v labels="${3:-}" '
    { at = match($0, /[{ ]/) } substr($0, 1, at - 1) == name && $0 ~ labels { sum += $NF } END { printf "%d\n", sum }'
}
received() { metric "$1" larder_received_bytes_total "from=\"$2\""; } # NAME FROM
metric_is() { [[ $(metric "$1" "$2") == "$3" ]]; }                    # NAME METRIC VALUE
has_received() { (($(received "$1" "$2") >= $3)); }                   # NAME FROM BYTES
is_ready() { # NAME
  equal "/readyz of $1" 200 "$(curl -sS --max-time 5 -o /dev/null -w '%{http_code}' "http://127.0.0.1:${STATUS_PORT[$1]}/readyz")"
}

# The keys of blobs and records below a prefix are the paths of all in the cache, and the sizes are equal. What caches say about
# themselves is beside them, after a minute.
is_uploaded() { # NAME PREFIX
  [[ $(metric "$1" larder_bucket_queued) == 0 && -z $(ls --ignore=seeded "$CASE_DIR/cache-$1/outgoing") ]] &&
    diff <(cd "$CASE_DIR/cache-$1" && find blobs refs -type f -printf "%s $2/%p\n" | sort) <(bucket_s3 list "$2/" | grep -E "^[0-9]+ $2/(blobs|refs)/" | sort)
}
upload_all() { # NAME PREFIX
  wait_until "$DRAIN_LIMIT" "the content of $1 in the bucket" is_uploaded "$1" "$2"
}

blob_key() { echo "$1/blobs/sha256/${2#*:}"; } # PREFIX DIGEST

registry_start
bucket_start
step "pull the images from the registry, for comparison"
mkdir -p "$CASE_DIR/images"
for image in hello:v1 hello:v2 big:v1; do copy "127.0.0.1:$REGISTRY_PORT/demo/$image" "images/$image"; done

# ---- A replica that is gone, and its successor ---------------------------------------------------------------------------

step "a replica uploads what it has pulled: the large layer in $BIG_PARTS parts"
replica a a
replica_start a
pull a hello:v1
pull a big:v1
upload_all a a
parts_were_sent_once a
echo "uploaded: $(metric a larder_uploads_total 'outcome="sent"') objects"
is_ready a
larder_logs() { grep -m 1 -E -- "$2" "$LOGS/$1.log" || fail "not in the log of $1: $2"; } # NAME REGEX
larder_logs a 'objectStore: .*reachable, readable, writable, supports If-None-Match, verifies checksums'
replica_stop a

step "the registry is gone: a replica with an empty directory serves skopeo and containerd from the bucket"
registry_stop
replica b a
replica_start b
pull b big:v1
wanted=0
for digest in "$BIG_LAYER" "$BIG_CONFIG"; do wanted=$((wanted + $(stat -c %s "$CASE_DIR/images/big:v1/${digest#*:}"))); done
equal "bytes of blobs from the bucket" "$wanted" "$(received b bucket)"
containerd_start "http://127.0.0.1:${PORT[b]}"
for image in hello:v1 big:v1; do ctr_pull "$ALIAS/demo/$image"; done
equal "the digest in containerd" "$BIG_DIGEST" "$(digest_in_ctr "$ALIAS/demo/big:v1")"
# For the next time.
ctr_ images rm --sync "$ALIAS/demo/big:v1"
stop_server containerd
pull b hello:v1
equal "bytes of blobs from the registry" 0 "$(received b registry)"
must_fail "an image that was never pulled" try_pull b hello:v2
is_ready b
replica_stop b

step "redirect: containerd gets the large layer from the bucket; a client that returns gets it from the cache"
BUCKET_SETTINGS='  redirect: true'
replica a a
BUCKET_SETTINGS=
replica_start a
larder_logs a "large cached blobs are redirected to the bucket endpoint=http://127.0.0.1:$FRONT_PORT/$BUCKET/a/"
pull a big:v1
equal "redirects to a bucket about which nothing is known" 0 "$(metric a larder_redirects_total)"
layer_is_known() { [[ -n $(requests a "^HEAD [^ ]*/${BIG_LAYER#*:} 200\$") ]]; }
wait_until 20 "the check of the layer in the bucket" layer_is_known
containerd_start "http://127.0.0.1:${PORT[a]}"
ctr_pull "$ALIAS/demo/big:v1"
equal "the digest in containerd" "$BIG_DIGEST" "$(digest_in_ctr "$ALIAS/demo/big:v1")"
stop_server containerd
equal "redirects" 1 "$(metric a larder_redirects_total)"
equal "bytes of redirects" "$(stat -c %s "$CASE_DIR/images/big:v1/${BIG_LAYER#*:}")" "$(metric a larder_redirected_bytes_total)"
[[ -n $(requests a "^GET [^ ]*/${BIG_LAYER#*:}\?[^ ]*X-Amz-Signature=[^ ]* 200\$") ]] || fail "containerd has not followed the redirect"
pull a big:v1
equal "redirects of a client that returns" 1 "$(metric a larder_redirects_total)"
larder_logs a 'it gets all blobs from here for a while.* ip=127.0.0.1 digest=sha256:.* wait=10min'
if grep -q X-Amz-Signature "$LOGS/a.log"; then fail "a signature in the log"; fi
replica_stop a

step "a copy of the bucket is a directory that an air-gapped larder serves"
bucket_s3 sync a/ "$CASE_DIR/cache-copied"
replica copied "" "airGapped: true"
replica_start copied
pull copied hello:v1
pull copied big:v1
replica_stop copied

# ---- Interrupted uploads -------------------------------------------------------------------------------------------------

step "killed in the middle of a large upload: it is continued, and no part is sent again"
registry_start
BUCKET_SETTINGS="  uploadRate: $UPLOAD_RATE"
replica killed killed
replica_start killed
pull killed big:v1
wait_until 20 "some parts" parts_are_sent killed 3
stop_server killed KILL
echo "parts before: $(parts_sent killed | wc -l)"
((BIG_PARTS > $(parts_sent killed | wc -l))) || fail "all parts were sent before the kill"
BUCKET_SETTINGS=
replica killed killed
replica_start killed
upload_all killed killed
parts_were_sent_once killed
replica_stop killed

step "the bucket stops in the middle of an upload and of a pull: pulls continue, and the replicas stay ready"
BUCKET_SETTINGS="  uploadRate: $UPLOAD_RATE"
replica uploading uploading
replica_start uploading
BUCKET_SETTINGS='' BUCKET_PORT=$SLOW_PORT
replica pulling a
replica_start pulling
BUCKET_PORT=$FRONT_PORT
pull uploading big:v1
pull pulling big:v1 &
puller=$!
wait_until 20 "a part of the layer from the bucket" has_received pulling bucket 4000000
wait_until 20 "some parts" parts_are_sent uploading 2
bucket_kill
echo "parts: $(parts_sent uploading | wc -l), bytes from the bucket: $(received pulling bucket)"
wait "$puller" || fail "the pull failed"
pull uploading hello:v2
pull pulling hello:v2
for name in uploading pulling; do is_ready "$name"; done
echo "from the bucket: $(received pulling bucket), from the registry: $(received pulling registry)"
has_received pulling registry 1000000 || fail "the registry did not send the rest"
(($(received pulling registry) < BIG_LAYER_SIZE)) || fail "the registry sent the layer from the beginning"
(($(metric uploading larder_bucket_queued) > 0)) || fail "nothing waits for its upload"
wait_until 20 "the failure in the metrics" metric_is uploading larder_bucket_upload_failing 1

step "the bucket is back: the queue drains, and no part is sent again"
bucket_start
upload_all uploading uploading
parts_were_sent_once uploading
equal "larder_bucket_upload_failing" 0 "$(metric uploading larder_bucket_upload_failing)"
wait_until "$DRAIN_LIMIT" "an empty queue" metric_is pulling larder_bucket_queued 0
for name in uploading pulling; do replica_stop "$name"; done

# ---- Damage --------------------------------------------------------------------------------------------------------------

step "a damaged layer and a damaged manifest are never a complete response"
object_damage "$(blob_key a "$BIG_LAYER")"
object_damage "$(blob_key a "$HELLO_DIGEST")"
registry_stop
replica c a
replica_start c
layer_through_c() { get "http://127.0.0.1:${PORT[c]}/v2/$ALIAS/demo/big/blobs/$BIG_LAYER"; }
for attempt in 1 2 3; do
  layer_through_c
  echo "attempt $attempt: status $STATUS, curl $CURL_EXIT, $(stat -c %s "$BODY_FILE") bytes"
  [[ $STATUS != 200 || $CURL_EXIT != 0 ]] || fail "a complete response with the wrong bytes"
done
must_fail "a pull of a damaged layer" try_pull c big:v1
must_fail "a pull of a damaged manifest" try_pull c hello:v1
absent "the damaged layer" "$CASE_DIR/cache-c/blobs/sha256/${BIG_LAYER#*:}"

step "the registry is back: the right bytes are served, and replace the damaged objects"
registry_start
pulls_are_right() { try_pull c big:v1 && try_pull c hello:v1; }
wait_until 20 "complete images" pulls_are_right
pull c big:v1
pull c hello:v1
objects_are_right() {
  [[ $(bucket_s3 get "$(blob_key a "$BIG_LAYER")" | sha256sum) == "${BIG_LAYER#*:} "* &&
    $(bucket_s3 get "$(blob_key a "$HELLO_DIGEST")" | sha256sum) == "${HELLO_DIGEST#*:} "* ]]
}
wait_until "$DRAIN_LIMIT" "the right objects" objects_are_right
larder_logs c 'has the wrong content and is not used'
replica_stop c

# ---- Settings ------------------------------------------------------------------------------------------------------------

step "a wrong secret, bucket or port: larder starts, says what to do, and serves"
for name in wrong-secret wrong-bucket wrong-port; do replica "$name" wrong; done
sed -i 's/^  secretAccessKey: .*/  secretAccessKey: wrong/' "$CASE_DIR/wrong-secret.yaml"
sed -i 's/^  bucket: .*/  bucket: absent/' "$CASE_DIR/wrong-bucket.yaml"
sed -i "s#^  endpoint: .*#  endpoint: http://127.0.0.1:$(free_port)#" "$CASE_DIR/wrong-port.yaml"
for name in wrong-secret wrong-bucket wrong-port; do replica_start "$name"; done
for name in wrong-secret wrong-bucket wrong-port; do
  pull "$name" hello:v1
  is_ready "$name"
done
has_logged() { grep -qE -- "ERROR objectStore: .*$2" "$LOGS/$1.log"; } # NAME REGEX
wait_until 20 "what to do about the secret" has_logged wrong-secret 'the secret access key does not belong to the access key id'
wait_until 20 "what to do about the bucket" has_logged wrong-bucket 'the store has no bucket absent: create it, or correct its name'
wait_until 20 "what to do about the port" has_logged wrong-port 'onnection refused'
grep -hE 'objectStore:' "$LOGS"/wrong-*.log
for name in wrong-secret wrong-bucket wrong-port; do replica_stop "$name"; done

step "readOnly: the bucket is read, and nothing is written"
BUCKET_SETTINGS='  readOnly: true'
replica reader killed
BUCKET_SETTINGS=
before=$(wc -l <"$LOGS/requests.log")
replica_start reader
pull reader big:v1
pull reader hello:v1
(($(received reader bucket) > 0 && $(received reader registry) > 0)) || fail "the images do not come from the bucket and from the registry"
absent "the queue" "$CASE_DIR/cache-reader/outgoing"
replica_stop reader
equal "writing requests" "" "$(tail -n "+$((before + 1))" "$LOGS/requests.log" | grep -vE '^(GET|HEAD) ' || true)"

# ---- Several replicas ----------------------------------------------------------------------------------------------------

step "two replicas with peers pull the same at the same time: each blob is uploaded once"
PORT[one]=$(free_port) PORT[two]=$(free_port)
peers="peers: {urls: [\"http://127.0.0.1:${PORT[one]}\", \"http://127.0.0.1:${PORT[two]}\"]}"
for name in one two; do replica "$name" peers "$peers"; done
for name in one two; do replica_start "$name"; done
pullers=()
for name in one two; do
  (pull "$name" big:v1 && pull "$name" hello:v1 && pull "$name" hello:v2) &
  pullers+=($!)
done
for puller in "${pullers[@]}"; do wait "$puller" || fail "a pull failed"; done
for name in one two; do upload_all "$name" peers; done
for name in one two; do
  echo "$name: sent $(metric "$name" larder_uploads_total 'outcome="sent"'), found $(metric "$name" larder_uploads_total 'outcome="exists"')"
done
# Both may send parts of the same upload at the same time.
echo "parts: $(parts_sent peers | wc -l), of which $BIG_PARTS are different"
created=$(requests peers '^(PUT|POST) .*/blobs/[^?]*(\?uploadId=[^&]*)? 200$' | sed -E 's/\?.*| 200$//')
equal "blobs" "$(find "$CASE_DIR/cache-one/blobs" -type f | wc -l)" "$(wc -l <<<"$created")"
equal "blobs that were created twice" "" "$(cut -d ' ' -f 2 <<<"$created" | sort | uniq -d)"
for name in one two; do replica_stop "$name"; done
