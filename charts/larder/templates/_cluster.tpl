{{/* What the release needs of the cluster: custom kinds, pods that share a cache, nodes that disappear, and pods on different nodes. */}}

{{/*
The enabled objects whose kinds come from custom resource definitions, as a map from kind to API version. A kind that the cluster does
not have would make the installation fail, so its object is left out, and NOTES.txt says so.
*/}}
{{- define "larder.customKinds" -}}
{{- $kinds := dict -}}
{{- if .Values.observability.enabled -}}
  {{- if .Values.observability.serviceMonitor.enabled -}}{{- $_ := set $kinds "ServiceMonitor" "monitoring.coreos.com/v1" -}}{{- end -}}
  {{- if .Values.observability.prometheusRule.enabled -}}{{- $_ := set $kinds "PrometheusRule" "monitoring.coreos.com/v1" -}}{{- end -}}
{{- end -}}
{{- if .Values.httpRoute.enabled -}}{{- $_ := set $kinds "HTTPRoute" "gateway.networking.k8s.io/v1" -}}{{- end -}}
{{- toYaml $kinds -}}
{{- end }}

{{/* Whether the object of a custom kind is created: enabled in the values, and known to the cluster. `root` is the root context. */}}
{{- define "larder.creates" -}}
{{- $version := get (include "larder.customKinds" .root | fromYaml) .kind -}}
{{- if and $version (.root.Capabilities.APIVersions.Has (printf "%s/%s" $version .kind)) }}yes{{ end -}}
{{- end }}

{{/* The enabled custom objects that are left out, e.g. "HTTPRoute (gateway.networking.k8s.io/v1)". */}}
{{- define "larder.leftOut" -}}
{{- $all := list -}}
{{- range $kind, $version := include "larder.customKinds" . | fromYaml -}}
  {{- if not ($.Capabilities.APIVersions.Has (printf "%s/%s" $version $kind)) -}}
  {{- $all = append $all (printf "%s (%s)" $kind $version) -}}
  {{- end -}}
{{- end -}}
{{- join ", " $all -}}
{{- end }}

{{/* The kind of the object that runs the server's pods. */}}
{{- define "larder.kind" -}}
{{- get (dict "deployment" "Deployment" "statefulset" "StatefulSet" "daemonset" "DaemonSet") .Values.mode -}}
{{- end }}

{{/* The value that limits the number of pods of a deployment or stateful set, and that number, as in "replicaCount: 2". */}}
{{- define "larder.replicaLimit" -}}
{{- ternary (printf "autoscaling.maxReplicas: %d" (int .Values.autoscaling.maxReplicas)) (printf "replicaCount: %d" (int .Values.replicaCount)) .Values.autoscaling.enabled -}}
{{- end }}

{{/* Whether the pods fetch from each other: by peers.enabled, or by peers of the configuration. */}}
{{- define "larder.hasPeers" -}}
{{- if or .Values.peers.enabled (get (include "larder.given" . | fromYaml) "peers") }}yes{{ end -}}
{{- end }}

{{/* Whether a deployment or stateful set may have several pods. An update of a deployment does not count. */}}
{{- define "larder.hasReplicas" -}}
{{- if and (ne .Values.mode "daemonset") (gt (regexFind "[0-9]+$" (include "larder.replicaLimit" .) | int) 1) }}yes{{ end -}}
{{- end }}

{{/* Whether the values bind the pods to one node. */}}
{{- define "larder.hasOneNode" -}}
{{- if hasKey (default dict .Values.nodeSelector) "kubernetes.io/hostname" }}yes{{ end -}}
{{- end }}

{{/*
Whether all pods use one directory, as far as the values show. An existing claim of several pods must be ReadWriteMany. The pods of a stateful
set have a claim each.
*/}}
{{- define "larder.sharesVolume" -}}
{{- $claim := .Values.persistence.persistentVolumeClaim -}}
{{- $hostPath := .Values.persistence.hostPath -}}
{{- if eq .Values.mode "statefulset" -}}
{{- else if $claim.enabled -}}
  {{- if or $claim.existingClaimName (has "ReadWriteMany" $claim.newClaimSpec.accessModes) }}yes{{ end -}}
{{- else if $hostPath.enabled -}}
  {{- if or $hostPath.shared (include "larder.hasOneNode" .) }}yes{{ end -}}
{{- end -}}
{{- end }}

{{/* Whether each node uses the pod that runs on it. */}}
{{- define "larder.isNodeLocal" -}}
{{- $local := and (eq .Values.service.type "ClusterIP") (eq (default "" .Values.service.internalTrafficPolicy) "Local") -}}
{{- if and (eq .Values.mode "daemonset") (or .Values.daemonset.hostPort.enabled .Values.daemonset.hostNetwork $local) }}yes{{ end -}}
{{- end }}

{{/*
Why pods without a common cache would serve the same clients; empty if they do not. A pull would then succeed or fail depending on the
pod that it reaches, and an image that one pod has would be missing as soon as its registry is unavailable. Pods that fetch from each
other (peers) are one cache as well. So are pods that upload to a bucket what they have, and read from there what they do not have.
*/}}
{{- define "larder.dividedCache" -}}
{{- $several := or (eq .Values.mode "daemonset") (include "larder.hasReplicas" .) -}}
{{- $limit := include "larder.replicaLimit" . -}}
{{- $claim := .Values.persistence.persistentVolumeClaim -}}
{{- $share := or (include "larder.hasPeers" .) (include "larder.sharedBucket" .) -}}
{{- $bucket := "or objectStore without readOnly, a bucket that has what each pod has" -}}
{{- if and $several (not (include "larder.sharesVolume" .)) -}}
{{- if eq .Values.mode "statefulset" -}}
{{- if not $share -}}
with mode: statefulset and {{ $limit }} each pod has its own volume, so pulls fail during an outage if they reach a pod that does not have the image. Set peers.enabled, so that the pods fetch from each other; or {{ first (splitList " " $limit) }} 1; or mode: deployment with one volume for all pods (newClaimSpec.accessModes: [ReadWriteMany]); {{ $bucket }}
{{- end -}}
{{- else if $claim.enabled -}}
several pods cannot share a ReadWriteOnce volume: add ReadWriteMany to persistence.persistentVolumeClaim.newClaimSpec.accessModes; or set mode: statefulset and peers.enabled, for a volume for each pod
{{- else if or $share (include "larder.isNodeLocal" .) -}}
{{- else if eq .Values.mode "daemonset" -}}
with mode: daemonset each pod has its own cache, but the service sends a node's pulls to any of them, so they fail during an outage if that pod does not have the image. Set peers.enabled; or daemonset.hostPort.enabled or daemonset.hostNetwork, so that each node uses its own pod; or service.type: ClusterIP with service.internalTrafficPolicy: Local and a service.clusterIP; {{ $bucket }}
{{- else -}}
with {{ $limit }} each pod has its own cache, so pulls fail during an outage if they reach a pod that does not have the image. Set peers.enabled, so that the pods fetch from each other; or {{ first (splitList " " $limit) }} 1; or one volume for all pods (persistence.persistentVolumeClaim.enabled with newClaimSpec.accessModes: [ReadWriteMany]
{{- if .Values.persistence.hostPath.enabled }}, or persistence.hostPath.shared if the directory is the same on all nodes{{ end }}); or mode: daemonset, a cache for each node; {{ $bucket }}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Whether only one node may be able to attach the volume of a deployment whose pods may be on any node. The access modes of an existing claim
are unknown: one of several pods must be ReadWriteMany, one of a single pod may be ReadWriteOnce.
*/}}
{{- define "larder.bindsToNode" -}}
{{- $claim := .Values.persistence.persistentVolumeClaim -}}
{{- if and (eq .Values.mode "deployment") $claim.enabled -}}
  {{- if $claim.existingClaimName -}}
    {{- if not (or (include "larder.hasReplicas" .) (include "larder.hasOneNode" .)) }}yes{{ end -}}
  {{- else if has "ReadWriteOncePod" $claim.newClaimSpec.accessModes -}}yes
  {{- else if not (or (include "larder.sharesVolume" .) (include "larder.hasOneNode" .)) }}yes{{ end -}}
{{- end -}}
{{- end }}

{{/*
The update strategy of a deployment. Without one in the values: Recreate for a volume that only one node can attach, since a new pod on
another node would wait for the volume, and the old pod for the new one. Otherwise the new pod is ready before the old one ends.
*/}}
{{- define "larder.deploymentStrategy" -}}
{{- $given := default dict .Values.deploymentStrategy -}}
{{- $type := default (ternary "Recreate" "RollingUpdate" (and (not $given.rollingUpdate) (eq "yes" (include "larder.bindsToNode" .)))) $given.type -}}
{{- $all := merge (dict "type" $type) (omit $given "rollingUpdate") -}}
{{- /* Kubernetes rejects rollingUpdate beside Recreate. */ -}}
{{- if eq $type "RollingUpdate" -}}
  {{- /* Kubernetes rejects 0 for both. */ -}}
  {{- $hasNoSurge := has (toString (dig "rollingUpdate" "maxSurge" 1 $given)) (list "0" "0%") -}}
  {{- $rolling := dict "maxUnavailable" (ternary 1 0 $hasNoSurge) "maxSurge" 1 -}}
  {{- range $key, $value := default dict $given.rollingUpdate }}{{ $_ := set $rolling $key $value }}{{ end -}}
  {{- $_ := set $all "rollingUpdate" $rolling -}}
{{- end -}}
{{- toYaml $all -}}
{{- end }}

{{/* Whether an update of a deployment ends the old pod first. */}}
{{- define "larder.recreates" -}}
{{- if and (eq .Values.mode "deployment") (eq "Recreate" (include "larder.deploymentStrategy" . | fromYaml).type) }}yes{{ end -}}
{{- end }}

{{/* Whether an update starts a second pod, which waits for the volume of the first one if it is on another node. */}}
{{- define "larder.updateWaitsForVolume" -}}
{{- $surge := dig "rollingUpdate" "maxSurge" 0 (include "larder.deploymentStrategy" . | fromYaml) -}}
{{- if and (include "larder.bindsToNode" .) (not (has (toString $surge) (list "0" "0%"))) }}yes{{ end -}}
{{- end }}

{{/*
The tolerations of the server's pods. Kubernetes adds its own default of 300 s for nodes that are not ready or unreachable to pods that
have no toleration for them; a daemon set's pods always stay. The first toleration that matches a taint counts. So these precede those
in the values, where a toleration of all taints would bind the pod to a lost node forever, but not a toleration of the same taint.

A pod of a stateful set on a node that does not report is never replaced before its node is deleted, or has the taint out-of-service,
because the old pod might still write to the volume. Deleting the pod earlier has no use, and would restart it when the node returns. So it
tolerates this taint forever, as a daemon set's pods do. A node that reports that it is not ready can confirm that the pod has ended.
*/}}
{{- define "larder.tolerations" -}}
{{- $given := default list .Values.tolerations -}}
{{- $all := list -}}
{{- if ne .Values.mode "daemonset" -}}
  {{- $seconds := default dict .Values.tolerationSeconds -}}
  {{- range $taint, $value := dict "not-ready" (get $seconds "notReady") "unreachable" (get $seconds "unreachable") -}}
    {{- $key := printf "node.kubernetes.io/%s" $taint -}}
    {{- $isGiven := false -}}
    {{- range $given -}}
      {{- if and (eq (default "" .key) $key) (has (default "" .effect) (list "" "NoExecute")) -}}{{- $isGiven = true -}}{{- end -}}
    {{- end -}}
    {{- $toleration := dict "key" $key "operator" "Exists" "effect" "NoExecute" -}}
    {{- if $isGiven -}}
    {{- else if and (eq $.Values.mode "statefulset") (eq $taint "unreachable") -}}
    {{- $all = append $all $toleration -}}
    {{- else if and (not (kindIs "invalid" $value)) (ne (toString $value) "") -}}
    {{- $all = append $all (set $toleration "tolerationSeconds" (int64 $value)) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- with concat $all $given }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* The affinity in the values, with a rule that keeps replicas on different nodes unless the values have their own podAntiAffinity. */}}
{{- define "larder.affinity" -}}
{{- $affinity := default dict .Values.affinity -}}
{{- if and (ne .Values.antiAffinity "none") (include "larder.hasReplicas" .) (not (hasKey $affinity "podAntiAffinity")) -}}
  {{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "larder.selector" . | fromYaml)) -}}
  {{- $rule := dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term)) -}}
  {{- if eq .Values.antiAffinity "required" -}}
    {{- if include "larder.hasOneNode" . -}}
    {{- fail "antiAffinity: required conflicts with a nodeSelector for kubernetes.io/hostname, which puts all pods on one node" -}}
    {{- end -}}
    {{- $rule = dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term) -}}
  {{- end -}}
  {{- $affinity = merge (dict "podAntiAffinity" $rule) $affinity -}}
{{- end -}}
{{- with $affinity }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/*
Whether an update needs one more node than there are replicas: no old pod ends before a new one is ready, and no two pods may be on the
same node.
*/}}
{{- define "larder.updateNeedsNode" -}}
{{- $strategy := include "larder.deploymentStrategy" . | fromYaml -}}
{{- $keepsAll := has (toString (dig "rollingUpdate" "maxUnavailable" "1" $strategy)) (list "0" "0%") -}}
{{- $isRequired := and (eq .Values.antiAffinity "required") (include "larder.hasReplicas" .) (not (hasKey (default dict .Values.affinity) "podAntiAffinity")) -}}
{{- if and (eq .Values.mode "deployment") $isRequired $keepsAll }}yes{{ end -}}
{{- end }}

{{/* The topology spread constraints. One without a labelSelector would count no pods; it gets that of the server's pods. */}}
{{- define "larder.topologySpreadConstraints" -}}
{{- $all := list -}}
{{- range .Values.topologySpreadConstraints -}}
  {{- if or (not (hasKey . "labelSelector")) (kindIs "invalid" .labelSelector) -}}
  {{- $all = append $all (merge (dict "labelSelector" (dict "matchLabels" (include "larder.selector" $ | fromYaml))) .) -}}
  {{- else -}}
  {{- $all = append $all . -}}
  {{- end -}}
{{- end -}}
{{- with $all }}{{ toYaml . }}{{ end -}}
{{- end }}
