# Proves that load, import and export may be killed at any moment: kill -9 after random delays, with empty and half-filled
# caches, hundreds of times. All blobs match their digests, no name refers to a missing manifest, an import names only complete
# images, an export gets its final name only when it is complete, and repeating the command completes it.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# The time for each command, and its maximum number of rounds. A busy machine runs fewer rounds.
readonly SECONDS_EACH=9 ROUNDS_MAX=150
# Fewer kills of a running command would prove nothing.
readonly KILLS_MIN=5
# Every third round starts with an empty cache, the others with the cache of the previous round.
readonly FRESH_EVERY=3
readonly IMAGES=(docker.io/library/hello:v1 docker.io/demo/hello:v1 docker.io/demo/hello:v2 docker.io/demo/multi:v1
  docker.io/demo/big:v1)
readonly OUT="$CASE_DIR/out" SOUND="$CASE_DIR/sound" OUTPUT="$CASE_DIR/output" BUNDLE="$CASE_DIR/bundle.tar"

registry_start
larder_config "127.0.0.1:$REGISTRY_PORT"
run_larder() { # CACHE ARGUMENT…
  local cache=$1
  shift
  client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$cache" --log-level error "$@"
}

# ---- Invariants of a cache -------------------------------------------------------------------------------------------------

# The files that a cache directory may contain.
readonly HEX='[0-9a-f]{64}'
readonly KNOWN="^(oci-layout|index\.json|blobs/sha256/$HEX|refs/[^_]+/_tags/[^/]+|refs/[^_]+/_manifests/sha256/$HEX|\
lists/$HEX-$HEX|links/$HEX|incoming/((sweep|sweep-gate|bundle|index|prune|usage|pins)\.lock|(tmp|spool-tmp)-[0-9-]+|tmp-fetch-$HEX)|\
partials/[^/]+/sha256-$HEX(\.json|\.progress)?)$"
only_known_names() { # CACHE
  local unknown
  unknown=$(cd "$1" && find . ! -type d -printf '%P\n' | grep -vE "$KNOWN") || return 0
  fail "unknown files in the cache directory: $unknown"
}

blobs_match_their_digests() { # DIRECTORY
  local wrong
  wrong=$(find "$1/blobs" -type f ! -name '*.part' -exec sha256sum {} + 2>/dev/null |
    awk '{ count = split($2, path, "/"); if ($1 != path[count]) print $2 }')
  equal "blobs that do not match their digests" "" "$wrong"
}

layout_is_valid() { # DIRECTORY
  jq -e '.imageLayoutVersion == "1.0.0"' "$1/oci-layout" >/dev/null || fail "oci-layout: '$(cat "$1/oci-layout")'"
  jq -e '.schemaVersion == 2' "$1/index.json" >/dev/null || fail "index.json: '$(head -c 300 "$1/index.json")'"
}

# Checks that verify finds no damage, and that its exit status matches its output. With `partial` it may find images that lack
# layers or platforms, because load names an image before it has fetched the layers.
verify_finds_no_damage() { # CACHE complete|partial
  local status=0 sum
  run_larder "$1" verify >"$OUTPUT" 2>&1 || status=$?
  sum=$(grep -xE '[0-9]+ images?, [0-9]+ incomplete; 0 damaged blobs' "$OUTPUT") || fail "verify: $(cat "$OUTPUT")"
  if grep -vE '^larder: |^[^ ]+: (.* missing in [0-9]+ blobs?, first .*|no platform is cached)$' "$OUTPUT" |
    grep -vxF "$sum"; then
    fail "verify finds damage: $(cat "$OUTPUT")"
  fi
  case $sum in
    *", 0 incomplete"*) equal "verify's exit code if all images are complete" 0 "$status" ;;
    *)
      equal "incomplete images after $2" partial "$2"
      equal "verify's exit code if an image is incomplete" 1 "$status"
      ;;
  esac
  absent "a quarantine" "$1/quarantine"
}

cache_is_valid() { # CACHE complete|partial
  [[ -d $1 ]] || return 0
  only_known_names "$1"
  [[ -d $1/blobs ]] && blobs_match_their_digests "$1"
  # Killed before it created the cache.
  [[ -e $1/index.json ]] || return 0
  layout_is_valid "$1"
  verify_finds_no_damage "$1" "$2"
}

cache_is_complete() { # CACHE
  verify_finds_no_damage "$1" complete
  equal "the images" "$(printf '%s true\n' "${IMAGES[@]}" | LC_ALL=C sort)" \
    "$(run_larder "$1" list --json | jq -r '.[] | "\(.image) \(.complete)"' | LC_ALL=C sort)"
  equal "the images in index.json" "$(printf '%s\n' "${IMAGES[@]}" | LC_ALL=C sort)" \
    "$(jq -r '.manifests[].annotations["org.opencontainers.image.ref.name"]' "$1/index.json" | LC_ALL=C sort)"
  equal "unfinished downloads and imports" "" \
    "$(find "$1/incoming" "$1/partials" -name 'spool-*' -o -name "sha256-*")"
  only_known_names "$1"
}

# ---- Killing -----------------------------------------------------------------------------------------------------------

# Starts larder COMMAND and kills it after a random time of at most MICROSECONDS. Sets KILLED_WITH to its exit status, 137 if it
# was killed.
KILLED_WITH=
start_and_kill() { # MICROSECONDS CACHE COMMAND…
  local delay=$((SRANDOM % $1 + 1)) cache=$2 pid
  shift 2
  "${OFFLINE[@]}" "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$cache" --log-level error "$@" \
    >"$OUTPUT" 2>&1 &
  pid=$!
  sleep "$((delay / 1000000)).$(printf %06d $((delay % 1000000)))"
  kill -s KILL "$pid" 2>/dev/null || true
  KILLED_WITH=0
  wait "$pid" 2>/dev/null || KILLED_WITH=$?
  [[ $KILLED_WITH == 0 || $KILLED_WITH == 137 ]] || fail "status $KILLED_WITH of larder $*: $(cat "$OUTPUT")"
}

# Sets TOOK to how long a command takes, in microseconds.
TOOK=
timed() { # COMMAND…
  local began=${EPOCHREALTIME/./}
  "$@"
  TOOK=$((${EPOCHREALTIME/./} - began))
}

# Runs rounds of BEFORE, a command that is killed, and AFTER, until a limit is reached.
kill_repeatedly() { # NAME MICROSECONDS BEFORE AFTER CACHE COMMAND…
  local name=$1 took=$2 before=$3 after=$4 round kills=0 deadline=$((SECONDS + SECONDS_EACH))
  shift 4
  for ((round = 0; round < ROUNDS_MAX && (SECONDS < deadline || (kills < KILLS_MIN && SECONDS < deadline + 60)); round++)); do
    "$before" "$round"
    start_and_kill "$took" "$@"
    if [[ $KILLED_WITH == 137 ]]; then
      kills=$((kills + 1))
    else
      # The machine is faster than when the time was measured.
      took=$((took * 3 / 4 + 1))
    fi
    "$after"
  done
  printf '%s: %s rounds, %s kills within %s us\n' "$name" "$round" "$kills" "$took"
  ((kills >= KILLS_MIN)) || fail "only $kills of $round rounds of $name were killed while they ran"
}

clear_cache_sometimes() { # ROUND
  if (($1 % FRESH_EVERY == 0)) || [[ $KILLED_WITH == 0 ]]; then rm -rf -- "$LARDER_CACHE"; fi
}

# ---- load --------------------------------------------------------------------------------------------------------------

step "load without kills, to measure its time and check its result"
# Load once before, so that the files of the registry are in the page cache.
run_larder "$CASE_DIR/first" load --quiet "${IMAGES[@]}"
timed run_larder "$SOUND" load --quiet "${IMAGES[@]}"
cache_is_complete "$SOUND"

step "kill load"
after_load() { cache_is_valid "$LARDER_CACHE" partial; }
kill_repeatedly load "$TOOK" clear_cache_sometimes after_load "$LARDER_CACHE" load --quiet "${IMAGES[@]}"
run_larder "$LARDER_CACHE" load --quiet "${IMAGES[@]}"
cache_is_complete "$LARDER_CACHE"
blobs_match_their_digests "$LARDER_CACHE"

# ---- import --------------------------------------------------------------------------------------------------------------

step "kill import"
registry_stop
run_larder "$SOUND" export --all --output "$BUNDLE"
rm -rf -- "$LARDER_CACHE"
timed run_larder "$LARDER_CACHE" import "$BUNDLE"
cache_is_complete "$LARDER_CACHE"
after_import() { cache_is_valid "$LARDER_CACHE" complete; }
kill_repeatedly import "$TOOK" clear_cache_sometimes after_import "$LARDER_CACHE" import "$BUNDLE"
run_larder "$LARDER_CACHE" import "$BUNDLE"
cache_is_complete "$LARDER_CACHE"
blobs_match_their_digests "$LARDER_CACHE"

# ---- export --------------------------------------------------------------------------------------------------------------

step "kill export to a file"
mkdir -p "$OUT"
timed run_larder "$SOUND" export --all --output "$OUT/images.tar"
same_bytes "two exports" "$BUNDLE" "$OUT/images.tar"
no_file() { if (($1 % FRESH_EVERY == 0)); then rm -f -- "$OUT"/*; else rm -f -- "$OUT/images.tar"; fi; }
file_is_complete_or_absent() {
  [[ ! -e $OUT/images.tar ]] || same_bytes "the export with its final name" "$BUNDLE" "$OUT/images.tar"
  equal "other files" "" "$(find "$OUT" -type f ! -name images.tar ! -name images.tar.part)"
}
kill_repeatedly "export to a file" "$TOOK" no_file file_is_complete_or_absent "$SOUND" export --all --output "$OUT/images.tar"
run_larder "$SOUND" export --all --output "$OUT/images.tar"
same_bytes "the last export" "$BUNDLE" "$OUT/images.tar"
equal "the files in the directory" images.tar "$(ls "$OUT")"

step "kill export to a directory"
rm -rf -- "$OUT"
timed run_larder "$SOUND" export --all --output "$OUT/"
cp -a -- "$OUT" "$CASE_DIR/expected"
no_directory() { if (($1 % FRESH_EVERY == 0)) || [[ $KILLED_WITH == 0 ]]; then rm -rf -- "$OUT"; fi; }
directory_is_complete_or_no_layout() {
  [[ -d $OUT ]] || return 0
  [[ ! -d $OUT/blobs ]] || blobs_match_their_digests "$OUT"
  [[ ! -e $OUT/oci-layout ]] || jq -e '.imageLayoutVersion == "1.0.0"' "$OUT/oci-layout" >/dev/null ||
    fail "oci-layout: '$(cat "$OUT/oci-layout")'"
  # The directory is a layout only with index.json, and then it must be complete.
  [[ ! -e $OUT/index.json ]] || same_tree "the layout with index.json" "$CASE_DIR/expected" "$OUT"
}
kill_repeatedly "export to a directory" "$TOOK" no_directory directory_is_complete_or_no_layout "$SOUND" export --all --output "$OUT/"
run_larder "$SOUND" export --all --output "$OUT/"
same_tree "the last layout" "$CASE_DIR/expected" "$OUT"
cache_is_complete "$SOUND"
