# Proves larder verify on damage of every kind, made to the files of a cache that is served meanwhile: a flipped bit in a
# layer and in a manifest, a truncated layer, a layer that is gone. Each is named and what is damaged is kept aside;
# --repair mends all of it from the registry, unless larder offline forbids asking it.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly LIBRARY=docker.io/library/hello:v1 HELLO=docker.io/demo/hello:v1
readonly HELLO_V2=docker.io/demo/hello:v2 BIG=docker.io/demo/big:v1
readonly IMAGES=4
registry_start
larder_start
larder_() { client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" --log-level error "$@"; }
larder_ load "$LIBRARY" "$HELLO" "$HELLO_V2" "$BIG"

readonly SAID="$CASE_DIR/said"
# Runs verify, which must end with STATUS; what it says stands in SAID.
verify_is() { # STATUS [FLAG OF verify…]
  local expected=$1 status=0
  shift
  larder_ verify "$@" >"$SAID" 2>&1 || status=$?
  cat "$SAID"
  equal "the exit code of verify $*" "$expected" "$status"
}
said() { # WHAT REGEX
  grep -qE -- "$2" "$SAID" || fail "verify did not say $1"
}
says_in_the_end() { # BROKEN DAMAGED
  said "the sum" "^$IMAGES images, $1 incomplete; $2 damaged blobs?\$"
}

flip_a_bit() { # FILE OFFSET
  local byte
  byte=$(od -An -tu1 -j "$2" -N 1 -- "$1" | tr -d ' ')
  # shellcheck disable=SC2059  # the escape is the byte
  printf "\\x$(printf %02x $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# A manifest of a repository's own, a layer of 64 MiB, one that is cut off and one that is gone. library/hello and
# demo/hello:v1 are one manifest and one layer: an image may be named twice.
damage() {
  flip_a_bit "$(cached_blob "$HELLO_V2_DIGEST")" 100
  flip_a_bit "$(cached_blob "$BIG_LAYER")" 33554432
  truncate -s 1000 "$(cached_blob "$HELLO_LAYER")"
  rm -- "$(cached_blob "$BIG_CONFIG")"
}
readonly DAMAGED=("$HELLO_V2_DIGEST" "$BIG_LAYER" "$HELLO_LAYER")
quarantined() { printf '%s\n' "$LARDER_CACHE/quarantine/${1/:/-}"; }

# Every image is served, and with the registry's bytes.
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

step "nothing is wrong"
verify_is 0
says_in_the_end 0 0
absent "a quarantine" "$LARDER_CACHE/quarantine"

step "--rate is accepted, and what is no rate is not"
verify_is 0 --rate 1GB "docker.io/demo/*"
said "that three images match" '^3 images, 0 incomplete; 0 damaged blobs$'
verify_is 2 --rate quickly
said "which flag is wrong" '--rate: '

step "what is damaged is named and kept aside, what is missing is named"
damage
verify_is 1
for digest in "${DAMAGED[@]}"; do
  said "that $digest is damaged" \
    "^$digest: damaged: its [0-9]+ bytes have the digest sha256:[0-9a-f]{64}; moved to .*/quarantine/${digest/:/-}\$"
  [[ -f $(quarantined "$digest") ]] || fail "$digest is not in quarantine"
  absent "the damaged blob" "$(cached_blob "$digest")"
done
equal "files in quarantine" "${#DAMAGED[@]}" "$(find "$LARDER_CACHE/quarantine" -type f | wc -l)"
equal "bytes of the one that was cut off" 1000 "$(stat -c %s "$(quarantined "$HELLO_LAYER")")"
said "whose manifest is missing" "^$HELLO_V2: manifest $HELLO_V2_DIGEST is missing\$"
said "what is missing of $LIBRARY" "^$LIBRARY: .* missing in 1 blob, first $HELLO_LAYER\$"
said "what is missing of $HELLO" "^$HELLO: .* missing in 1 blob, first $HELLO_LAYER\$"
said "what is missing of $BIG" "^$BIG: 67\.1 MB of 67\.1 MB missing in 2 blobs, first $BIG_CONFIG\$"
says_in_the_end 4 3
step "once more: nothing is damaged any more, and as much is missing"
verify_is 1
says_in_the_end 4 0

step "offline: repairing fails, and says why"
larder_ offline on
blob_requests=$(registry_requests '[A-Z]+ /v2/')
verify_is 1 --repair
for image in "$LIBRARY" "$HELLO" "$HELLO_V2" "$BIG"; do
  said "why $image was not repaired" "^$image: .* missing.*; not repaired: sha256:[0-9a-f]{64}: .*(offline|air-gapped|not asked)"
done
says_in_the_end 4 0
equal "requests that reached the registry" "$blob_requests" "$(registry_requests '[A-Z]+ /v2/')"

step "online again: repairing beside the server mends all"
larder_ offline off
verify_is 0 --repair
# library/hello is whole again by then: its layer is that of demo/hello:v1.
for image in "$HELLO" "$HELLO_V2" "$BIG"; do said "that $image was repaired" "^$image: .*; repaired\$"; done
says_in_the_end 0 0
verify_is 0
says_in_the_end 0 0
cache_is_sound

step "damage, found and repaired at once"
damage
verify_is 0 --repair
for digest in "${DAMAGED[@]}"; do said "that $digest is damaged" "^$digest: damaged: .*; moved to "; done
says_in_the_end 0 3
verify_is 0
says_in_the_end 0 0
cache_is_sound

step "the registry is not asked for what was repaired"
registry_stop
served
larder_stop
