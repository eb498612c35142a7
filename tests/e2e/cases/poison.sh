# Proves promise 1, never wrong bytes: a damaged blob or manifest of the right length (its file is edited in the storage of
# docker-registry) is never served as a complete 200 and never stored, and is served once the upstream is repaired.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

REGISTRY_STORAGE=$(own_storage)
registry_start
larder_start

# Flips the lowest bit of one byte, which keeps the length, and turns a digit into another digit.
flip_bit() { # FILE OFFSET
  local byte
  byte=$(od -An -tu1 -j "$2" -N 1 -- "$1")
  # shellcheck disable=SC2059  # the format is the byte
  printf "\\$(printf '%03o' $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

never_complete() { # WHAT DIGEST PATH OFFSET
  local what=$1 digest=$2 path=$3 offset=$4 file
  file=$(registry_blob_file "$digest")
  step "$what that is damaged at the upstream"
  cp -- "$file" "$CASE_DIR/tmp/intact"
  flip_bit "$file" "$offset"
  get "http://127.0.0.1:$REGISTRY_PORT/v2/demo/$path" -H 'Accept: application/vnd.oci.image.manifest.v1+json'
  expect_status "$what from upstream itself" 200
  must_fail "the upstream serves $what undamaged" cmp -s "$CASE_DIR/tmp/intact" "$BODY_FILE"
  for _ in first second; do
    get "$LARDER_URL/v2/$ALIAS/demo/$path"
    printf 'response: %s, curl %s, %s bytes\n' "$STATUS" "$CURL_EXIT" "$(stat -c %s "$BODY_FILE")"
    [[ $STATUS != 200 || $CURL_EXIT != 0 ]] || fail "$what: larder served damaged bytes as a complete 200"
    [[ $CURL_EXIT != 28 ]] || fail "$what: no response after $GIVE_UP_LIMIT s"
    absent "$what in the cache" "$(cached_blob "$digest")"
  done

  step "$what after the upstream is repaired"
  cp -- "$CASE_DIR/tmp/intact" "$file"
  is_served() {
    get "$LARDER_URL/v2/$ALIAS/demo/$path"
    [[ $STATUS == 200 && $CURL_EXIT == 0 ]]
  }
  # Larder may cache the failure for some seconds.
  wait_until 30 "$what after the upstream was repaired" is_served
  same_bytes "$what" "$CASE_DIR/tmp/intact" "$BODY_FILE"
}

# The offset of a digit of a size: flipping it keeps the manifest valid JSON, so that only the digest reveals the damage.
SIZE_OFFSET=$(grep -abom 1 '"size":[0-9]' "$(registry_blob_file "$HELLO_V2_DIGEST")" | head -n 1 | cut -d : -f 1)
readonly SIZE_OFFSET
never_complete "a small blob" "$HELLO_LAYER" "hello/blobs/$HELLO_LAYER" $((HELLO_LAYER_SIZE - 1))
never_complete "a manifest" "$HELLO_V2_DIGEST" "hello/manifests/$HELLO_V2_DIGEST" $((SIZE_OFFSET + 7))
never_complete "a blob of 64 MiB, at its start" "$BIG_LAYER" "big/blobs/$BIG_LAYER" 0
# A client gets the last byte after the digest is verified. The file gets its name after it is written to the disk.
wait_until 10 "the blob in the cache" test -f "$(cached_blob "$BIG_LAYER")"
rm -f -- "$(cached_blob "$BIG_LAYER")"
never_complete "a blob of 64 MiB, at its end" "$BIG_LAYER" "big/blobs/$BIG_LAYER" $((BIG_LAYER_SIZE - 1))
cache_is_sound
larder_stop
