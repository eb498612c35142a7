{{/* Names and labels. */}}

{{- define "larder.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* At most 52 characters, which leaves space for `-configure` and the suffixes that Kubernetes appends to pod names. */}}
{{- define "larder.fullname" -}}
{{- $name := include "larder.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels of all objects of the release that never change. */}}
{{- define "larder.identity" -}}
app.kubernetes.io/name: {{ include "larder.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Selects the server's pods, but not those of configureNodes. */}}
{{- define "larder.selector" -}}
{{ include "larder.identity" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "larder.labels" -}}
{{ include "larder.identity" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "larder.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "larder.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "larder.image" -}}
{{- $image := .Values.image -}}
{{- if hasKey $image "ociregistry" -}}
{{- fail "image.ociregistry names the reference server's image: remove it, and set image.registry and image.repository to those of Larder (see docs/helm.md)" -}}
{{- end -}}
{{- $name := $image.repository -}}
{{- if $image.registry -}}{{- $name = printf "%s/%s" $image.registry $name -}}{{- end -}}
{{- if or $image.tag (not $image.digest) -}}{{- $name = printf "%s:%s" $name (toString (default .Chart.AppVersion $image.tag)) -}}{{- end -}}
{{- if $image.digest -}}{{- $name = printf "%s@%s" $name $image.digest -}}{{- end -}}
{{- $name -}}
{{- end }}

{{- define "larder.claimName" -}}
{{- default (include "larder.fullname" .) .Values.persistence.persistentVolumeClaim.existingClaimName -}}
{{- end }}

{{- define "larder.tlsSecretName" -}}
{{- default (printf "%s-tls" (include "larder.fullname" .)) .Values.serverTls.secretName -}}
{{- end }}

{{/* The headless Service of the pods that fetch from each other, and of a stateful set. */}}
{{- define "larder.peers" -}}
{{- printf "%s-peers" (include "larder.fullname" . | trunc 57 | trimSuffix "-") -}}
{{- end }}
