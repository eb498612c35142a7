# Proves that a disk that is too small, full, full in the middle of a blob, or read-only only prevents caching. The cache
# directory is a small tmpfs. Skopeo pulls through it and gets the right bytes, and the log and /health?verbose report what
# was streamed without being cached.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# SMALL is less than the big image and more than the small ones together, LARGE is more than all of them.
readonly SMALL=16m LARGE=96m

# Every pull by tag checks the upstream, so content that is served without the upstream comes from the cache.
TAG_TTL=0

# ---- The disk and larder -----------------------------------------------------------------------------------------------

mkdir -p "$LARDER_CACHE"
mount -t tmpfs -o "size=$SMALL" larder-e2e "$LARDER_CACHE" || skip "this machine cannot mount a tmpfs"
remount() { mount -o "remount,$1" "$LARDER_CACHE"; }
# Writes a file until the disk is full.
readonly FILLER="$LARDER_CACHE/filler"
fill() {
  cat /dev/zero >"$FILLER" 2>/dev/null || true
  equal "free bytes on the full disk" 0 "$(stat -f -c %a -- "$LARDER_CACHE")"
}

HEALTH_PORT=$(free_port)
registry_start
link_start 64m
larder_config "127.0.0.1:$LINK_PORT"
# The link limits each response, after a first second without a limit: ranges of a blob would pass it at once.
echo 'connectionsPerBlob: 1' >>"$CASE_DIR/larder.yaml"
larder_start --health "$HEALTH_PORT"

# Prints how many were served without being cached since larder started.
not_cached() { # blobs|manifests
  curl -fsS --max-time 5 "http://127.0.0.1:$HEALTH_PORT/health?verbose" | jq ".servedWithoutCaching.$1"
}
is_cached() { # DIGEST…
  local digest
  for digest; do
    # It gets its name after the client has its last byte.
    wait_until 10 "$digest in the cache" test -f "$(cached_blob "$digest")"
  done
}
streamed() { # DIGEST
  larder_logged "that $1 is not cached" "WARN  streaming the blob to a client without caching it digest=$1 "
  absent "a blob that does not fit" "$(cached_blob "$1")"
}
# Pulls through larder, and compares with the upstream.
pulled() { # NAME TO
  rm -rf -- "${CASE_DIR:?}/$2"
  copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/$1" "$2"
  same_tree "$1 as $2" "$CASE_DIR/direct-$1" "$CASE_DIR/$2"
}

step "copy directly from the upstream"
for image in big:v1 hello:v1 hello:v2; do
  copy "127.0.0.1:$REGISTRY_PORT/demo/$image" "direct-$image"
done

# ---- Too small ---------------------------------------------------------------------------------------------------------

step "an image that does not fit is streamed completely"
equal "blobs without caching, before" 0 "$(not_cached blobs)"
pulled big:v1 too-big
streamed "$BIG_LAYER"
equal "blobs without caching" 1 "$(not_cached blobs)"
equal "manifests without caching" 0 "$(not_cached manifests)"
is_cached "$BIG_DIGEST" "$BIG_CONFIG"

step "an image that fits is cached, and served without the upstream"
pulled hello:v1 fits
is_cached "$HELLO_DIGEST" "$HELLO_CONFIG" "$HELLO_LAYER"
equal "blobs without caching" 1 "$(not_cached blobs)"
link_cut
pulled hello:v1 from-cache
link_start 64m

# ---- Full --------------------------------------------------------------------------------------------------------------

step "with no free space new content is streamed, and cached content is served"
fill
pulled hello:v2 full
(($(not_cached blobs) > 1)) || fail "no blob was counted"
(($(not_cached manifests) > 0)) || fail "no manifest was counted"
absent "a manifest that does not fit" "$(cached_blob "$HELLO_V2_DIGEST")"
pulled hello:v1 full-cached

step "with free space again new content is cached"
rm -f -- "$FILLER"
pulled hello:v2 space-again
is_cached "$HELLO_V2_DIGEST"

# ---- Full in the middle of a blob --------------------------------------------------------------------------------------

step "the disk fills up during a download: the client does not notice"
remount "size=$LARGE"
link_cut
link_start 8m
before=$(not_cached blobs)
pulled big:v1 in-progress &
pulling=$!
wait_until 15 "the first MiB of the blob" holds_a_file_of "$CASE_DIR/in-progress" 1048576
equal "blobs without caching, so far" "$before" "$(not_cached blobs)"
fill
wait "$pulling" || fail "the pull during which the disk filled up failed"
equal "blobs without caching" $((before + 1)) "$(not_cached blobs)"
streamed "$BIG_LAYER"
rm -f -- "$FILLER"
cache_is_sound
larder_stop

# ---- Read-only ---------------------------------------------------------------------------------------------------------

step "with a read-only disk larder starts, serves cached content, and streams the rest"
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

step "with a writable disk again content is cached"
remount rw
larder_start
pulled big:v1 writable
is_cached "$BIG_LAYER"
cache_is_sound
larder_stop
