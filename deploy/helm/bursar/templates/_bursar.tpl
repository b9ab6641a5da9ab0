{{/*
For charts that depend on this one, with mode "sidecar". Each takes this chart's own context, which Helm 3.7 and
newer give a parent as .Subcharts.bursar:

  initContainers:
    {{- include "bursar.sidecar" .Subcharts.bursar | nindent 4 }}
  volumes:
    {{- include "bursar.volumes" .Subcharts.bursar | nindent 4 }}

and "bursar.annotations" for the pod's: they change with the configuration, so that pods roll with it.
*/}}

{{- define "bursar.name" -}}
{{- if contains "bursar" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-bursar{{ end -}}
{{- end }}

{{- define "bursar.selector" -}}
app.kubernetes.io/name: bursar
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bursar.labels" -}}
{{ include "bursar.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The init container that Kubernetes keeps beside the others: started before them, stopped after. */}}
{{- define "bursar.sidecar" -}}
- name: bursar
  restartPolicy: Always
  {{- include "bursar.container" . | nindent 2 }}
{{- end }}

{{- define "bursar.volumes" -}}
- name: bursar-config
  configMap:
    name: {{ include "bursar.name" . }}
{{- range .Values.secrets }}
- name: bursar-secret-{{ . }}
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "bursar.annotations" -}}
checksum/bursar-config: {{ .Values.config | sha256sum }}
{{- end }}

{{/* Everything of the container but its name. */}}
{{- define "bursar.container" -}}
{{- $standalone := eq .Values.mode "standalone" -}}
{{- $notice := ternary 5 0 $standalone -}}
{{- if not (kindIs "invalid" .Values.drain.notice) }}{{ $notice = int .Values.drain.notice }}{{ end -}}
{{- if ge $notice (int .Values.drain.deadline) }}
{{- fail (printf "drain.notice (%d) must be below drain.deadline (%d): the deadline counts from TERM too" $notice (int .Values.drain.deadline)) }}
{{- end -}}
image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: BURSAR_LISTEN_ADDRESS
    value: {{ ternary "0.0.0.0:6432" "127.0.0.1:6432" $standalone | quote }}
  # The kubelet and Prometheus come from outside the pod.
  - name: BURSAR_ADMIN_ADDRESS
    value: "0.0.0.0:9432"
  - name: BURSAR_DRAIN_NOTICE
    value: "{{ $notice }}s"
  - name: BURSAR_DRAIN_DEADLINE
    value: "{{ int .Values.drain.deadline }}s"
  - name: BURSAR_LOG_FORMAT
    value: {{ .Values.log.format | quote }}
  - name: BURSAR_LOG_LEVEL
    value: {{ .Values.log.level | quote }}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  {{- if $standalone }}
  - name: postgres
    containerPort: 6432
  {{- end }}
  - name: bursar-admin
    containerPort: 9432
startupProbe:
  httpGet:
    path: /readyz
    port: bursar-admin
  periodSeconds: 1
  failureThreshold: 30
readinessProbe:
  httpGet:
    path: /readyz
    port: bursar-admin
  periodSeconds: 5
livenessProbe:
  httpGet:
    path: /livez
    port: bursar-admin
  periodSeconds: 10
  failureThreshold: 3
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
  seccompProfile:
    type: RuntimeDefault
volumeMounts:
  # The directory, not the file: only so do changes of the ConfigMap arrive.
  - name: bursar-config
    mountPath: /etc/bursar
    readOnly: true
  {{- range .Values.secrets }}
  - name: bursar-secret-{{ . }}
    mountPath: /run/secrets/bursar/{{ . }}
    readOnly: true
  {{- end }}
{{- end }}
