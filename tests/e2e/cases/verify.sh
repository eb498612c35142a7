# Proves larder verify with all kinds of damage in the cache of a running server: a flipped bit in a layer and in a manifest, a
# truncated layer, a missing blob. Verify reports each, and moves damaged files to quarantine. --repair fetches all of them from
# the registry, unless larder is offline.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly LIBRARY=docker.io/library/hello:v1 HELLO=docker.io/demo/hello:v1
readonly HELLO_V2=docker.io/demo/hello:v2 BIG=docker.io/demo/big:v1
readonly IMAGES=4
registry_start
larder_start
larder_() { client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" --log-level error "$@"; }
larder_ load "$LIBRARY" "$HELLO" "$HELLO_V2" "$BIG"

readonly OUTPUT="$CASE_DIR/output"
# Runs verify, which must exit with STATUS, and writes its output to OUTPUT.
verify_is() { # STATUS [FLAG OF verify…]
  local expected=$1 status=0
  shift
  larder_ verify "$@" >"$OUTPUT" 2>&1 || status=$?
  cat "$OUTPUT"
  equal "the exit code of verify $*" "$expected" "$status"
}
prints() { # WHAT REGEX
  grep -qE -- "$2" "$OUTPUT" || fail "verify did not print $1"
}
summary_is() { # BROKEN DAMAGED
  prints "the summary" "^$IMAGES images, $1 incomplete; $2 damaged blobs?\$"
}

flip_a_bit() { # FILE OFFSET
  local byte
  byte=$(od -An -tu1 -j "$2" -N 1 -- "$1" | tr -d ' ')
  # shellcheck disable=SC2059  # the escape is the byte
  printf "\\x$(printf %02x $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Damages a manifest, a layer of 64 MiB, truncates a layer and removes a config. library/hello and demo/hello:v1 share their
# manifest and layer.
damage() {
  flip_a_bit "$(cached_blob "$HELLO_V2_DIGEST")" 100
  flip_a_bit "$(cached_blob "$BIG_LAYER")" 33554432
  truncate -s 1000 "$(cached_blob "$HELLO_LAYER")"
  rm -- "$(cached_blob "$BIG_CONFIG")"
}
readonly DAMAGED=("$HELLO_V2_DIGEST" "$BIG_LAYER" "$HELLO_LAYER")
quarantined() { printf '%s\n' "$LARDER_CACHE/quarantine/${1/:/-}"; }

# Checks that larder serves every image with the registry's bytes.
served() {
  local image digest name
  while read -r image digest; do
    name=${image#docker.io/}
    get "$LARDER_URL/v2/${name%:*}/manifests/${name##*:}?ns=docker.io"
    expect_status "$image" 200
    equal "the digest of $image" "$digest" "sha256:$(sha256sum <"$BODY_FILE" | cut -d ' ' -f 1)"
  done <<LIST
$LIBRARY $HELLO_DIGEST
$HELLO $HELLO_DIGEST
$HELLO_V2 $HELLO_V2_DIGEST
$BIG $BIG_DIGEST
LIST
  for digest in "$HELLO_LAYER" "$HELLO_V2_LAYER" "$BIG_LAYER"; do
    get "$LARDER_URL/v2/demo/x/blobs/$digest?ns=docker.io"
    expect_status "$digest" 200
    same_bytes "$digest" "$(registry_blob_file "$digest")" "$BODY_FILE"
  done
}

step "no damage"
verify_is 0
summary_is 0 0
absent "a quarantine" "$LARDER_CACHE/quarantine"

step "--rate takes a rate, and rejects an invalid one"
verify_is 0 --rate 1GB "docker.io/demo/*"
prints "that three images match" '^3 images, 0 incomplete; 0 damaged blobs$'
verify_is 2 --rate quickly
prints "which flag is wrong" '--rate: '

step "verify reports damaged and missing blobs, and moves damaged ones to quarantine"
damage
verify_is 1
for digest in "${DAMAGED[@]}"; do
  prints "that $digest is damaged" \
    "^$digest: damaged: its content \([^)]+\) has the digest sha256:[0-9a-f]{64}; moved to .*/quarantine/${digest/:/-}\$"
  [[ -f $(quarantined "$digest") ]] || fail "$digest is not in quarantine"
  absent "the damaged blob" "$(cached_blob "$digest")"
done
equal "files in quarantine" "${#DAMAGED[@]}" "$(find "$LARDER_CACHE/quarantine" -type f | wc -l)"
equal "bytes of the truncated layer" 1000 "$(stat -c %s "$(quarantined "$HELLO_LAYER")")"
prints "whose manifest is missing" "^$HELLO_V2: manifest $HELLO_V2_DIGEST is missing\$"
prints "what is missing of $LIBRARY" "^$LIBRARY: .* missing in 1 blob, first $HELLO_LAYER\$"
prints "what is missing of $HELLO" "^$HELLO: .* missing in 1 blob, first $HELLO_LAYER\$"
prints "what is missing of $BIG" "^$BIG: 67\.1 MB of 67\.1 MB missing in 2 blobs, first $BIG_CONFIG\$"
summary_is 4 3
step "a second run reports no damage, and the same missing blobs"
verify_is 1
summary_is 4 0

step "offline: --repair fails and reports why"
larder_ offline on
blob_requests=$(registry_requests '[A-Z]+ /v2/')
verify_is 1 --repair
for image in "$LIBRARY" "$HELLO" "$HELLO_V2" "$BIG"; do
  prints "why $image was not repaired" "^$image: .* missing.*; not repaired: sha256:[0-9a-f]{64}: .*(offline|air-gapped|not asked)"
done
summary_is 4 0
equal "requests to the registry" "$blob_requests" "$(registry_requests '[A-Z]+ /v2/')"

step "online again: --repair repairs all images while the server runs"
larder_ offline off
verify_is 0 --repair
# library/hello is complete by then, because it shares its layer with demo/hello:v1.
for image in "$HELLO" "$HELLO_V2" "$BIG"; do prints "that $image was repaired" "^$image: .*; repaired\$"; done
summary_is 0 0
verify_is 0
summary_is 0 0
cache_is_sound

step "one run of --repair finds and repairs damage"
damage
verify_is 0 --repair
for digest in "${DAMAGED[@]}"; do prints "that $digest is damaged" "^$digest: damaged: .*; moved to "; done
summary_is 0 3
verify_is 0
summary_is 0 0
cache_is_sound

step "repaired content is served without the registry"
registry_stop
served
larder_stop
