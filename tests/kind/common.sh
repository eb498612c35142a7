# Shared by up, test and down: names, required commands, waits with a limit. All objects are named larder-e2e, kubectl and helm
# use a separate kubeconfig, and no other configuration of the machine is read or changed.
# shellcheck shell=bash disable=SC2034  # the scripts use the names

set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$ROOT"
# The script that sourced this file, for messages.
SELF=tests/kind/$(basename -- "$0")
readonly ROOT SELF

readonly CLUSTER=larder-e2e REGISTRY=larder-e2e-registry NAMESPACE=larder
readonly WORK=$ROOT/target/kind
readonly SCRATCH=$WORK
readonly CLUSTER_ACCESS=$WORK/kubeconfig
readonly IMAGE_TAR=$ROOT/target/larder-image.tar
readonly CONTROL_PLANE=$CLUSTER-control-plane WORKER_ONE=$CLUSTER-worker WORKER_TWO=$CLUSTER-worker2
# A registry in a container that acts as the public one. The pods run its image too.
readonly REGISTRY_IMAGE=${LARDER_KIND_REGISTRY_IMAGE:-docker.io/library/registry:2}
# `.test` does not exist on the Internet, so images that Larder does not have cannot be pulled.
readonly PUBLIC=public.test APP=demo/app OTHER=demo/other TAG=v1
# Must match values.yaml.
readonly METRICS_PORT=9091

# In seconds. Creating a cluster pulls an image of 400 MB if it is not cached; everything else is local.
readonly PULL_LIMIT=900 CLUSTER_LIMIT=600 READY_LIMIT=180 COMMAND_LIMIT=120

# Use Docker, whatever other provider kind would detect.
export KIND_EXPERIMENTAL_PROVIDER=docker

step() { printf -- '-- %s\n' "$*"; }

fail() {
  printf '%s: FAILED: %s\n' "$SELF" "$*" >&2
  exit 1
}

CHECK_PAUSE=1
# shellcheck source=tests/checks.sh
. "$ROOT/tests/checks.sh"

# Reports missing commands, and how to install them.
need() { # COMMAND…
  local command missing=()
  for command in "$@"; do
    type -P "$command" >/dev/null || missing+=("$command")
  done
  if ((${#missing[@]} > 0)); then
    printf '%s: missing: %s\n' "$SELF" "${missing[*]}" >&2
    for command in "${missing[@]}"; do
      case $command in
        docker) echo '  docker   Docker Engine: https://docs.docker.com/engine/install/, or apt-get install docker.io' ;;
        kind) echo '  kind     go install sigs.k8s.io/kind@v0.33.0' ;;
        helm) echo '  helm     go install helm.sh/helm/v3/cmd/helm@v3.17.3' ;;
        kubectl) echo '  kubectl  https://kubernetes.io/docs/tasks/tools/' ;;
        *) printf '  %-8s apt-get install --no-install-recommends %s\n' "$command" "$command" ;;
      esac
    done >&2
    exit 3
  fi
}

need_docker() {
  need docker "$@"
  timeout "$COMMAND_LIMIT" docker info >"$WORK/docker-info" 2>&1 || {
    printf '%s: docker cannot connect to an engine: %s\n' "$SELF" "$(tail -n 1 "$WORK/docker-info")" >&2
    exit 3
  }
}

cluster_exists() { kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; }
container_exists() { [[ -n $(docker ps --all --quiet --filter "name=^$1\$") ]]; }

kubectl_() { timeout "$COMMAND_LIMIT" kubectl --kubeconfig "$CLUSTER_ACCESS" --context "kind-$CLUSTER" "$@"; }
# Waits longer, with the limit in kubectl.
kubectl_wait() { # WHAT COMMAND…
  local what=$1
  shift
  kubectl --kubeconfig "$CLUSTER_ACCESS" --context "kind-$CLUSTER" "$@" --timeout "${READY_LIMIT}s" || fail "not within $READY_LIMIT s: $what"
}

mkdir -p "$WORK"
