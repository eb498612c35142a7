# Proves what a disk that is too small, full, full in the middle of a blob, or read-only costs: nothing but the caching. The
# cache directory is a small file system in memory; skopeo pulls through it, right to the last byte, and the log and
# /health?verbose tell what was streamed without being kept.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# Less than the big image, and more than the small ones together; then more than all of them.
readonly SMALL=16m LARGE=96m

# Every pull by tag asks upstream, so that what is served without it is served *because* it is gone.
TAG_TTL=0

# ---- The disk and larder on it -----------------------------------------------------------------------------------------

mkdir -p "$LARDER_CACHE"
mount -t tmpfs -o "size=$SMALL" larder-e2e "$LARDER_CACHE" || skip "no tmpfs can be mounted here"
remount() { mount -o "remount,$1" "$LARDER_CACHE"; }
# Takes every byte there is; that it fails is its purpose.
readonly FILLER="$LARDER_CACHE/filler"
fill() {
  cat /dev/zero >"$FILLER" 2>/dev/null || true
  equal "free bytes on the full disk" 0 "$(stat -f -c %a -- "$LARDER_CACHE")"
}

HEALTH_PORT=$(free_port)
registry_start
link_start 64m
larder_config "127.0.0.1:$LINK_PORT"
larder_start --health "$HEALTH_PORT"

# How many have been served without being kept since larder's start.
not_cached() { # blobs|manifests
  curl -fsS --max-time 5 "http://127.0.0.1:$HEALTH_PORT/health?verbose" | jq ".servedWithoutCaching.$1"
}
is_cached() { # DIGEST…
  local digest
  for digest; do
    [[ -f $(cached_blob "$digest") ]] || fail "$digest is not in the cache"
  done
}
streamed() { # DIGEST
  larder_logged "that $1 is not kept" "\[WARN\] .*@$1: streaming it to a client without caching it"
  absent "a blob that does not fit" "$(cached_blob "$1")"
}
# Through larder, and compared with what upstream has.
pulled() { # NAME TO
  rm -rf -- "${CASE_DIR:?}/$2"
  copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/$1" "$2"
  same_tree "$1 as $2" "$CASE_DIR/direct-$1" "$CASE_DIR/$2"
}

step "what upstream itself gives"
for image in big:v1 hello:v1 hello:v2; do
  copy "127.0.0.1:$REGISTRY_PORT/demo/$image" "direct-$image"
done

# ---- Too small ---------------------------------------------------------------------------------------------------------

step "an image that does not fit is streamed, and all of it comes"
equal "blobs without caching, before" 0 "$(not_cached blobs)"
pulled big:v1 too-big
streamed "$BIG_LAYER"
equal "blobs without caching" 1 "$(not_cached blobs)"
equal "manifests without caching" 0 "$(not_cached manifests)"
is_cached "$BIG_DIGEST" "$BIG_CONFIG"

step "one that fits is cached, and served when upstream is gone"
pulled hello:v1 fits
is_cached "$HELLO_DIGEST" "$HELLO_CONFIG" "$HELLO_LAYER"
equal "blobs without caching" 1 "$(not_cached blobs)"
link_cut
pulled hello:v1 from-cache
link_start 64m

# ---- Full --------------------------------------------------------------------------------------------------------------

step "not a byte is free: what is new is streamed, what is cached is served"
fill
pulled hello:v2 full
(($(not_cached blobs) > 1)) || fail "no blob was counted"
(($(not_cached manifests) > 0)) || fail "no manifest was counted"
absent "a manifest that does not fit" "$(cached_blob "$HELLO_V2_DIGEST")"
pulled hello:v1 full-cached

step "there is room again: what is new is cached"
rm -f -- "$FILLER"
pulled hello:v2 room-again
is_cached "$HELLO_V2_DIGEST"

# ---- Full in the middle of a blob --------------------------------------------------------------------------------------

step "the disk fills up while a blob arrives: the client does not notice"
remount "size=$LARGE"
link_cut
link_start 8m
before=$(not_cached blobs)
pulled big:v1 under-way &
pulling=$!
wait_until 15 "the first MiB of the blob" holds_a_file_of "$CASE_DIR/under-way" 1048576
equal "blobs without caching, so far" "$before" "$(not_cached blobs)"
fill
wait "$pulling" || fail "the pull during which the disk filled up failed"
equal "blobs without caching" $((before + 1)) "$(not_cached blobs)"
streamed "$BIG_LAYER"
rm -f -- "$FILLER"
cache_is_sound
larder_stop

# ---- Read-only ---------------------------------------------------------------------------------------------------------

step "a read-only disk: larder starts, serves what is there, and streams the rest"
link_cut
link_start 64m
remount ro
must_fail "a write to the read-only disk" touch "$FILLER"
larder_start --health "$HEALTH_PORT"
pulled hello:v1 read-only-cached
equal "blobs without caching" 0 "$(not_cached blobs)"
pulled big:v1 read-only
equal "blobs without caching" 1 "$(not_cached blobs)"
streamed "$BIG_LAYER"
link_cut
pulled hello:v1 read-only-from-cache
larder_stop
link_start 64m

step "it is writable again: what was streamed is cached"
remount rw
larder_start
pulled big:v1 writable
is_cached "$BIG_LAYER"
cache_is_sound
larder_stop
