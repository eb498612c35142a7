# Builds the sample images with buildah and pushes them to docker-registry. Every other case serves this storage, or a copy of
# it. Proves that the upstream works, before larder is involved.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly BIG_SIZE=$((64 * 1024 * 1024))
readonly BUILD="$CASE_DIR/build"
readonly STORE=(--storage-driver vfs --root "$CASE_DIR/containers" --runroot "$CASE_DIR/run")
mkdir -p "$BUILD" "$SAMPLES/registry"

buildah_() { client buildah "${STORE[@]}" "$@"; }

# Builds a `FROM scratch` image from the given files.
build() { # IMAGE ARCHITECTURE FILE…
  local image=$1 architecture=$2 context
  shift 2
  context=$(mktemp -d)
  cp -- "$@" "$context/"
  rm -f "$context/Containerfile"
  (cd "$context" && printf 'FROM scratch\n' && printf 'COPY ["%s", "/"]\n' * && printf 'ENTRYPOINT ["/hello"]\n') \
    >"$BUILD/Containerfile"
  buildah_ bud --isolation chroot --arch "$architecture" -f "$BUILD/Containerfile" -t "$image" "$context"
  rm -rf -- "$context"
}

push() { # IMAGE NAME [OPTION…]
  local image=$1 name=$2
  shift 2
  buildah_ push --signature-policy "$BUILD/policy.json" --tls-verify=false "$@" "$image" "docker://127.0.0.1:$REGISTRY_PORT/$name"
}

step "build a static program"
printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' >"$BUILD/policy.json"
printf '#include <stdio.h>\nint main(void) { puts("hello from the larder"); return 0; }\n' >"$BUILD/hello.c"
musl-gcc -static -Os -s -o "$BUILD/hello" "$BUILD/hello.c"
equal "the program's output" "hello from the larder" "$("$BUILD/hello")"
printf 'second version\n' >"$BUILD/note"
head -c "$BIG_SIZE" /dev/urandom >"$BUILD/big"

step "push demo/hello:v1 and v2, library/hello:v1, demo/big:v1, demo/multi:v1"
registry_start "$SAMPLES/registry"
build hello:v1 amd64 "$BUILD/hello"
build hello:v2 amd64 "$BUILD/hello" "$BUILD/note"
build hello:arm arm64 "$BUILD/note"
build big:v1 amd64 "$BUILD/big"
push hello:v1 demo/hello:v1
push hello:v2 demo/hello:v2
push hello:v1 library/hello:v1
push big:v1 demo/big:v1 --disable-compression
buildah_ manifest create multi:v1
buildah_ manifest add multi:v1 hello:v1
buildah_ manifest add multi:v1 hello:arm
buildah_ manifest push --signature-policy "$BUILD/policy.json" --tls-verify=false --all multi:v1 \
  "docker://127.0.0.1:$REGISTRY_PORT/demo/multi:v1"

step "write their digests to a file"
upstream() { printf 'http://127.0.0.1:%s/v2/%s' "$REGISTRY_PORT" "$1"; }
readonly ACCEPT='Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json'
manifest_facts() { # PREFIX REPOSITORY TAG
  get "$(upstream "$2/manifests/$3")" -H "$ACCEPT"
  expect_status "$2:$3" 200
  local digest
  digest=$(header Docker-Content-Digest)
  equal "the digest of $2:$3" "$digest" "sha256:$(sha256sum <"$BODY_FILE" | cut -d ' ' -f 1)"
  printf '%s_DIGEST=%s\n' "$1" "$digest"
  jq -r --arg prefix "$1" 'select(.layers) |
    "\($prefix)_CONFIG=\(.config.digest)", "\($prefix)_LAYER=\(.layers[-1].digest)",
    "\($prefix)_LAYER_SIZE=\(.layers[-1].size)"' "$BODY_FILE"
}
{
  manifest_facts HELLO demo/hello v1
  manifest_facts HELLO_V2 demo/hello v2
  manifest_facts BIG demo/big v1
  manifest_facts MULTI demo/multi v1
} >"$SAMPLES/facts.new"
mv "$SAMPLES/facts.new" "$SAMPLES/facts"
# shellcheck source=/dev/null
. "$SAMPLES/facts"
cat "$SAMPLES/facts"
((BIG_LAYER_SIZE > BIG_SIZE)) || fail "the big layer has only $BIG_LAYER_SIZE bytes"
registry_stop
