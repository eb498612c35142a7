# What must be true of larder's access log and of its metrics once a registry is gone: for tests/kind/test, whose nodes are
# kind's, and for tests/e2e/cases/two-nodes.sh, whose nodes are two containerds. A log is a file with the lines in question, and
# metrics are a file with what /metrics answered. Who sources it has `fail`, which says why and ends.
# shellcheck shell=bash

# Adds up the series of a metric whose labels match REGEX; 0 if there are none. Counters without labels have no braces.
metric() { # METRICS NAME [REGEX]
  awk -v name="$2" -v labels="${3:-}" '
    { at = match($0, /[{ ]/); series = substr($0, 1, at - 1) }
    series == name && $0 ~ labels { sum += $NF }
    END { printf "%d\n", sum }' "$1"
}

# The access lines of a repository's manifests or blobs, as containerd asks for them.
lines_of() { # LOG REGISTRY REPOSITORY KIND
  grep -E -- "(GET|HEAD):/v2/$3/$4/[^ ]*[?&]ns=$2[ &]" "$1" || true
}

# At least one line of LINES matches REGEX.
some_line() { # WHAT REGEX LINES
  grep -qE -- "$2" <<<"$3" || fail "$1: no line matches '$2' in: $3"
}

# Every line matches it, and there is one.
every_line() { # WHAT REGEX LINES
  local others
  [[ -n $3 ]] || fail "$1: there is no such line"
  others=$(grep -vE -- "$2" <<<"$3") || return 0
  fail "$1: these lines do not match '$2': $others"
}

# A node that had nothing of the image pulled it through larder, which asked the registry for it. Blobs may be hits: larder
# fetches them as soon as it has their manifest.
pulled_through() { # LOG REGISTRY REPOSITORY
  some_line "$2/$3, its manifest" ' status=200 .* cache=(miss|join)( |$)' "$(lines_of "$1" "$2" "$3" manifests)"
  every_line "$2/$3, its blobs" ' status=200 .* cache=(miss|join|hit)( |$)' "$(lines_of "$1" "$2" "$3" blobs)"
}

# A node that had nothing of the image pulled it, and everything was here. A tag that could not be confirmed any more is stale.
came_from_cache() { # LOG REGISTRY REPOSITORY
  every_line "$2/$3, its manifest" ' status=200 .* cache=(hit|stale)( |$)' "$(lines_of "$1" "$2" "$3" manifests)"
  every_line "$2/$3, its blobs" ' status=200 .* cache=hit( |$)' "$(lines_of "$1" "$2" "$3" blobs)"
}

# Between the two, clients were answered, and not with anything that came from a registry.
registries_gave_nothing() { # METRICS_BEFORE METRICS_AFTER
  local what before after
  for what in 'larder_upstream_requests_total outcome="ok"' 'larder_fetched_bytes_total ' 'larder_downloads_total ' \
    'larder_answers_total how="(miss|join|bypass)"'; do
    before=$(metric "$1" "${what%% *}" "${what#* }")
    after=$(metric "$2" "${what%% *}" "${what#* }")
    ((after == before)) || fail "${what% } was $before and is $after: something came from a registry"
  done
  for what in 'kind="manifest",how="(hit|stale)"' 'kind="blob",how="hit"'; do
    before=$(metric "$1" larder_answers_total "$what")
    after=$(metric "$2" larder_answers_total "$what")
    ((after > before)) || fail "larder_answers_total{$what} was $before and is $after: nothing was answered from the cache"
  done
}
