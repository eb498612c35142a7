{{/* The pod template of the server, used by the deployment, the stateful set and the daemon set. */}}
{{- define "larder.pod" -}}
{{- $ports := include "larder.ports" . | fromYaml -}}
{{- $configuration := include "larder.configuration" . -}}
{{- $imagePath := include "larder.imagePath" . -}}
metadata:
  {{- if or .Values.podAnnotations (and $configuration .Values.serverConfig.restartOnChange) }}
  annotations:
    {{- if and $configuration .Values.serverConfig.restartOnChange }}
    checksum/config: {{ $configuration | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  labels:
    {{- include "larder.labels" . | nindent 4 }}
    app.kubernetes.io/component: server
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "larder.serviceAccountName" . }}
  automountServiceAccountToken: {{ .Values.serviceAccount.automount }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- if include "larder.usesHostNetwork" . }}
  hostNetwork: true
  dnsPolicy: Default
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: larder
      image: {{ include "larder.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        {{- if $configuration }}
        - --config-file
        - {{ .Values.serverConfig.mountPath | trimSuffix "/" }}/larder.yaml
        {{- end }}
        {{- if not (get (include "larder.given" . | fromYaml) "imagePath") }}
        - --image-path
        - {{ $imagePath }}
        {{- end }}
        - serve
        {{- range $ports.flags }}
        - {{ . | quote }}
        {{- end }}
      {{- with include "larder.env" . }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if not (include "larder.surges" .) }}
      ports:
        - name: http
          containerPort: {{ $ports.http }}
          protocol: TCP
          {{- if and (eq .Values.mode "daemonset") .Values.daemonset.hostPort.enabled }}
          hostPort: {{ .Values.daemonset.hostPort.port }}
          {{- with .Values.daemonset.hostPort.hostIP }}
          hostIP: {{ . | quote }}
          {{- end }}
          {{- end }}
        {{- if $ports.health }}
        - name: health
          containerPort: {{ $ports.health }}
          protocol: TCP
        {{- end }}
        {{- /* Kubernetes merges ports by number, so a port that serves two purposes is listed once. */}}
        {{- if and $ports.metrics (ne $ports.metrics $ports.health) }}
        - name: metrics
          containerPort: {{ $ports.metrics }}
          protocol: TCP
        {{- end }}
        {{- if and $ports.management (ne $ports.management $ports.health) (ne $ports.management $ports.metrics) }}
        - name: management
          containerPort: {{ $ports.management }}
          protocol: TCP
        {{- end }}
      {{- end }}
      {{- if .Values.probes.enabled }}
      startupProbe:
        httpGet: {path: /livez, port: {{ $ports.health }}{{ with $ports.host }}, host: {{ . | quote }}{{ end }}}
        {{- with .Values.probes.startup }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      livenessProbe:
        httpGet: {path: /livez, port: {{ $ports.health }}{{ with $ports.host }}, host: {{ . | quote }}{{ end }}}
        {{- with .Values.probes.liveness }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      readinessProbe:
        httpGet: {path: /readyz, port: {{ $ports.health }}{{ with $ports.host }}, host: {{ . | quote }}{{ end }}}
        {{- with .Values.probes.readiness }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- if and (gt (int .Values.preStopSleepSeconds) 0) (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ .Values.preStopSleepSeconds }}
      {{- end }}
      {{- with .Values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        {{- $mounted := false }}
        {{- range .Values.volumeMounts }}{{ if eq .name "images" }}{{ $mounted = true }}{{ end }}{{ end }}
        {{- if not $mounted }}
        - name: images
          mountPath: {{ $imagePath }}
        {{- end }}
        {{- if $configuration }}
        - name: config
          mountPath: {{ .Values.serverConfig.mountPath }}
          readOnly: true
        {{- end }}
        {{- if .Values.serverTls.enabled }}
        - name: server-tls
          mountPath: /run/secrets/tls
          readOnly: true
        {{- end }}
        {{- if (default dict .Values.objectStore).caFrom }}
        - name: object-store-ca
          mountPath: /run/secrets/object-store
          readOnly: true
        {{- end }}
        {{- range $index, $name := .Values.dockerConfigSecrets }}
        - name: pull-{{ $index }}
          mountPath: /run/secrets/pull/{{ $name }}
          readOnly: true
        {{- end }}
        {{- with .Values.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .Values.sidecarContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- /* A stateful set gives each pod its own volume `images`. */}}
    {{- if ne .Values.mode "statefulset" }}
    - name: images
      {{- if .Values.persistence.persistentVolumeClaim.enabled }}
      persistentVolumeClaim:
        claimName: {{ include "larder.claimName" . }}
      {{- else if .Values.persistence.hostPath.enabled }}
      hostPath:
        path: {{ .Values.persistence.hostPath.path }}
        type: {{ .Values.persistence.hostPath.type }}
      {{- else if .Values.persistence.emptyDir.sizeLimit }}
      emptyDir:
        sizeLimit: {{ include "larder.sizeLimit" . | quote }}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- end }}
    {{- if $configuration }}
    - name: config
      configMap:
        name: {{ include "larder.fullname" . }}-config
    {{- end }}
    {{- if .Values.serverTls.enabled }}
    - name: server-tls
      secret:
        secretName: {{ include "larder.tlsSecretName" . }}
    {{- end }}
    {{- with (default dict .Values.objectStore).caFrom }}
    - name: object-store-ca
      {{- if .secret }}
      secret:
        secretName: {{ .secret }}
      {{- else }}
      configMap:
        name: {{ .configMap }}
      {{- end }}
    {{- end }}
    {{- range $index, $name := .Values.dockerConfigSecrets }}
    - name: pull-{{ $index }}
      secret:
        secretName: {{ $name }}
    {{- end }}
    {{- with .Values.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "larder.affinity" . }}
  affinity:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with include "larder.topologySpreadConstraints" . }}
  topologySpreadConstraints:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with include "larder.tolerations" . }}
  tolerations:
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* The spec of a new claim. */}}
{{- define "larder.claimSpec" -}}
{{- with .Values.persistence.persistentVolumeClaim.newClaimSpec -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
{{- with .volumeMode }}
volumeMode: {{ . }}
{{- end }}
resources:
  {{- toYaml .resources | nindent 2 }}
{{- if eq (toString .storageClassName) "-" }}
storageClassName: ""
{{- else if .storageClassName }}
storageClassName: {{ .storageClassName }}
{{- end }}
{{- with .selector }}
selector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
