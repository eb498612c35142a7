# Proves the HTTP behaviour that clients rely on: the ping, the same headers for HEAD and GET, exact ranges, 405 for all
# requests that change something, OCI JSON errors with statuses that make clients fall back, and no path traversal.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
larder_start
readonly REPOSITORY="$LARDER_URL/v2/$ALIAS/demo/hello"
readonly BLOB="$REPOSITORY/blobs/$HELLO_LAYER"
ORIGINAL=$(registry_blob_file "$HELLO_LAYER")
readonly ORIGINAL

step "the ping"
for path in /v2/ /v2; do
  get "$LARDER_URL$path"
  expect_status "$path" 200
  equal "$path: Docker-Distribution-API-Version" registry/2.0 "$(header Docker-Distribution-API-Version)"
done

step "HEAD and GET return the same headers"
# Headers that identify the content. Date, Age and Warning may differ.
content_head() { tr -d '\r' <"$HEAD_FILE" | grep -iE '^(content-(type|length)|docker-content-digest|etag|accept-ranges):' | LC_ALL=C sort -f; }
for url in "$REPOSITORY/manifests/v1" "$REPOSITORY/manifests/$HELLO_DIGEST" "$BLOB" "$REPOSITORY/blobs/$HELLO_CONFIG"; do
  get "$url"
  expect_status "GET $url" 200
  got=$(content_head)
  equal "length of $url" "$(stat -c %s "$BODY_FILE")" "$(header Content-Length)"
  equal "transfer encoding of $url" "" "$(header Transfer-Encoding)"
  get "$url" --head
  expect_status "HEAD $url" 200
  equal "HEAD of $url" "$got" "$(content_head)"
done
get "$BLOB"
same_bytes "the blob" "$ORIGINAL" "$BODY_FILE"
equal "the blob's digest header" "$HELLO_LAYER" "$(header Docker-Content-Digest)"
equal "the blob's Accept-Ranges" bytes "$(header Accept-Ranges)"
equal "the blob's Content-Encoding" "" "$(header Content-Encoding)"

step "a body is never encoded, whatever the client accepts"
get "$BLOB" -H 'Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5'
equal "Content-Encoding" "" "$(header Content-Encoding)"
same_bytes "the blob" "$ORIGINAL" "$BODY_FILE"

part() { # RANGE FIRST LENGTH
  step "Range: bytes=$1"
  get "$BLOB" -H "Range: bytes=$1"
  expect_status "bytes=$1" 206
  equal "bytes=$1: Content-Range" "bytes $2-$(($2 + $3 - 1))/$SIZE" "$(header Content-Range)"
  equal "bytes=$1: Content-Length" "$3" "$(header Content-Length)"
  tail -c "+$(($2 + 1))" "$ORIGINAL" | head -c "$3" >"$CASE_DIR/tmp/part" || true
  same_bytes "bytes=$1" "$CASE_DIR/tmp/part" "$BODY_FILE"
}
SIZE=$(stat -c %s "$ORIGINAL")
((SIZE > 2000)) || fail "the sample layer has only $SIZE bytes"
part 0-0 0 1
part 500-1499 500 1000
part 500- 500 $((SIZE - 500))
part -500 $((SIZE - 500)) 500
part "1000-$((SIZE + 5000))" 1000 $((SIZE - 1000))
for range in "$SIZE-" "$((SIZE + 1))-$((SIZE + 9))" 500-0; do
  step "Range: bytes=$range cannot be satisfied"
  get "$BLOB" -H "Range: bytes=$range"
  expect_status "bytes=$range" 416
done
get "$BLOB" -H "Range: bytes=$SIZE-"
equal "Content-Range of a 416" "bytes */$SIZE" "$(header Content-Range)"
for range in bytes=0-9,20-29 lines=1-2 nonsense; do
  step "Range: $range gets the complete blob"
  get "$BLOB" -H "Range: $range"
  expect_status "$range" 200
  same_bytes "$range" "$ORIGINAL" "$BODY_FILE"
done

step "conditional requests"
tag=$(header ETag)
get "$BLOB" -H "If-None-Match: $tag"
expect_status "If-None-Match with the ETag" 304
get "$BLOB" -H 'If-None-Match: "other"'
expect_status "If-None-Match with another ETag" 200
get "$BLOB" -H 'Range: bytes=0-9' -H 'If-Range: "other"'
expect_status "If-Range with another ETag" 200

step "clients cannot change anything"
for method in DELETE PUT POST PATCH; do
  for url in "$BLOB" "$REPOSITORY/manifests/v1" "$REPOSITORY/blobs/uploads/"; do
    get "$url" -X "$method" --data x
    expect_status "$method $url" 405
    equal "$method: code" UNSUPPORTED "$(error_code)"
    matches "$method: Allow" GET "$(header Allow)"
  done
done
get "$BLOB"
expect_status "the blob after that" 200

oci_error() { # WHAT URL STATUSES CODES
  step "$1"
  get "$2"
  matches "$1: status" "^($3)$" "$STATUS"
  matches "$1: content type" '^application/json' "$(header Content-Type)"
  matches "$1: code" "^($4)$" "$(error_code)"
}
readonly NOWHERE=sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9
oci_error "an unknown tag" "$REPOSITORY/manifests/absent" 404 'MANIFEST_UNKNOWN|NAME_UNKNOWN'
oci_error "an unknown repository" "$LARDER_URL/v2/$ALIAS/demo/absent/manifests/v1" 404 'MANIFEST_UNKNOWN|NAME_UNKNOWN'
oci_error "an unknown blob" "$REPOSITORY/blobs/$NOWHERE" 404 'BLOB_UNKNOWN|NAME_UNKNOWN'
oci_error "an invalid tag" "$REPOSITORY/manifests/.INVALID_MANIFEST_NAME" 404 MANIFEST_UNKNOWN
oci_error "an invalid digest" "$REPOSITORY/manifests/sha256:totallywrong" '400|404' 'DIGEST_INVALID|MANIFEST_UNKNOWN'
oci_error "an invalid blob digest" "$REPOSITORY/blobs/sha256:totallywrong" '400|404' 'DIGEST_INVALID|BLOB_UNKNOWN'
oci_error "an invalid name" "$LARDER_URL/v2/$ALIAS/Demo/HELLO/manifests/v1" '400|404' 'NAME_INVALID|NAME_UNKNOWN'
oci_error "the catalogue" "$LARDER_URL/v2/_catalog" 404 '.+'

step "no path traversal"
printf 'secret-content' >"$CASE_DIR/secret"
for path in "/v2/../secret" "/v2/$ALIAS/../../../secret/manifests/v1" "/v2/$ALIAS/demo/hello/manifests/../../../../secret" \
  "/v2/$ALIAS/demo/hello/blobs/../../../secret" "/v2/$ALIAS/%2e%2e/%2e%2e/secret/manifests/v1" \
  "/v2/$ALIAS/demo%2Fhello%2F..%2F..%2Fsecret/manifests/v1" "/v2/$ALIAS/demo/hello/blobs/sha256:..%2F..%2F..%2Fsecret" \
  "/v2/$ALIAS/demo/hello/manifests/..%2F..%2Fsecret" "/v2/demo/hello/manifests/v1?ns=../../secret" \
  "/v2/demo/hello/manifests/v1?ns=..%2F..%2Fsecret" "/v2//$ALIAS//demo/hello/manifests/v1" "/../../secret"; do
  get "$LARDER_URL$path"
  matches "$path" '^(400|404)$' "$STATUS"
  must_fail "the secret in the response to $path" grep -q secret-content "$BODY_FILE"
done
equal "cache files outside the cache directory" "" "$(find "$CASE_DIR" -maxdepth 1 -newer "$CASE_DIR/secret" -type d -name 'secret*')"
larder_stop
