# Proves that the chart warns of several pods with separate caches, which make an outage worse: a node port distributes requests
# among pods of which only some have an image.
# shellcheck shell=bash

if helm_install --set replicaCount=2; then
  grep -qi 'replicaCount' "$SCRATCH/notes" || fail "two pods with an emptyDir each were installed, and the notes do not warn: $(cat "$SCRATCH/notes")"
else
  grep -q replicaCount "$SCRATCH/helm-error" || fail "helm: $(cat "$SCRATCH/helm-error")"
fi
step "two pods on a shared volume are accepted without a warning"
kubectl delete namespace "$NAMESPACE" --ignore-not-found >/dev/null
shared_volume "$SCRATCH/images"
larder_install "${ON_SHARED_VOLUME[@]}" "${SPREAD[@]}"
! grep -q replicaCount "$SCRATCH/notes" || fail "the notes warn: $(grep replicaCount "$SCRATCH/notes")"
