# The registry in the hub that acts as the public one, and the images in it. Sourced after common.sh.
# shellcheck shell=bash

# Pods reach it as http://public.test:5000 (values.yaml).
readonly REGISTRY_ADDRESS=http://$HUB:5000

registry_start() {
  cat >"$WORK/registry.yml" <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: $WORK/registry}, delete: {enabled: true}, maintenance: {uploadpurging: {enabled: false}}}
http: {addr: "$HUB:5000", secret: cluster}
YAML
  start registry hub env OTEL_TRACES_EXPORTER=none docker-registry serve "$WORK/registry.yml"
  wait_until 20 "a response from the registry" registry_answers
}
registry_stop() { stop registry; }
registry_answers() { hub curl -fsS --max-time 2 "$REGISTRY_ADDRESS/v2/"; }

# Counts the requests to the registry that match REGEX ("GET /v2/…").
registry_requests() { # REGEX
  grep -cE -- "\"$1" "$LOGS/registry.log" || true
}

digest_of() { printf 'sha256:%s\n' "$(sha256sum <"$1" | cut -d ' ' -f 1)"; } # FILE

# Moves a file into an image layout, and prints its descriptor.
blob_of() { # LAYOUT FILE MEDIA_TYPE
  local digest
  digest=$(digest_of "$2")
  jq -nc --arg digest "$digest" --arg type "$3" --argjson size "$(stat -c %s "$2")" '{mediaType: $type, digest: $digest, size: $size}'
  mv "$2" "$1/blobs/sha256/${digest#sha256:}"
}

# Writes an image layout to WORK/layout: one layer with a program, and one of random bytes for each number of MEGABYTES. Each
# image is different from all others. `pause` is the program of pod sandboxes, `app` an HTTP server on port 5000.
image_layout() { # pause|app NAME [MEGABYTES…]
  local layout=$WORK/layout root=$WORK/image/root temporary=$WORK/image layers=() entrypoint config size name
  rm -rf "$layout" "$temporary"
  mkdir -p "$layout/blobs/sha256" "$root"/{bin,etc,tmp}
  # Random bytes do not compress, so layers are plain tars, whose digests are those of their content.
  layer() {
    tar -C "$root" --sort=name --owner=0 --group=0 --mtime=@0 -cf "$temporary/layer" .
    layers+=("$(blob_of "$layout" "$temporary/layer" application/vnd.oci.image.layer.v1.tar)")
    rm -rf "$root"
    mkdir "$root"
  }
  case $1 in
    pause)
      gcc -static -Os -s -o "$root/pause" -x c - <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, end);
  signal(SIGTERM, end);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
C
      entrypoint='["/pause"]'
      ;;
    app)
      cp "$(type -P busybox)" "$root/bin/busybox"
      for name in sh httpd; do ln -s busybox "$root/bin/$name"; done
      echo "root:x:0:0::/:/bin/sh" >"$root/etc/passwd"
      entrypoint='["/bin/httpd", "-f", "-p", "5000"]'
      ;;
  esac
  printf '%s %s\n' "$2" "$(head -c 9 /dev/urandom | base64)" >"$root/name"
  layer
  for size in "${@:3}"; do
    head -c "${size}M" /dev/urandom >"$root/data"
    layer
  done
  printf '%s\n' "${layers[@]}" | jq -sc --argjson entrypoint "$entrypoint" '{architecture: "amd64", os: "linux",
    config: {Entrypoint: $entrypoint, Env: ["PATH=/bin"]}, rootfs: {type: "layers", diff_ids: [.[].digest]}}' >"$temporary/config"
  config=$(blob_of "$layout" "$temporary/config" application/vnd.oci.image.config.v1+json)
  printf '%s\n' "${layers[@]}" | jq -sc --argjson config "$config" \
    '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: .}' >"$temporary/manifest"
  blob_of "$layout" "$temporary/manifest" application/vnd.oci.image.manifest.v1+json |
    jq -c '{schemaVersion: 2, manifests: [.]}' >"$layout/index.json"
  printf '{"imageLayoutVersion": "1.0.0"}' >"$layout/oci-layout"
  rm -rf "$temporary"
}

# Pushes a new image to the registry.
image_push() { # REPOSITORY:TAG [MEGABYTES…]
  image_layout app "$@"
  hub skopeo copy --quiet --insecure-policy --preserve-digests --dest-tls-verify=false "oci:$WORK/layout" "docker://$HUB:5000/$1"
  rm -rf "$WORK/layout"
}

# Writes the sandbox image, which no registry has, to FILE.
pause_archive() { # FILE
  image_layout pause "pause:$PAUSE_VERSION"
  rm -f "$1"
  skopeo copy --quiet --insecure-policy "oci:$WORK/layout" "docker-archive:$1:registry.k8s.io/pause:$PAUSE_VERSION"
  rm -rf "$WORK/layout"
}
