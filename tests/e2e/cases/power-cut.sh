# Proves that load, import and export may be killed at any moment: kill -9 after random delays, into fresh and half-filled
# caches, hundreds of times. No blob has other bytes than its name says, no name leads to a manifest that is not there, an
# import has named only what is whole, an export has its final name only when it is the whole one; and whoever repeats the
# command undisturbed has everything.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# For each of the commands; a busy machine makes fewer rounds of it.
readonly SECONDS_EACH=9 ROUNDS_MAX=150
# With fewer kills in mid-work nothing is proved.
readonly KILLS_MIN=5
# Every so many rounds begin with an empty cache, the others with what was left.
readonly FRESH_EVERY=3
readonly IMAGES=(docker.io/library/hello:v1 docker.io/demo/hello:v1 docker.io/demo/hello:v2 docker.io/demo/multi:v1
  docker.io/demo/big:v1)
readonly OUT="$CASE_DIR/out" SOUND="$CASE_DIR/sound" SAID="$CASE_DIR/said" BUNDLE="$CASE_DIR/bundle.tar"

registry_start
larder_config "127.0.0.1:$REGISTRY_PORT"
run_larder() { # CACHE ARGUMENT…
  local cache=$1
  shift
  client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$cache" --log-level error "$@"
}

# ---- What must be true of a cache at any time ------------------------------------------------------------------------------

# Below the cache directory, what is no directory.
readonly HEX='[0-9a-f]{64}'
readonly KNOWN="^(oci-layout|index\.json|blobs/sha256/$HEX|refs/[^_]+/_tags/[^/]+|refs/[^_]+/_manifests/sha256/$HEX|\
lists/$HEX-$HEX|incoming/((sweep|sweep-gate|bundle|index|prune|usage|pins)\.lock|(tmp|spool-tmp)-[0-9-]+)|\
partials/[^/]+/sha256-$HEX(\.json)?)$"
only_known_names() { # CACHE
  local unknown
  unknown=$(cd "$1" && find . ! -type d -printf '%P\n' | grep -vE "$KNOWN") || return 0
  fail "unknown below the cache directory: $unknown"
}

blobs_are_what_they_say() { # DIRECTORY
  local wrong
  wrong=$(find "$1/blobs" -type f ! -name '*.part' -exec sha256sum {} + 2>/dev/null |
    awk '{ count = split($2, path, "/"); if ($1 != path[count]) print $2 }')
  equal "blobs with other bytes than their names say" "" "$wrong"
}

layout_is_valid() { # DIRECTORY
  jq -e '.imageLayoutVersion == "1.0.0"' "$1/oci-layout" >/dev/null || fail "oci-layout: '$(cat "$1/oci-layout")'"
  jq -e '.schemaVersion == 2' "$1/index.json" >/dev/null || fail "index.json: '$(head -c 300 "$1/index.json")'"
}

# What verify says and how it ends agree, and it finds images that lack layers or platforms, if at all: who was killed while
# it loaded has named an image whose layers were still to come.
verify_finds_no_damage() { # CACHE whole|partial
  local status=0 sum
  run_larder "$1" verify >"$SAID" 2>&1 || status=$?
  sum=$(grep -xE '[0-9]+ images?, [0-9]+ incomplete; 0 damaged blobs' "$SAID") || fail "verify: $(cat "$SAID")"
  if grep -vE '^larder: |^[^ ]+: (.* missing in [0-9]+ blobs?, first .*|no platform is cached)$' "$SAID" |
    grep -vxF "$sum"; then
    fail "verify finds damage: $(cat "$SAID")"
  fi
  case $sum in
    *", 0 incomplete"*) equal "verify's exit code where all is whole" 0 "$status" ;;
    *)
      equal "what is not whole after $2" partial "$2"
      equal "verify's exit code where something is not whole" 1 "$status"
      ;;
  esac
  absent "a quarantine" "$1/quarantine"
}

cache_is_right() { # CACHE whole|partial
  [[ -d $1 ]] || return 0
  only_known_names "$1"
  [[ -d $1/blobs ]] && blobs_are_what_they_say "$1"
  # Killed before there was a cache at all.
  [[ -e $1/index.json ]] || return 0
  layout_is_valid "$1"
  verify_finds_no_damage "$1" "$2"
}

cache_is_complete() { # CACHE
  verify_finds_no_damage "$1" whole
  equal "the images" "$(printf '%s true\n' "${IMAGES[@]}" | LC_ALL=C sort)" \
    "$(run_larder "$1" list --json | jq -r '.[] | "\(.image) \(.complete)"' | LC_ALL=C sort)"
  equal "the images in index.json" "$(printf '%s\n' "${IMAGES[@]}" | LC_ALL=C sort)" \
    "$(jq -r '.manifests[].annotations["org.opencontainers.image.ref.name"]' "$1/index.json" | LC_ALL=C sort)"
  equal "downloads and imports that are unfinished" "" \
    "$(find "$1/incoming" "$1/partials" -name 'spool-*' -o -name "sha256-*")"
  only_known_names "$1"
}

# ---- Killing -----------------------------------------------------------------------------------------------------------

# Starts the COMMAND of larder and kills it after a random part of the MICROSECONDS that it takes undisturbed. Its exit status
# is in KILLED_WITH: 137 if it was killed.
KILLED_WITH=
cut_off() { # MICROSECONDS CACHE COMMAND…
  local delay=$((SRANDOM % $1 + 1)) cache=$2 pid
  shift 2
  "${OFFLINE[@]}" "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$cache" --log-level error "$@" \
    >"$SAID" 2>&1 &
  pid=$!
  sleep "$((delay / 1000000)).$(printf %06d $((delay % 1000000)))"
  kill -s KILL "$pid" 2>/dev/null || true
  KILLED_WITH=0
  wait "$pid" 2>/dev/null || KILLED_WITH=$?
  [[ $KILLED_WITH == 0 || $KILLED_WITH == 137 ]] || fail "status $KILLED_WITH of larder $*: $(cat "$SAID")"
}

# Leaves how long a command takes in TOOK, in microseconds.
TOOK=
timed() { # COMMAND…
  local began=${EPOCHREALTIME/./}
  "$@"
  TOOK=$((${EPOCHREALTIME/./} - began))
}

# Rounds of BEFORE, a command that is killed, AFTER, until time or rounds are up.
cut_off_often() { # NAME MICROSECONDS BEFORE AFTER CACHE COMMAND…
  local name=$1 took=$2 before=$3 after=$4 round kills=0 deadline=$((SECONDS + SECONDS_EACH))
  shift 4
  for ((round = 0; round < ROUNDS_MAX && SECONDS < deadline; round++)); do
    "$before" "$round"
    cut_off "$took" "$@"
    if [[ $KILLED_WITH == 137 ]]; then kills=$((kills + 1)); fi
    "$after"
  done
  printf '%s: %s rounds, %s kills within %s us\n' "$name" "$round" "$kills" "$took"
  ((kills >= KILLS_MIN)) || fail "only $kills of $round rounds of $name were killed in mid-work"
}

forget_at_times() { # ROUND
  if (($1 % FRESH_EVERY == 0)) || [[ $KILLED_WITH == 0 ]]; then rm -rf -- "$LARDER_CACHE"; fi
}

# ---- load --------------------------------------------------------------------------------------------------------------

step "undisturbed, for its time and for what has to come of it"
# Once before, so that the registry has read its files.
run_larder "$CASE_DIR/first" load --quiet "${IMAGES[@]}"
timed run_larder "$SOUND" load --quiet "${IMAGES[@]}"
cache_is_complete "$SOUND"

step "load, killed"
after_load() { cache_is_right "$LARDER_CACHE" partial; }
cut_off_often load "$TOOK" forget_at_times after_load "$LARDER_CACHE" load --quiet "${IMAGES[@]}"
run_larder "$LARDER_CACHE" load --quiet "${IMAGES[@]}"
cache_is_complete "$LARDER_CACHE"
blobs_are_what_they_say "$LARDER_CACHE"

# ---- import --------------------------------------------------------------------------------------------------------------

step "import, killed"
registry_stop
run_larder "$SOUND" export --all --output "$BUNDLE"
rm -rf -- "$LARDER_CACHE"
timed run_larder "$LARDER_CACHE" import "$BUNDLE"
cache_is_complete "$LARDER_CACHE"
after_import() { cache_is_right "$LARDER_CACHE" whole; }
cut_off_often import "$TOOK" forget_at_times after_import "$LARDER_CACHE" import "$BUNDLE"
run_larder "$LARDER_CACHE" import "$BUNDLE"
cache_is_complete "$LARDER_CACHE"
blobs_are_what_they_say "$LARDER_CACHE"

# ---- export --------------------------------------------------------------------------------------------------------------

step "export to a file, killed"
mkdir -p "$OUT"
timed run_larder "$SOUND" export --all --output "$OUT/images.tar"
same_bytes "one export and another" "$BUNDLE" "$OUT/images.tar"
no_file() { if (($1 % FRESH_EVERY == 0)); then rm -f -- "$OUT"/*; else rm -f -- "$OUT/images.tar"; fi; }
file_is_whole_or_absent() {
  [[ ! -e $OUT/images.tar ]] || same_bytes "the export that has its name" "$BUNDLE" "$OUT/images.tar"
  equal "what else is there" "" "$(find "$OUT" -type f ! -name images.tar ! -name images.tar.part)"
}
cut_off_often "export to a file" "$TOOK" no_file file_is_whole_or_absent "$SOUND" export --all --output "$OUT/images.tar"
run_larder "$SOUND" export --all --output "$OUT/images.tar"
same_bytes "the export in the end" "$BUNDLE" "$OUT/images.tar"
equal "what is in the directory" images.tar "$(ls "$OUT")"

step "export to a directory, killed"
rm -rf -- "$OUT"
timed run_larder "$SOUND" export --all --output "$OUT/"
cp -a -- "$OUT" "$CASE_DIR/expected"
no_directory() { if (($1 % FRESH_EVERY == 0)) || [[ $KILLED_WITH == 0 ]]; then rm -rf -- "$OUT"; fi; }
directory_is_whole_or_no_layout() {
  [[ -d $OUT ]] || return 0
  [[ ! -d $OUT/blobs ]] || blobs_are_what_they_say "$OUT"
  [[ ! -e $OUT/oci-layout ]] || jq -e '.imageLayoutVersion == "1.0.0"' "$OUT/oci-layout" >/dev/null ||
    fail "oci-layout: '$(cat "$OUT/oci-layout")'"
  # Without it there is no layout; with it all must be there.
  [[ ! -e $OUT/index.json ]] || same_tree "the layout that has its index" "$CASE_DIR/expected" "$OUT"
}
cut_off_often "export to a directory" "$TOOK" no_directory directory_is_whole_or_no_layout "$SOUND" export --all --output "$OUT/"
run_larder "$SOUND" export --all --output "$OUT/"
same_tree "the layout in the end" "$CASE_DIR/expected" "$OUT"
cache_is_complete "$SOUND"
