{{/* What the release needs of the cluster: custom kinds, pods that share a cache, and nodes that disappear. */}}

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

{{/* Whether all pods use one directory, as far as the values show. An existing claim is assumed to be ReadWriteMany. */}}
{{- define "larder.sharesVolume" -}}
{{- $claim := .Values.persistence.persistentVolumeClaim -}}
{{- $hostPath := .Values.persistence.hostPath -}}
{{- if $claim.enabled -}}
  {{- if or $claim.existingClaimName (has "ReadWriteMany" $claim.newClaimSpec.accessModes) }}yes{{ end -}}
{{- else if $hostPath.enabled -}}
  {{- if or $hostPath.shared (hasKey (default dict .Values.nodeSelector) "kubernetes.io/hostname") }}yes{{ end -}}
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
other (peers) are one cache as well.
*/}}
{{- define "larder.dividedCache" -}}
{{- $several := or (eq .Values.mode "daemonset") (gt (int .Values.replicaCount) 1) -}}
{{- $claim := .Values.persistence.persistentVolumeClaim -}}
{{- if and $several (not (include "larder.sharesVolume" .)) -}}
{{- if $claim.enabled -}}
several pods cannot share a ReadWriteOnce volume: add ReadWriteMany to persistence.persistentVolumeClaim.newClaimSpec.accessModes
{{- else if or .Values.peers.enabled (include "larder.isNodeLocal" .) -}}
{{- else if eq .Values.mode "daemonset" -}}
with mode: daemonset each pod has its own cache, but the service sends a node's pulls to any of them, so they fail during an outage if that pod does not have the image. Set peers.enabled; or daemonset.hostPort.enabled or daemonset.hostNetwork, so that each node uses its own pod; or service.type: ClusterIP with service.internalTrafficPolicy: Local and a service.clusterIP
{{- else -}}
with replicaCount: {{ .Values.replicaCount }} each pod has its own cache, so pulls fail during an outage if they reach a pod that does not have the image. Set peers.enabled, so that the pods fetch from each other; or replicaCount: 1; or one volume for all pods (persistence.persistentVolumeClaim.enabled with newClaimSpec.accessModes: [ReadWriteMany]
{{- if .Values.persistence.hostPath.enabled }}, or persistence.hostPath.shared if the directory is the same on all nodes{{ end }}); or mode: daemonset, a cache for each node
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Whether an update starts a second pod next to the first one, on a volume that only one node can attach: the second pod waits for the first
one if it is on another node.
*/}}
{{- define "larder.updateWaitsForVolume" -}}
{{- $claim := .Values.persistence.persistentVolumeClaim -}}
{{- $strategy := default dict .Values.deploymentStrategy -}}
{{- $surge := dig "rollingUpdate" "maxSurge" 1 $strategy -}}
{{- $replaces := or (eq (default "RollingUpdate" $strategy.type) "Recreate") (has (toString $surge) (list "0" "0%")) -}}
{{- if and (eq .Values.mode "deployment") $claim.enabled (not $replaces) (or $claim.existingClaimName (not (include "larder.sharesVolume" .))) }}yes{{ end -}}
{{- end }}

{{/*
The tolerations of the server's pods. Kubernetes adds its own default of 300 s for nodes that are not ready or unreachable to pods that
have no toleration for them; a daemon set's pods always stay. The first toleration that matches a taint counts. So these precede those
in the values, where a toleration of all taints would bind the pod to a lost node forever, but not a toleration of the same taint.
*/}}
{{- define "larder.tolerations" -}}
{{- $given := default list .Values.tolerations -}}
{{- $all := list -}}
{{- if eq .Values.mode "deployment" -}}
  {{- $seconds := default dict .Values.tolerationSeconds -}}
  {{- range $taint, $value := dict "not-ready" (get $seconds "notReady") "unreachable" (get $seconds "unreachable") -}}
    {{- $key := printf "node.kubernetes.io/%s" $taint -}}
    {{- $isGiven := false -}}
    {{- range $given -}}
      {{- if and (eq (default "" .key) $key) (has (default "" .effect) (list "" "NoExecute")) -}}{{- $isGiven = true -}}{{- end -}}
    {{- end -}}
    {{- if and (not $isGiven) (not (kindIs "invalid" $value)) (ne (toString $value) "") -}}
    {{- $all = append $all (dict "key" $key "operator" "Exists" "effect" "NoExecute" "tolerationSeconds" (int64 $value)) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- with concat $all $given }}{{ toYaml . }}{{ end -}}
{{- end }}
