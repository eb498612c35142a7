# Checks that nodes pull through larder, and that they need no registry once it has an image. Used by tests/kind/test, whose
# nodes are in a kind cluster, by tests/cluster, whose nodes are namespaces, and by tests/e2e/cases/two-nodes.sh, whose nodes are
# two containerds. LOG is a file with the lines to check, METRICS a file with the response of /metrics. The script that sources
# this file defines `fail`, and for the last two functions:
#
#   SCRATCH             a directory for files
#   has_no_image NODE   fails if the node has the image already
#   pod_runs NODE POD   starts a pod, and returns when its program runs
#   log_from_here       `log_to FILE` writes larder's log from here on
#   metrics_to FILE     writes the response of /metrics
# shellcheck shell=bash

# Prints the sum of the series of a metric whose labels match REGEX, 0 if there are none. Counters without labels have no braces.
metric() { # METRICS NAME [REGEX]
  awk -v name="$2" -v labels="${3:-}" '
    { at = match($0, /[{ ]/); series = substr($0, 1, at - 1) }
    series == name && $0 ~ labels { sum += $NF }
    END { printf "%d\n", sum }' "$1"
}

# Prints the log lines of containerd's requests for the manifests or blobs of a repository.
lines_of() { # LOG REGISTRY REPOSITORY KIND
  grep -E -- "(GET|HEAD):/v2/$3/$4/[^ ]*[?&]ns=$2[ &]" "$1" || true
}

# At least one of LINES must match REGEX.
some_line() { # WHAT REGEX LINES
  grep -qE -- "$2" <<<"$3" || fail "$1: no line matches '$2' in: $3"
}

# There must be at least one line, and all must match.
every_line() { # WHAT REGEX LINES
  local others
  [[ -n $3 ]] || fail "$1: there are no lines"
  others=$(grep -vE -- "$2" <<<"$3") || return 0
  fail "$1: these lines do not match '$2': $others"
}

# A node without the image pulled it through larder, which fetched it from the registry. Blobs may be hits, because larder
# prefetches them once it has the manifest.
pulled_through() { # LOG REGISTRY REPOSITORY
  some_line "the manifest of $2/$3" ' status=200 .* cache=(miss|join)( |$)' "$(lines_of "$1" "$2" "$3" manifests)"
  every_line "the blobs of $2/$3" ' status=200 .* cache=(miss|join|hit)( |$)' "$(lines_of "$1" "$2" "$3" blobs)"
}

# A node without the image pulled it, and larder served everything from the cache. Expired tags that larder could not confirm
# are stale.
was_cached() { # LOG REGISTRY REPOSITORY
  every_line "the manifest of $2/$3" ' status=200 .* cache=(hit|stale)( |$)' "$(lines_of "$1" "$2" "$3" manifests)"
  every_line "the blobs of $2/$3" ' status=200 .* cache=hit( |$)' "$(lines_of "$1" "$2" "$3" blobs)"
}

# Between the two, larder served clients without fetching anything from a registry.
nothing_was_fetched() { # METRICS_BEFORE METRICS_AFTER
  local what before after
  for what in 'larder_upstream_requests_total outcome="ok"' 'larder_fetched_bytes_total ' 'larder_downloads_total ' \
    'larder_answers_total how="(miss|join|bypass)"'; do
    before=$(metric "$1" "${what%% *}" "${what#* }")
    after=$(metric "$2" "${what%% *}" "${what#* }")
    ((after == before)) || fail "${what% } was $before and is $after: larder fetched content from a registry"
  done
  for what in 'kind="manifest",how="(hit|stale)"' 'kind="blob",how="hit"'; do
    before=$(metric "$1" larder_answers_total "$what")
    after=$(metric "$2" larder_answers_total "$what")
    ((after > before)) || fail "larder_answers_total{$what} was $before and is $after: larder served nothing from the cache"
  done
}

# A node that has no image starts a pod. Larder fetches the images from their registries.
first_node_pulls() { # NODE POD REGISTRY/REPOSITORY…
  local image
  has_no_image "$1"
  log_from_here
  pod_runs "$1" "$2"
  log_to "$SCRATCH/log"
  metrics_to "$SCRATCH/metrics"
  for image in "${@:3}"; do
    pulled_through "$SCRATCH/log" "${image%%/*}" "${image#*/}"
    (($(metric "$SCRATCH/metrics" larder_answers_total "how=\"miss\",registry=\"${image%%/*}\"") > 0)) ||
      fail "the metrics count no misses of ${image%%/*}"
  done
  (($(metric "$SCRATCH/metrics" larder_upstream_requests_total 'outcome="ok"') > 0)) || fail "the metrics count no requests to registries"
  # An image has at least a config and a layer.
  (($(metric "$SCRATCH/metrics" larder_downloads_total 'outcome="done"') >= 2 * ($# - 2))) || fail "the metrics count too few downloads"
}

# The registries are gone, and a node that has no image starts a pod. Larder serves everything from the cache.
other_node_starts() { # NODE POD REGISTRY/REPOSITORY…
  local image
  has_no_image "$1"
  log_from_here
  metrics_to "$SCRATCH/before"
  pod_runs "$1" "$2"
  log_to "$SCRATCH/log"
  for image in "${@:3}"; do was_cached "$SCRATCH/log" "${image%%/*}" "${image#*/}"; done
  metrics_to "$SCRATCH/after"
  nothing_was_fetched "$SCRATCH/before" "$SCRATCH/after"
}
