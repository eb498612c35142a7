"""Tests of the objects that the chart renders from values. tests/chart/run runs them.

The environment variable CHART is the directory of the chart, HELM the helm program. `helm template` renders everything, so no cluster is needed. Unless
a test says otherwise, the cluster has the custom kinds that the chart uses.
"""

import base64
import glob
import json
import os
import re
import subprocess
import tempfile
import unittest

import yaml

CHART = os.environ["CHART"]
HELM = os.environ["HELM"]
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
DEFAULT_KUBE = "1.30.0"
CUSTOM_KINDS = ("monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule", "gateway.networking.k8s.io/v1/HTTPRoute")


def helm(values=None, files=(), sets=(), kube=DEFAULT_KUBE, chart=CHART, release="larder", kinds=CUSTOM_KINDS):
    """Runs `helm template` and returns the completed process."""
    command = [HELM, "template", release, chart, "--namespace", "caches", "--kube-version", kube]
    for kind in kinds:
        command += ["--api-versions", kind]
    for file in files:
        command += ["--values", file]
    for value in sets:
        command += value.split(" ", 1)
    text = None
    if values is not None:
        command += ["--values", "-"]
        text = values if isinstance(values, str) else yaml.safe_dump(values)
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def render(values=None, **kwargs):
    """Renders the chart and returns the objects by kind and name."""
    run = helm(values, **kwargs)
    if run.returncode != 0:
        raise AssertionError(run.stderr)
    objects = {}
    for document in yaml.safe_load_all(run.stdout):
        if document is not None:
            key = (document["kind"], document["metadata"]["name"])
            assert key not in objects, f"duplicate object: {key}"
            objects[key] = document
    return objects


def pod(objects, kind="Deployment", name="larder"):
    return objects[(kind, name)]["spec"]["template"]["spec"]


def container(objects, kind="Deployment", name="larder"):
    return next(c for c in pod(objects, kind, name)["containers"] if c["name"] == "larder")


def configuration(objects, name="larder-config"):
    return yaml.safe_load(objects[("ConfigMap", name)]["data"]["larder.yaml"])


def ci(name):
    return os.path.join(CHART, "ci", f"{name}-values.yaml")


# One pod of a stateful set.
STATEFUL = {"mode": "statefulset", "persistence": {"persistentVolumeClaim": {"enabled": True}}}
# The modes, and the values that each of them needs.
MODES = {"deployment": {"replicaCount": 2}, "statefulset": STATEFUL | {"replicaCount": 2}, "daemonset": {}}


class Defaults(unittest.TestCase):
    """A release with default values."""

    @classmethod
    def setUpClass(cls):
        cls.objects = render()

    def test_only_four_objects_and_the_pod_of_the_test_are_created(self):
        self.assertEqual(
            sorted(self.objects),
            [("ConfigMap", "larder-config"), ("Deployment", "larder"), ("Pod", "larder-test"), ("Service", "larder"), ("ServiceAccount", "larder")],
        )

    def test_containers_have_requests_and_a_limit_of_memory_but_none_of_cpu(self):
        nodes = pod(render({"configureNodes": {"enabled": True}}), "DaemonSet", "larder-configure")["containers"]
        for each in (container(self.objects), *nodes, *self.objects[("Pod", "larder-test")]["spec"]["containers"]):
            self.assertEqual(set(each["resources"]["requests"]), {"cpu", "memory"})
            self.assertEqual(set(each["resources"]["limits"]), {"memory"})
        self.assertNotIn("resources", container(render("resources: ")))

    def test_the_service_matches_the_reference_chart(self):
        spec = self.objects[("Service", "larder")]["spec"]
        self.assertEqual(spec["type"], "NodePort")
        self.assertEqual(spec["ports"], [{"name": "http", "port": 8080, "targetPort": "http", "protocol": "TCP", "nodePort": 31080}])
        labels = self.objects[("Deployment", "larder")]["spec"]["template"]["metadata"]["labels"]
        self.assertLessEqual(spec["selector"].items(), labels.items())
        self.assertEqual(self.objects[("Deployment", "larder")]["spec"]["selector"]["matchLabels"], spec["selector"])

    def test_the_image_is_the_one_that_make_image_tar_builds(self):
        with open(os.path.join(ROOT, "Cargo.toml"), encoding="utf-8") as file:
            version = re.search(r'^version = "(.*)"$', file.read(), re.M).group(1)
        with open(os.path.join(CHART, "Chart.yaml"), encoding="utf-8") as file:
            chart = yaml.safe_load(file)
        self.assertEqual((chart["version"], chart["appVersion"]), (version, version))
        self.assertEqual(container(self.objects)["image"], f"localhost/larder:{version}")
        self.assertEqual(container(self.objects)["imagePullPolicy"], "IfNotPresent")

    def test_pods_meet_the_restricted_pod_security_standard(self):
        spec = pod(self.objects)
        self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertEqual([spec["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")], [65532] * 3)
        self.assertEqual(
            container(self.objects)["securityContext"],
            {
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        )
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            self.assertNotIn(key, spec)
        self.assertFalse([p for p in container(self.objects)["ports"] if "hostPort" in p])
        self.assertFalse([v for v in spec["volumes"] if "hostPath" in v])
        self.assertIs(spec["automountServiceAccountToken"], False)
        self.assertIs(self.objects[("ServiceAccount", "larder")]["automountServiceAccountToken"], False)

    def test_probes_use_the_health_port(self):
        larder = container(self.objects)
        for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            self.assertEqual(larder[probe]["httpGet"], {"path": path, "port": 8081})
        self.assertEqual(configuration(self.objects)["health"], 8081)

    def test_a_ready_pod_is_used_within_a_second_or_two(self):
        larder = container(self.objects)
        self.assertEqual([larder[probe]["periodSeconds"] for probe in ("startupProbe", "readinessProbe")], [1, 1])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            self.assertNotIn("initialDelaySeconds", larder[probe])
        # A pod whose health port does not respond for a moment stays in use.
        readiness = larder["readinessProbe"]
        self.assertGreaterEqual(readiness["periodSeconds"] * readiness["failureThreshold"], 5)

    def test_the_grace_period_exceeds_the_drain_timeout(self):
        spec = pod(self.objects)
        sleep = container(self.objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.assertGreater(spec["terminationGracePeriodSeconds"], 60 + sleep)
        self.assertNotIn("drainTimeout", configuration(self.objects))

    def test_the_new_pod_is_ready_before_the_old_one_stops(self):
        self.assertEqual(
            self.objects[("Deployment", "larder")]["spec"]["strategy"],
            {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        )

    def test_cache_size_is_below_the_limit_at_which_kubernetes_evicts_the_pod(self):
        self.assertEqual(pod(self.objects)["volumes"][0], {"name": "images", "emptyDir": {"sizeLimit": "2Gi"}})
        size = int(configuration(self.objects)["cacheSize"].removesuffix("MB")) * 1000000
        self.assertLess(size, 2 * 1024**3 * 0.9)
        self.assertGreater(size, 2 * 1024**3 * 0.8)

    def test_clusters_before_1_30_do_not_get_a_sleep_hook(self):
        self.assertNotIn("lifecycle", container(render(kube="1.29.9")))
        self.assertIn("lifecycle", container(render(kube="v1.31.4+k3s1")))


class Configuration(unittest.TestCase):
    """The configuration file contains the given configuration and the keys that the chart adds."""

    def test_a_text_is_written_unchanged(self):
        text = "# A comment.\nport: 5000\n\nhealth:   5001\ncacheSize: 1GB\n"
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            objects = render(sets=[f"--set-file serverConfig.configuration={file.name}"])
        self.assertEqual(objects[("ConfigMap", "larder-config")]["data"]["larder.yaml"], text)
        self.assertEqual(container(objects)["ports"][0]["containerPort"], 5000)
        self.assertEqual(container(objects)["livenessProbe"]["httpGet"]["port"], 5001)

    def test_added_keys_follow_a_text(self):
        objects = render(files=[ci("text-configuration")])
        text = objects[("ConfigMap", "larder-config")]["data"]["larder.yaml"]
        self.assertTrue(text.startswith("# A cache for builds.\nport: 5000\n"), text)
        self.assertTrue(text.endswith("# Added by the chart.\ndrainTimeout: 20s\n"), text)

    def test_keys_are_added_to_a_text_in_json(self):
        objects = render({"serverConfig": {"configuration": '{"port": 5000, "health": 5001}'}})
        self.assertEqual(configuration(objects), {"port": 5000, "health": 5001, "cacheSize": "1825MB"})

    def test_a_map_is_merged_over_the_defaults(self):
        of = configuration(render({"serverConfig": {"configuration": {"logLevel": "warn", "tagTtl": "1h"}}}))
        self.assertEqual((of["logLevel"], of["tagTtl"], of["health"]), ("warn", "1h", 8081))

    def test_large_numbers_are_not_written_in_scientific_notation(self):
        text = render({"serverConfig": {"configuration": {"pullTimeout": 30000000}}})[("ConfigMap", "larder-config")]["data"]["larder.yaml"]
        self.assertIn("pullTimeout: 30000000\n", text)

    def test_without_a_configuration_there_is_no_file_but_there_are_probes(self):
        objects = render(files=[ci("no-configuration")])
        self.assertNotIn(("ConfigMap", "larder-config"), objects)
        self.assertEqual(container(objects)["args"], ["--image-path", "/var/lib/larder", "serve", "--health", "8081"])
        self.assertEqual(container(objects)["readinessProbe"]["httpGet"]["port"], 8081)
        self.assertEqual([m["name"] for m in container(objects)["volumeMounts"]], ["images"])

    def test_a_change_restarts_the_pods_unless_disabled(self):
        def sums(values):
            annotations = render(values)[("Deployment", "larder")]["spec"]["template"]["metadata"].get("annotations", {})
            return annotations.get("checksum/config")

        self.assertNotEqual(sums({}), sums({"serverConfig": {"configuration": {"logLevel": "warn"}}}))
        self.assertNotEqual(sums({}), sums({"persistence": {"emptyDir": {"sizeLimit": "3Gi"}}}))
        self.assertEqual(sums({}), sums({"podLabels": {"a": "b"}}))
        self.assertIsNone(sums({"serverConfig": {"restartOnChange": False}}))

    def test_an_empty_dir_limits_the_cache_only_without_another_limit(self):
        for values, size in (
            ({"persistence": {"emptyDir": {"sizeLimit": "1.5Gi"}}}, "1369MB"),
            ({"persistence": {"emptyDir": {"sizeLimit": "10G"}}}, "8500MB"),
            ({"persistence": {"emptyDir": {"sizeLimit": 1000000000}}}, "850MB"),
            ({"persistence": {"emptyDir": {"sizeLimit": ""}}}, None),
            ({"persistence": {"hostPath": {"enabled": True}}}, None),
            ({"persistence": {"persistentVolumeClaim": {"enabled": True}}}, None),
            ({"serverConfig": {"configuration": {"freeSpace": "5%"}}}, None),
            ({"serverConfig": {"configuration": {"cacheSize": "1GB"}}}, "1GB"),
        ):
            with self.subTest(values):
                self.assertEqual(configuration(render(values)).get("cacheSize"), size)

    def test_a_drain_serves_where_the_next_pod_waits_for_the_end_of_this_one(self):
        node = {"mode": "daemonset", "daemonset": {"hostPort": {"enabled": True}}}
        self.assertEqual(configuration(render(node))["drain"], "serve")
        self.assertEqual(configuration(render({"deploymentStrategy": {"type": "Recreate"}}))["drain"], "serve")
        self.assertNotIn("drain", configuration(render({})))
        given = node | {"serverConfig": {"configuration": {"drain": "refuse"}}}
        self.assertEqual(configuration(render(given))["drain"], "refuse")

    def test_a_pod_in_the_network_of_its_node_hands_over_to_the_next_one(self):
        def node(**values):
            service = {"type": "ClusterIP", "internalTrafficPolicy": "Local", "clusterIP": "10.96.0.50"}
            of = render({"mode": "daemonset", "service": service} | values)
            spec = of[("DaemonSet", "larder")]["spec"]
            target = of[("Service", "larder")]["spec"]["ports"][0]["targetPort"]
            ports = spec["template"]["spec"]["containers"][0].get("ports")
            return configuration(of)["drain"], spec["updateStrategy"]["rollingUpdate"], spec.get("minReadySeconds"), bool(ports), target

        surge, replace = {"maxSurge": 1, "maxUnavailable": 0}, {"maxUnavailable": 1}
        network = {"daemonset": {"hostNetwork": True}}
        # The scheduler reserves declared ports, which the second pod of a node could not get.
        self.assertEqual(node(**network), ("handover", surge, 5, False, 8080))
        self.assertEqual(node(), ("serve", surge, None, True, "http"))
        self.assertEqual(node(daemonset={"hostPort": {"enabled": True}}), ("serve", replace, None, True, "http"))
        serve = {"serverConfig": {"configuration": {"drain": "serve"}}}
        self.assertEqual(node(**network, **serve), ("serve", replace, None, True, "http"))
        strategy = {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": replace}}
        self.assertEqual(node(daemonset={"hostNetwork": True} | strategy), ("handover", replace, None, True, "http"))

    def test_a_short_grace_period_shortens_the_drain(self):
        self.assertEqual(configuration(render({"terminationGracePeriodSeconds": 30}))["drainTimeout"], "20s")
        self.assertEqual(configuration(render({"terminationGracePeriodSeconds": 30, "preStopSleepSeconds": 0}))["drainTimeout"], "25s")
        long = {"terminationGracePeriodSeconds": 320, "serverConfig": {"configuration": {"drainTimeout": "5m"}}}
        self.assertEqual(configuration(render(long))["drainTimeout"], "5m")


class Ports(unittest.TestCase):
    """Each port is used consistently, whether the values or the configuration set it."""

    def test_the_values_of_the_reference_override_the_configuration(self):
        larder = container(render({"health": {"port": 9001}, "metrics": {"port": 9002}}))
        self.assertEqual(larder["args"][-5:], ["serve", "--health", "9001", "--metrics", "9002"])
        self.assertEqual([p["containerPort"] for p in larder["ports"]], [8080, 9001, 9002])
        self.assertEqual(larder["livenessProbe"]["httpGet"]["port"], 9001)

    def test_a_port_shared_by_health_and_metrics_is_listed_once(self):
        objects = render(files=[ci("text-configuration")])
        self.assertEqual([p["containerPort"] for p in container(objects)["ports"]], [5000, 5001])
        self.assertEqual(objects[("Service", "larder-metrics")]["spec"]["ports"][0]["targetPort"], 5001)

    def test_a_management_port_open_to_the_cluster_serves_probes_and_metrics(self):
        objects = render(files=[ci("management")])
        self.assertEqual(container(objects)["readinessProbe"]["httpGet"], {"path": "/readyz", "port": 8090})
        self.assertEqual(objects[("Service", "larder-metrics")]["spec"]["ports"][0]["port"], 8090)
        self.assertEqual([p["containerPort"] for p in container(objects)["ports"]], [8080, 8090])

    def test_the_service_routes_to_the_port_of_larder(self):
        objects = render({"service": {"port": 80}, "serverConfig": {"configuration": {"port": 5000}}})
        self.assertEqual(objects[("Service", "larder")]["spec"]["ports"][0]["port"], 80)
        self.assertEqual(container(objects)["ports"][0], {"name": "http", "containerPort": 5000, "protocol": "TCP"})

    def test_a_cluster_ip_service_has_no_node_port(self):
        port = render({"service": {"type": "ClusterIP"}})[("Service", "larder")]["spec"]["ports"][0]
        self.assertNotIn("nodePort", port)


class Storage(unittest.TestCase):
    """The cache is on a volume, whatever its path."""

    def mounts(self, values):
        larder = container(render(values))
        path = next(m["mountPath"] for m in larder["volumeMounts"] if m["name"] == "images")
        args = larder["args"]
        flag = args[args.index("--image-path") + 1] if "--image-path" in args else None
        return path, flag

    def test_the_volume_is_mounted_at_the_configured_path(self):
        self.assertEqual(self.mounts({}), ("/var/lib/larder", "/var/lib/larder"))
        self.assertEqual(self.mounts({"serverConfig": {"configuration": {"imagePath": "/data"}}}), ("/data", None))

    def test_a_mount_alone_sets_the_cache_directory(self):
        self.assertEqual(self.mounts({"volumeMounts": [{"name": "images", "mountPath": "/data"}]}), ("/data", "/data"))

    def test_a_cache_may_be_below_its_mount(self):
        values = {"volumeMounts": [{"name": "images", "mountPath": "/data"}], "serverConfig": {"configuration": {"imagePath": "/data/a"}}}
        self.assertEqual(self.mounts(values), ("/data", None))

    def test_a_claim_is_created_or_an_existing_one_used(self):
        created = render(files=[ci("claim")])
        claim = created[("PersistentVolumeClaim", "larder")]
        self.assertEqual(claim["metadata"]["annotations"], {"helm.sh/resource-policy": "keep"})
        self.assertEqual(claim["spec"]["storageClassName"], "nfs-client")
        self.assertEqual(pod(created)["volumes"][0]["persistentVolumeClaim"], {"claimName": "larder"})
        self.assertNotIn("cacheSize", configuration(created))
        existing = render(files=[ci("recreate")])
        self.assertNotIn("PersistentVolumeClaim", [kind for kind, _ in existing])
        self.assertEqual(pod(existing)["volumes"][0]["persistentVolumeClaim"], {"claimName": "images"})

    ROLLING = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}

    def strategy(self, claim, **others):
        values = {"persistence": {"persistentVolumeClaim": {"enabled": True} | claim}} | others
        return render(values)[("Deployment", "larder")]["spec"]["strategy"]

    def test_an_update_ends_the_pod_first_if_only_one_node_can_attach_its_volume(self):
        once, many = {"newClaimSpec": {"accessModes": ["ReadWriteOncePod"]}}, {"newClaimSpec": {"accessModes": ["ReadWriteMany"]}}
        existing, node = {"existingClaimName": "images"}, {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}
        for claim, others in (({}, {}), (once, {}), (once, node), (existing, {})):
            with self.subTest(claim, others=others):
                self.assertEqual(self.strategy(claim, **others), {"type": "Recreate"})
        for claim, others in ((many, {}), (many, {"replicaCount": 2}), (existing, {"replicaCount": 2}), ({}, node)):
            with self.subTest(claim, others=others):
                self.assertEqual(self.strategy(claim, **others), self.ROLLING)
        for persistence in ({}, {"hostPath": {"enabled": True}}):
            self.assertEqual(render({"persistence": persistence})[("Deployment", "larder")]["spec"]["strategy"], self.ROLLING)

    def test_the_strategy_in_the_values_takes_precedence(self):
        for given, expected in (
            ({"type": "RollingUpdate"}, self.ROLLING),
            ({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}, {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}),
            ({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}, {"type": "Recreate"}),
        ):
            self.assertEqual(self.strategy({}, deploymentStrategy=given), expected)

    def test_a_pod_that_the_next_one_waits_for_serves_until_its_last_response(self):
        self.assertEqual(configuration(render({"persistence": {"persistentVolumeClaim": {"enabled": True}}}))["drain"], "serve")

    def test_the_storage_class_is_the_default_one_a_named_one_or_none(self):
        for name, expected in (("", None), ("-", ""), ("fast", "fast")):
            claim = {"enabled": True, "newClaimSpec": {"storageClassName": name}}
            objects = render({"persistence": {"persistentVolumeClaim": claim}})
            self.assertEqual(objects[("PersistentVolumeClaim", "larder")]["spec"].get("storageClassName"), expected)


class Tls(unittest.TestCase):
    """TLS for clients, with an existing secret or one that the chart creates."""

    def test_a_secret_is_mounted_at_the_configured_path(self):
        objects = render(files=[ci("tls")])
        self.assertEqual(
            configuration(objects)["serverTlsConfig"],
            {"cert": "/run/secrets/tls/tls.crt", "key": "/run/secrets/tls/tls.key", "ca": "/run/secrets/tls/ca.crt", "clientAuth": "verify"},
        )
        self.assertIn({"name": "server-tls", "secret": {"secretName": "larder-server"}}, pod(objects)["volumes"])
        self.assertIn({"name": "server-tls", "mountPath": "/run/secrets/tls", "readOnly": True}, container(objects)["volumeMounts"])
        self.assertNotIn("Secret", [kind for kind, _ in objects])

    def test_probes_use_plain_http_on_a_separate_port(self):
        probe = container(render(files=[ci("tls")]))["readinessProbe"]["httpGet"]
        self.assertEqual(probe, {"path": "/readyz", "port": 8081})

    def test_a_secret_is_created_from_inline_values(self):
        objects = render({"serverTls": {"enabled": True, "cert": "CERT\n", "key": "KEY\n"}})
        data = objects[("Secret", "larder-tls")]["data"]
        self.assertEqual({key: base64.b64decode(value) for key, value in data.items()}, {"tls.crt": b"CERT\n", "tls.key": b"KEY\n"})
        self.assertEqual(configuration(objects)["serverTlsConfig"], {"cert": "/run/secrets/tls/tls.crt", "key": "/run/secrets/tls/tls.key"})

    def test_the_ca_is_used_only_to_verify_clients(self):
        inline = {"enabled": True, "cert": "CERT", "key": "KEY", "ca": "CA"}
        self.assertNotIn("ca", configuration(render({"serverTls": inline}))["serverTlsConfig"])
        objects = render({"serverTls": inline | {"clientAuth": "verify"}})
        self.assertEqual(configuration(objects)["serverTlsConfig"]["ca"], "/run/secrets/tls/ca.crt")
        self.assertIn("ca.crt", objects[("Secret", "larder-tls")]["data"])


class LostNodes(unittest.TestCase):
    """How long a pod stays bound to a node that is lost."""

    NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"

    def tolerations(self, values, kind="Deployment"):
        return pod(render(values), kind).get("tolerations", [])

    def bound(self, values):
        """Seconds for each of the two taints, by the first toleration that matches it, as Kubernetes chooses it."""
        seconds = {}
        for taint in (self.NOT_READY, self.UNREACHABLE):
            matching = [t for t in self.tolerations(values) if t.get("key", taint) == taint and t.get("effect", "NoExecute") == "NoExecute"]
            seconds[taint] = matching[0].get("tolerationSeconds", "forever") if matching else "the default"
        return [seconds[self.NOT_READY], seconds[self.UNREACHABLE]]

    def test_a_pod_of_a_deployment_is_replaced_earlier_than_by_default(self):
        self.assertEqual(self.bound({}), [30, 30])
        self.assertEqual(self.bound({"tolerationSeconds": {"unreachable": 0}}), [30, 0])
        self.assertEqual(self.bound("tolerationSeconds: {notReady: , unreachable: }"), ["the default", "the default"])
        self.assertEqual(self.bound("tolerationSeconds:"), ["the default", "the default"])

    def test_a_toleration_of_all_taints_does_not_bind_the_pod_to_a_lost_node(self):
        self.assertEqual(self.bound({"tolerations": [{"operator": "Exists"}]}), [30, 30])

    def test_a_toleration_of_the_same_taint_takes_precedence(self):
        given = {"key": self.NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 600}
        self.assertEqual(self.bound({"tolerations": [given]}), [600, 30])
        self.assertEqual(self.bound({"tolerations": [{"key": self.NOT_READY, "operator": "Exists"}]}), ["forever", 30])
        other = {"key": self.NOT_READY, "operator": "Exists", "effect": "NoSchedule"}
        self.assertEqual(self.bound({"tolerations": [other]}), [30, 30])

    def test_pods_of_a_daemon_set_stay_on_their_nodes(self):
        values = {"mode": "daemonset", "daemonset": {"hostPort": {"enabled": True}}}
        self.assertEqual(self.tolerations(values, "DaemonSet"), [])

    def test_a_pod_of_a_stateful_set_waits_for_a_node_that_does_not_report(self):
        def tolerations(**values):
            found = self.tolerations(STATEFUL | values, "StatefulSet")
            return {t["key"]: t.get("tolerationSeconds", "forever") for t in found if t.get("key")}

        self.assertEqual(tolerations(), {self.NOT_READY: 30, self.UNREACHABLE: "forever"})
        self.assertEqual(tolerations(tolerationSeconds={"notReady": 5, "unreachable": 5}), {self.NOT_READY: 5, self.UNREACHABLE: "forever"})
        given = {"key": self.UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 600}
        self.assertEqual(tolerations(tolerations=[given]), {self.NOT_READY: 30, self.UNREACHABLE: 600})


class Replicas(unittest.TestCase):
    """Several pods serve the same clients only if they share the cache. REJECTED has the other cases."""

    def test_pods_may_share_a_directory(self):
        claim = {"enabled": True}
        for persistence, others in (
            ({"persistentVolumeClaim": claim | {"newClaimSpec": {"accessModes": ["ReadWriteMany"]}}}, {}),
            ({"persistentVolumeClaim": claim | {"existingClaimName": "images"}}, {}),
            ({"hostPath": {"enabled": True, "shared": True}}, {}),
            ({"hostPath": {"enabled": True}}, {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}),
        ):
            for mode in ("deployment", "daemonset"):
                with self.subTest(persistence, mode=mode):
                    render({"replicaCount": 2, "mode": mode, "persistence": persistence} | others)

    def test_each_node_may_use_its_own_pod(self):
        local = {"type": "ClusterIP", "internalTrafficPolicy": "Local", "clusterIP": "10.96.0.31"}
        for values in ({"daemonset": {"hostPort": {"enabled": True}}}, {"daemonset": {"hostNetwork": True}}, {"service": local}):
            with self.subTest(values):
                render(values | {"mode": "daemonset"})

    def test_a_deployment_without_pods_is_allowed(self):
        self.assertEqual(render({"replicaCount": 0})[("Deployment", "larder")]["spec"]["replicas"], 0)

    def test_pods_may_have_peers_of_their_own_configuration(self):
        own = {"serverConfig": {"configuration": {"peers": {"dns": "larder.example", "port": 8080}}}}
        tls = {"serverTls": {"enabled": True, "secretName": "tls"}}
        for values in ({"replicaCount": 2}, {"mode": "daemonset"}, STATEFUL | {"replicaCount": 2}, {"replicaCount": 2} | tls):
            with self.subTest(values):
                self.assertEqual(configuration(render(values | own))["peers"], own["serverConfig"]["configuration"]["peers"])
        bucket = {"objectStore": {"bucket": "a"}, "replicaCount": 2}
        self.assertNotIn("Set peers.enabled", notes(values=bucket | own))

    def test_pods_that_fetch_from_each_other_are_one_cache(self):
        peers = {"peers": {"enabled": True}}
        for values in ({"replicaCount": 2}, {"mode": "daemonset"}, STATEFUL | {"replicaCount": 2}):
            with self.subTest(values):
                self.assertNotEqual(helm(values).returncode, 0)
                self.assertEqual(configuration(render(values | peers))["peers"], {"dns": "larder-peers.caches.svc", "port": 8080})


class StatefulSets(unittest.TestCase):
    """Pods with a volume each."""

    @classmethod
    def setUpClass(cls):
        cls.objects = render(files=[ci("statefulset")])
        cls.spec = cls.objects[("StatefulSet", "larder")]["spec"]

    def test_each_pod_has_its_own_volume(self):
        (claim,) = self.spec["volumeClaimTemplates"]
        self.assertEqual(claim["metadata"]["name"], "images")
        self.assertEqual(claim["metadata"]["annotations"], {"example.org/backup": "no"})
        self.assertEqual(
            claim["spec"],
            {
                "accessModes": ["ReadWriteOncePod"],
                "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": "500Gi"}},
                "storageClassName": "local-nvme",
            },
        )
        self.assertIn({"name": "images", "mountPath": "/var/lib/larder"}, container(self.objects, "StatefulSet")["volumeMounts"])
        self.assertNotIn("images", [volume["name"] for volume in pod(self.objects, "StatefulSet")["volumes"]])
        self.assertFalse({"PersistentVolumeClaim", "Deployment"} & {kind for kind, _ in self.objects})

    def test_an_upgrade_of_the_chart_changes_no_field_that_kubernetes_fixes(self):
        with tempfile.TemporaryDirectory() as copy:
            subprocess.run(["cp", "-r", f"{CHART}/.", copy], check=True)
            subprocess.run(["sed", "-i", r"s/^\(version\|appVersion\): .*/\1: 9.9.9/", f"{copy}/Chart.yaml"], check=True)
            later = render(files=[ci("statefulset")], chart=copy)[("StatefulSet", "larder")]
        self.assertEqual(later["metadata"]["labels"]["app.kubernetes.io/version"], "9.9.9")
        without_peers = render(STATEFUL)[("StatefulSet", "larder")]["spec"]
        for field in ("volumeClaimTemplates", "serviceName", "podManagementPolicy", "selector"):
            self.assertEqual(later["spec"][field], self.spec[field])
            if field != "volumeClaimTemplates":
                self.assertEqual(without_peers[field], self.spec[field])

    def test_the_service_of_the_pods_has_those_that_are_ready(self):
        for objects in (self.objects, render(STATEFUL)):
            service = objects[("Service", objects[("StatefulSet", "larder")]["spec"]["serviceName"])]["spec"]
            self.assertEqual((service["clusterIP"], service["publishNotReadyAddresses"]), ("None", False))
            labels = objects[("StatefulSet", "larder")]["spec"]["template"]["metadata"]["labels"]
            self.assertLessEqual(service["selector"].items(), labels.items())
        self.assertNotIn("peers", configuration(render(STATEFUL)))

    def test_pods_start_together_and_are_updated_one_after_the_other(self):
        self.assertEqual(self.spec["podManagementPolicy"], "Parallel")
        self.assertEqual(self.spec["replicas"], 3)
        self.assertEqual(render(STATEFUL)[("StatefulSet", "larder")]["spec"]["updateStrategy"], {"type": "RollingUpdate"})
        self.assertEqual(self.spec["updateStrategy"], {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}})
        single = render(files=[ci("statefulset-single")])[("StatefulSet", "larder")]["spec"]
        self.assertEqual(single["updateStrategy"], {"type": "OnDelete"})
        self.assertNotIn("strategy", self.spec)

    def test_volumes_are_kept_unless_the_values_say_otherwise(self):
        def policy(**values):
            return render(STATEFUL | values)[("StatefulSet", "larder")]["spec"]["persistentVolumeClaimRetentionPolicy"]

        self.assertEqual(policy(), {"whenDeleted": "Retain", "whenScaled": "Retain"})
        scaled = {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}
        self.assertEqual(policy(statefulset=scaled), {"whenDeleted": "Retain", "whenScaled": "Delete"})

    def test_a_pod_serves_until_its_last_response_because_the_next_one_waits_for_its_end(self):
        self.assertEqual(configuration(self.objects)["drain"], "serve")

    def test_the_volume_is_not_shared_whatever_its_access_mode(self):
        shared = {"persistentVolumeClaim": {"enabled": True, "newClaimSpec": {"accessModes": ["ReadWriteMany"]}}}
        run = helm(STATEFUL | {"replicaCount": 2, "persistence": shared})
        self.assertIn("each pod has its own volume, so pulls fail during an outage", run.stderr)


class Autoscaling(unittest.TestCase):
    """The number of pods follows their load."""

    def test_the_autoscaler_replaces_the_number_of_pods(self):
        for name, kind in (("autoscaling", "Deployment"), ("autoscaling-metrics", "StatefulSet")):
            objects = render(files=[ci(name)])
            self.assertNotIn("replicas", objects[(kind, "larder")]["spec"])
            target = objects[("HorizontalPodAutoscaler", "larder")]["spec"]["scaleTargetRef"]
            self.assertEqual(target, {"apiVersion": "apps/v1", "kind": kind, "name": "larder"})
            self.assertIn(("Service", "larder-peers"), objects)

    def test_cpu_is_the_metric_unless_others_are_given(self):
        spec = render(files=[ci("autoscaling")])[("HorizontalPodAutoscaler", "larder")]["spec"]
        self.assertEqual((spec["minReplicas"], spec["maxReplicas"]), (2, 6))
        self.assertEqual(spec["metrics"], [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}])
        self.assertEqual(spec["behavior"], {"scaleDown": {"stabilizationWindowSeconds": 3600}})
        with open(ci("autoscaling-metrics"), encoding="utf-8") as file:
            given = yaml.safe_load(file)["autoscaling"]["metrics"]
        other = render(files=[ci("autoscaling-metrics")])[("HorizontalPodAutoscaler", "larder")]["spec"]
        self.assertEqual(other["metrics"], given)
        self.assertNotIn("behavior", other)

    def test_a_limit_of_cpu_is_a_request(self):
        values = {"autoscaling": {"enabled": True}, "peers": {"enabled": True}, "resources": {"limits": {"cpu": 1}}}
        self.assertIn(("HorizontalPodAutoscaler", "larder"), render(values))

    def test_one_pod_needs_no_common_cache(self):
        values = {"autoscaling": {"enabled": True, "maxReplicas": 1}, "replicaCount": 5, "resources": {"requests": {"cpu": 1}}}
        self.assertIn(("HorizontalPodAutoscaler", "larder"), render(values))

    def test_without_it_there_is_no_autoscaler(self):
        self.assertNotIn("HorizontalPodAutoscaler", [kind for kind, _ in render({"replicaCount": 2, "peers": {"enabled": True}})])


class Spreading(unittest.TestCase):
    """Replicas run on different nodes and in different zones."""

    PREFERRED, REQUIRED = "preferredDuringSchedulingIgnoredDuringExecution", "requiredDuringSchedulingIgnoredDuringExecution"
    SEVERAL = {"replicaCount": 2, "peers": {"enabled": True}}

    def spec(self, values, kind="Deployment"):
        return pod(render(values), kind)

    def test_replicas_prefer_different_nodes(self):
        stateful = self.SEVERAL | STATEFUL
        scaled = {"autoscaling": {"enabled": True}, "peers": {"enabled": True}, "resources": {"requests": {"cpu": 1}}}
        for values, kind in ((self.SEVERAL, "Deployment"), (stateful, "StatefulSet"), (scaled, "Deployment")):
            objects = render(values)
            (rule,) = pod(objects, kind)["affinity"]["podAntiAffinity"][self.PREFERRED]
            self.assertEqual((rule["weight"], rule["podAffinityTerm"]["topologyKey"]), (100, "kubernetes.io/hostname"))
            labels = objects[(kind, "larder")]["spec"]["template"]["metadata"]["labels"]
            self.assertLessEqual(rule["podAffinityTerm"]["labelSelector"]["matchLabels"].items(), labels.items())

    def test_replicas_may_require_different_nodes_or_not_care(self):
        (rule,) = self.spec(self.SEVERAL | {"antiAffinity": "required"})["affinity"]["podAntiAffinity"][self.REQUIRED]
        self.assertEqual(rule["topologyKey"], "kubernetes.io/hostname")
        self.assertNotIn("affinity", self.spec(self.SEVERAL | {"antiAffinity": "none"}))

    def test_pods_without_replicas_have_no_rule(self):
        for values, kind in (({}, "Deployment"), (STATEFUL, "StatefulSet"), ({"mode": "daemonset", "peers": {"enabled": True}}, "DaemonSet")):
            self.assertNotIn("affinity", self.spec(values | {"antiAffinity": "required"}, kind))

    def test_the_affinity_in_the_values_takes_precedence(self):
        node, others, given = {self.REQUIRED: {"nodeSelectorTerms": []}}, {self.PREFERRED: []}, {self.REQUIRED: []}
        merged = self.spec(self.SEVERAL | {"affinity": {"nodeAffinity": node, "podAffinity": others}})["affinity"]
        self.assertEqual((merged["nodeAffinity"], merged["podAffinity"], list(merged["podAntiAffinity"])), (node, others, [self.PREFERRED]))
        replaced = self.spec(self.SEVERAL | {"affinity": {"nodeAffinity": node, "podAntiAffinity": given}})["affinity"]
        self.assertEqual(replaced, {"nodeAffinity": node, "podAntiAffinity": given})

    def test_a_spread_constraint_counts_the_pods_of_the_server(self):
        zone = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
        own = zone | {"labelSelector": {"matchLabels": {"app": "larder"}}}
        objects = render({"topologySpreadConstraints": [zone, own, zone | {"labelSelector": {}}]})
        added, kept, every = pod(objects)["topologySpreadConstraints"]
        self.assertEqual(added, zone | {"labelSelector": objects[("Deployment", "larder")]["spec"]["selector"]})
        self.assertEqual((kept, every), (own, zone | {"labelSelector": {}}))


class Parents(unittest.TestCase):
    """Other Larders that are asked before the registries."""

    def test_parents_are_added_to_the_configuration_unchanged(self):
        with open(ci("parents"), encoding="utf-8") as file:
            given = yaml.safe_load(file)["parents"]
        objects = render(files=[ci("parents")])
        self.assertEqual(configuration(objects)["parents"], given)
        # An empty list in the configuration is replaced: Larder rejects a key that is there twice.
        text = objects[("ConfigMap", "larder-config")]["data"]["larder.yaml"]
        self.assertEqual(len(re.findall("^parents:", text, re.M)), 1, text)
        self.assertNotIn("parents", configuration(render()))

    def test_parents_follow_a_text(self):
        text = "# A comment.\nport: 5000\nhealth: 5001\ncacheSize: 1GB\n"
        objects = render({"parents": ["http://a:1"], "serverConfig": {"configuration": text}})
        self.assertEqual(objects[("ConfigMap", "larder-config")]["data"]["larder.yaml"], text + "# Added by the chart.\nparents:\n- http://a:1\n")
        replaced = render({"parents": ["http://a:1"], "serverConfig": {"configuration": text + "parents: []\n"}})
        self.assertEqual(configuration(replaced), yaml.safe_load(text) | {"parents": ["http://a:1"]})
        self.assertEqual(replaced[("ConfigMap", "larder-config")]["data"]["larder.yaml"].count("parents:"), 1)

    def test_parents_and_peers_can_be_combined(self):
        of = configuration(render(files=[ci("daemonset-peers")]), "larder-config")
        self.assertEqual((of["parents"], of["peers"]["dns"]), (["http://larder-central.caches.svc:8080"], "larder-peers.caches.svc"))


class ObjectStore(unittest.TestCase):
    """A bucket behind the caches."""

    BUCKET = {"objectStore": {"bucket": "larder", "endpoint": "http://s3:8333"}}

    def test_the_bucket_is_added_to_the_configuration(self):
        objects = render(files=[ci("bucket-role")])
        with open(ci("bucket-role"), encoding="utf-8") as file:
            given = {key: value for key, value in yaml.safe_load(file)["objectStore"].items() if value != ""}
        self.assertEqual(configuration(objects)["objectStore"], given)
        self.assertNotIn("objectStore", configuration(render()))
        # An empty entry in the configuration is replaced: Larder rejects a key that is there twice.
        text = render(files=[ci("bucket")])[("ConfigMap", "larder-config")]["data"]["larder.yaml"]
        self.assertEqual(len(re.findall("^objectStore:", text, re.M)), 1, text)

    def test_the_bucket_follows_a_text(self):
        text = "# A comment.\nport: 5000\nhealth: 5001\ncacheSize: 1GB\n"
        objects = render(self.BUCKET | {"serverConfig": {"configuration": text}})
        added = "# Added by the chart.\nobjectStore:\n  bucket: larder\n  endpoint: http://s3:8333\n"
        self.assertEqual(objects[("ConfigMap", "larder-config")]["data"]["larder.yaml"], text + added)

    def test_the_value_has_the_keys_of_the_configuration(self):
        with open(os.path.join(CHART, "values.schema.json"), encoding="utf-8") as file:
            schema = json.load(file)["properties"]
        of_larder = schema["serverConfig"]["properties"]["configuration"]["properties"]["objectStore"]["properties"]
        account = {"accessKeyId", "secretAccessKey", "secretAccessKeyFromEnv", "secretAccessKeyFile"}
        of_chart = {"existingSecret", "accessKeyIdKey", "secretAccessKeyKey", "caFrom"}
        self.assertEqual(set(schema["objectStore"]["properties"]) - of_chart, set(of_larder) - account)

    def test_the_keys_of_a_secret_are_the_environment_variables_of_amazon(self):
        def env(name):
            return container(render(files=[ci(name)])).get("env")

        def of(secret, identity, key):
            return [
                {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": secret, "key": identity}}},
                {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}},
            ]

        self.assertEqual(env("bucket"), of("larder-bucket", "accessKeyId", "secretAccessKey"))
        self.assertEqual(env("bucket-keys"), of("garage", "GARAGE_KEY", "GARAGE_SECRET") + [{"name": "TZ", "value": "UTC"}])
        self.assertIsNone(env("bucket-role"))

    def test_the_configuration_has_no_keys(self):
        for name in ("bucket", "bucket-keys"):
            store = configuration(render(files=[ci(name)]))["objectStore"]
            self.assertFalse({"existingSecret", "accessKeyIdKey", "secretAccessKeyKey", "caFrom"} & set(store), store)

    def test_the_authority_of_the_store_is_mounted(self):
        for name, source in (("bucket", {"configMap": {"name": "corp-ca"}}), ("bucket-keys", {"secret": {"secretName": "larder-server"}})):
            objects = render(files=[ci(name)])
            self.assertIn({"name": "object-store-ca"} | source, pod(objects)["volumes"])
            (mount,) = [m for m in container(objects)["volumeMounts"] if m["name"] == "object-store-ca"]
            tls = configuration(objects)["objectStore"]["tls"]
            self.assertEqual((tls["ca"], mount["readOnly"]), (f"{mount['mountPath']}/ca.crt", True))
        self.assertEqual(sorted(tls), ["ca", "cert", "key"])
        named = self.BUCKET["objectStore"] | {"caFrom": {"secret": "a", "key": "root.pem"}}
        self.assertEqual(configuration(render({"objectStore": named}))["objectStore"]["tls"], {"ca": "/run/secrets/object-store/root.pem"})
        self.assertNotIn("object-store-ca", [v["name"] for v in pod(render(self.BUCKET))["volumes"]])

    def test_pods_that_upload_to_a_bucket_need_no_other_common_cache(self):
        in_configuration = {"serverConfig": {"configuration": self.BUCKET}}
        for values in (self.BUCKET, in_configuration):
            for mode in MODES:
                with self.subTest(values, mode=mode):
                    render({"mode": mode} | MODES[mode] | values)
                    self.assertNotEqual(helm({"mode": mode} | MODES[mode]).returncode, 0)

    def test_a_bucket_that_is_only_read_is_not_a_common_cache(self):
        for values in ({"objectStore": {"bucket": "a", "readOnly": True}}, {"serverConfig": {"configuration": {"objectStore": {"bucket": "a", "readOnly": True}}}}):
            for mode in MODES:
                with self.subTest(values, mode=mode):
                    self.assertIn("or objectStore without readOnly", helm({"mode": mode} | MODES[mode] | values).stderr)

    def test_the_notes_say_what_the_bucket_keeps(self):
        single, several = notes(values=self.BUCKET), notes(values=self.BUCKET | {"replicaCount": 2})
        for text in (single, several):
            self.assertIn("The bucket larder keeps what was uploaded", text)
            self.assertNotIn("To keep it, set", text)
        self.assertNotIn("Set peers.enabled", single)
        self.assertIn("Set peers.enabled to avoid both", several)
        self.assertIn("Set peers.enabled", notes(values=self.BUCKET | {"mode": "daemonset"}))
        self.assertNotIn("Set peers.enabled", notes(values=self.BUCKET | {"replicaCount": 2, "peers": {"enabled": True}}))
        self.assertNotIn("Set peers.enabled", notes(values=self.BUCKET | {"mode": "daemonset", "daemonset": {"hostPort": {"enabled": True}}}))
        self.assertIn("To keep it, set", notes(values={"objectStore": {"bucket": "a", "readOnly": True}}))
        volume = self.BUCKET | {"persistence": {"persistentVolumeClaim": {"enabled": True}}}
        self.assertNotIn("keeps what was uploaded", notes(values=volume))


class Nodes(unittest.TestCase):
    """A cache on each node, and the daemon set that configures containerd."""

    @classmethod
    def setUpClass(cls):
        cls.objects = render(files=[ci("daemonset")])

    def test_each_node_uses_its_own_pod(self):
        larder = container(self.objects, "DaemonSet")
        self.assertEqual(
            larder["ports"][0],
            {"name": "http", "containerPort": 8080, "protocol": "TCP", "hostPort": 5000, "hostIP": "127.0.0.1"},
        )
        self.assertEqual(pod(self.objects, "DaemonSet")["volumes"][0]["hostPath"]["path"], "/srv/larder")
        service = self.objects[("Service", "larder")]["spec"]
        self.assertEqual((service["type"], service["internalTrafficPolicy"]), ("ClusterIP", "Local"))
        self.assertNotIn("replicas", self.objects[("DaemonSet", "larder")]["spec"])

    def test_containerd_is_configured_with_the_host_port(self):
        spec = pod(self.objects, "DaemonSet", "larder-configure")
        self.assertEqual(
            spec["containers"][0]["args"],
            ["hosts-toml", "http://127.0.0.1:5000", "--for", "containerd", "--write", "/etc/containerd/certs.d", "--stay"]
            + ["--registry", "docker.io", "--registry", "registry.corp:5000"],
        )

    def test_the_pods_that_write_on_nodes_see_one_directory_and_have_no_capabilities(self):
        spec = pod(self.objects, "DaemonSet", "larder-configure")
        self.assertEqual([v["hostPath"]["path"] for v in spec["volumes"]], ["/etc/containerd/certs.d"])
        context = spec["containers"][0]["securityContext"]
        self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
        self.assertIs(context["allowPrivilegeEscalation"], False)
        self.assertIs(context["readOnlyRootFilesystem"], True)
        self.assertIs(spec["automountServiceAccountToken"], False)

    def test_nodes_that_share_their_caches_find_each_other_in_the_pod_network(self):
        objects = render(files=[ci("daemonset-peers")])
        larder = container(objects, "DaemonSet")
        self.assertEqual((larder["ports"][0]["hostPort"], larder["ports"][0]["containerPort"]), (5000, 8080))
        self.assertNotIn("hostNetwork", pod(objects, "DaemonSet"))
        service = objects[("Service", "larder-peers")]["spec"]
        self.assertEqual((service["clusterIP"], service["publishNotReadyAddresses"], service["ports"][0]["port"]), ("None", False, 8080))
        labels = objects[("DaemonSet", "larder")]["spec"]["template"]["metadata"]["labels"]
        self.assertLessEqual(service["selector"].items(), labels.items())
        self.assertEqual(configuration(objects)["peers"], {"dns": "larder-peers.caches.svc", "port": 8080})

    def test_the_service_does_not_select_the_configuring_pods(self):
        selector = self.objects[("Service", "larder")]["spec"]["selector"]
        labels = self.objects[("DaemonSet", "larder-configure")]["spec"]["template"]["metadata"]["labels"]
        self.assertFalse(selector.items() <= labels.items())

    def test_with_host_network_larder_is_reached_on_the_node(self):
        objects = render(files=[ci("host-network")])
        spec = pod(objects, "DaemonSet")
        self.assertEqual((spec["hostNetwork"], spec["dnsPolicy"]), (True, "Default"))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            self.assertEqual(container(objects, "DaemonSet")[probe]["httpGet"]["host"], "127.0.0.1")
        configure = pod(objects, "DaemonSet", "larder-configure")
        self.assertEqual(configure["containers"][0]["args"][1], "http://127.0.0.1:5000")
        self.assertIs(configure["hostNetwork"], True)
        self.assertNotIn("hostNetwork", pod(self.objects, "DaemonSet", "larder-configure"))

    def test_containerd_is_configured_with_the_node_port(self):
        self.assertEqual(self.configured({}), "http://127.0.0.1:31080")

    def configured(self, values, **configure):
        """The URL that configureNodes writes."""
        objects = render(values | {"configureNodes": configure | {"enabled": True}})
        return pod(objects, "DaemonSet", "larder-configure")["containers"][0]["args"][1]

    def test_containerd_may_be_configured_with_another_address(self):
        everywhere = {"mode": "daemonset", "daemonset": {"hostPort": {"enabled": True, "hostIP": ""}}}
        on_host = {"mode": "daemonset", "daemonset": {"hostNetwork": True}}
        for values, address, expected in (
            ({}, "HOST_IP", "http://[$(HOST_IP)]:31080"),
            ({}, "10.0.0.100", "http://10.0.0.100:31080"),
            ({}, "fd00::100", "http://[fd00::100]:31080"),
            ({}, "vip.example", "http://vip.example:31080"),
            ({"serverTls": {"enabled": True, "secretName": "a"}}, "HOST_IP", "https://[$(HOST_IP)]:31080"),
            (everywhere, "HOST_IP", "http://[$(HOST_IP)]:5000"),
            (on_host, "HOST_IP", "http://[$(HOST_IP)]:8080"),
        ):
            with self.subTest(address=address, expected=expected):
                self.assertEqual(self.configured(values, address=address), expected)

    def test_the_address_of_the_node_comes_from_kubernetes(self):
        objects = render({"configureNodes": {"enabled": True, "server": "http://$(HOST_IP):5000"}})
        environment = pod(objects, "DaemonSet", "larder-configure")["containers"][0]["env"]
        self.assertEqual(environment, [{"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}])


class Observability(unittest.TestCase):
    """Prometheus and Grafana get the files of the repository."""

    @classmethod
    def setUpClass(cls):
        cls.objects = render(files=[ci("observability")])

    def test_the_monitor_selects_only_the_metrics_service(self):
        selector = self.objects[("ServiceMonitor", "larder")]["spec"]["selector"]["matchLabels"]
        found = [n for (k, n), o in self.objects.items() if k == "Service" and selector.items() <= o["metadata"]["labels"].items()]
        self.assertEqual(found, ["larder-metrics"])
        port = self.objects[("Service", "larder-metrics")]["spec"]["ports"][0]
        endpoint = self.objects[("ServiceMonitor", "larder")]["spec"]["endpoints"][0]
        self.assertEqual((port["name"], port["targetPort"], endpoint["port"]), ("metrics", 2112, "metrics"))
        self.assertEqual(self.objects[("ServiceMonitor", "larder")]["spec"]["namespaceSelector"]["matchNames"], ["caches"])

    def test_the_job_has_the_name_that_the_alerts_expect(self):
        for values in ({}, {"fullnameOverride": "mirror"}):
            values = values | {"metrics": {"port": 2112}, "observability": {"enabled": True}}
            monitor = next(o for (k, _), o in render(values).items() if k == "ServiceMonitor")
            relabeling = monitor["spec"]["endpoints"][0]["relabelings"][0]
            self.assertEqual(relabeling["targetLabel"], "job")
            self.assertRegex(relabeling["replacement"], "^.*larder.*$")

    def test_the_rules_are_those_of_the_repository(self):
        with open(os.path.join(CHART, "rules", "larder.yaml"), encoding="utf-8") as file:
            self.assertEqual(self.objects[("PrometheusRule", "larder")]["spec"], yaml.safe_load(file))

    def test_the_dashboard_is_that_of_the_repository(self):
        config_map = self.objects[("ConfigMap", "larder-dashboards")]
        self.assertEqual(config_map["metadata"]["labels"]["grafana_dashboard"], "1")
        with open(os.path.join(CHART, "dashboards", "larder.json"), encoding="utf-8") as file:
            self.assertEqual(json.loads(config_map["data"]["larder.json"]), json.load(file))

    def test_each_part_can_be_disabled(self):
        for part, kind in (("serviceMonitor", "ServiceMonitor"), ("prometheusRule", "PrometheusRule")):
            values = {"observability": {"enabled": True, part: {"enabled": False}}, "metrics": {"port": 2112}}
            self.assertNotIn(kind, [k for k, _ in render(values)])


class Tests(unittest.TestCase):
    """The pod of `helm test`, which pulls as a node does."""

    def args(self, values):
        return render(values)[("Pod", "larder-test")]["spec"]["containers"][0]["args"]

    def test_the_pod_pulls_at_the_port_of_the_nodes_or_else_through_the_service(self):
        tls = {"serverTls": {"enabled": True, "secretName": "a"}}
        host_port = {"mode": "daemonset", "daemonset": {"hostPort": {"enabled": True}}}
        host_network = {"mode": "daemonset", "daemonset": {"hostNetwork": True}}
        for values, url in (
            ({}, "http://[$(HOST_IP)]:31080"),
            (tls, "https://[$(HOST_IP)]:31080"),
            ({"service": {"type": "ClusterIP"}}, "http://larder.caches.svc:8080"),
            ({"service": {"type": "LoadBalancer", "port": 80}}, "http://larder.caches.svc:80"),
            ({"service": {"nodePort": None}}, "http://larder.caches.svc:8080"),
            (host_port, "http://127.0.0.1:5000"),
            (host_network, "http://127.0.0.1:8080"),
            ({"test": {"server": "http://10.0.0.1:1"}}, "http://10.0.0.1:1"),
        ):
            with self.subTest(values):
                self.assertEqual(self.args(values)[:3], ["check", "--server", url])
                self.assertEqual(self.args(values)[-1], "docker.io/library/hello-world:latest")
                self.assertEqual("--skip-verify" in self.args(values), url.startswith("https"))
                spec = render(values)[("Pod", "larder-test")]["spec"]
                self.assertEqual(spec.get("hostNetwork", False), "daemonset" in values)

    def test_the_pod_may_have_the_files_that_clients_need(self):
        given = ["--ca", "/run/secrets/client/ca.crt", "--client-cert", "/run/secrets/client/tls.crt", "--client-key", "/run/secrets/client/tls.key"]
        objects = render(files=[ci("tls"), ci("tls-test")])
        spec = objects[("Pod", "larder-test")]["spec"]
        self.assertEqual(spec["containers"][0]["args"][3:-1], given)
        self.assertEqual(spec["volumes"][0]["name"], spec["containers"][0]["volumeMounts"][0]["name"])
        self.assertNotIn(("Pod", "larder-test"), render(files=[ci("tls")]))
        users = {"serverConfig": {"configuration": {"serverAuthConfig": {"htpasswd": "/run/users"}}}}
        self.assertNotIn(("Pod", "larder-test"), render(users))
        self.assertIn("--user", self.args(users | {"test": {"extraArgs": ["--user", "a", "--password-file", "/b"]}}))

    def test_the_pod_meets_the_restricted_pod_security_standard(self):
        objects = render()
        test, larder = objects[("Pod", "larder-test")]["spec"], pod(objects)
        self.assertEqual(test["securityContext"], larder["securityContext"])
        self.assertEqual(test["containers"][0]["securityContext"], container(objects)["securityContext"])
        self.assertIs(test["automountServiceAccountToken"], False)

    def test_the_pod_is_no_pod_of_the_server_and_no_part_of_the_release(self):
        objects = render()
        metadata = objects[("Pod", "larder-test")]["metadata"]
        self.assertEqual(metadata["annotations"]["helm.sh/hook"], "test")
        selector = objects[("Service", "larder")]["spec"]["selector"]
        self.assertFalse(selector.items() <= metadata["labels"].items())
        self.assertNotIn(("Pod", "larder-test"), render({"test": {"enabled": False}}))

    def test_a_network_policy_lets_the_pod_pull(self):
        client = {"ipBlock": {"cidr": "10.0.0.0/8"}}
        objects = render({"networkPolicy": {"enabled": True, "clients": [client]}})
        (_, rule) = objects[("NetworkPolicy", "larder")]["spec"]["ingress"][0]["from"]
        labels = objects[("Pod", "larder-test")]["metadata"]["labels"]
        self.assertLessEqual(rule["podSelector"]["matchLabels"].items(), labels.items())


class MissingKinds(unittest.TestCase):
    """Objects whose kinds the cluster does not have are left out; they would make the installation fail."""

    def test_the_installation_succeeds_without_custom_kinds(self):
        for file in glob.glob(os.path.join(CHART, "ci", "*.yaml")):
            with self.subTest(os.path.basename(file)):
                objects = render(files=[file], kinds=())
                custom = [o["kind"] for o in objects.values() if not re.fullmatch(r"v1|apps/v1|autoscaling/v2|policy/v1|networking.k8s.io/v1", o["apiVersion"])]
                self.assertEqual(custom, [])

    def test_each_kind_is_checked_separately(self):
        files = [ci("observability"), ci("outside")]
        for kind in CUSTOM_KINDS:
            found = {k for k, _ in render(files=files, kinds=(kind,))} & {each.split("/")[-1] for each in CUSTOM_KINDS}
            self.assertEqual(found, {kind.split("/")[-1]})

    def test_the_other_objects_for_prometheus_and_grafana_are_created(self):
        objects = render(files=[ci("observability")], kinds=())
        self.assertIn(("Service", "larder-metrics"), objects)
        self.assertIn(("ConfigMap", "larder-dashboards"), objects)

    def test_the_notes_name_what_is_left_out(self):
        text = notes(files=[ci("observability"), ci("outside")], kinds=CUSTOM_KINDS[:1])
        kinds = "HTTPRoute (gateway.networking.k8s.io/v1), PrometheusRule (monitoring.coreos.com/v1)"
        self.assertIn(f"Not created, because the cluster does not have these kinds: {kinds}.\n", text)
        self.assertNotIn("Not created", notes(files=[ci("observability"), ci("outside")]))
        self.assertNotIn("Not created", notes(kinds=()))

    def test_every_custom_kind_is_in_the_table(self):
        """Templates must not create an object of a custom kind without the check."""
        for file in glob.glob(os.path.join(CHART, "templates", "*.yaml")):
            with open(file, encoding="utf-8") as opened:
                text = opened.read()
            for version, kind in re.findall(r"^apiVersion: (\S+\.\S+\.\S+/\S+)\nkind: (\S+)$", text, re.M):
                if version != "networking.k8s.io/v1":
                    self.assertIn(f"{version}/{kind}", CUSTOM_KINDS)
                    self.assertIn(f'"kind" "{kind}"', text)


class Others(unittest.TestCase):
    """The other values."""

    def test_an_image_is_named_by_tag_digest_or_both(self):
        digest = "sha256:" + "0" * 64
        for image, expected in (
            ({"registry": "r.example", "tag": "1"}, "r.example/larder:1"),
            ({"registry": "", "repository": "a/larder"}, "a/larder:0.1.0"),
            ({"digest": digest}, f"localhost/larder@{digest}"),
            ({"tag": "1", "digest": digest}, f"localhost/larder:1@{digest}"),
        ):
            self.assertEqual(container(render({"image": image}))["image"], expected)

    def test_pull_secrets_are_mounted_for_docker_config(self):
        objects = render(files=[ci("private-registries")])
        self.assertIn({"name": "pull-0", "secret": {"secretName": "quay-pull"}}, pod(objects)["volumes"])
        named = configuration(objects)["registries"][1]["auth"]["dockerConfig"]
        self.assertIn(os.path.dirname(named), [m["mountPath"] for m in container(objects)["volumeMounts"]])

    def test_a_disruption_budget_lets_a_single_pod_be_evicted(self):
        budget = render({"podDisruptionBudget": {"enabled": True}})[("PodDisruptionBudget", "larder")]["spec"]
        self.assertEqual((budget["maxUnavailable"], budget.get("minAvailable")), (1, None))
        least = render(files=[ci("claim")])[("PodDisruptionBudget", "larder")]["spec"]
        self.assertEqual((least["minAvailable"], least.get("maxUnavailable")), (1, None))

    def test_a_network_policy_allows_only_images_and_metrics(self):
        policy = render({"networkPolicy": {"enabled": True}, "metrics": {"port": 2112}})[("NetworkPolicy", "larder")]["spec"]
        self.assertEqual([rule["ports"][0]["port"] for rule in policy["ingress"]], [8080, 2112])
        self.assertEqual(policy["policyTypes"], ["Ingress"])
        self.assertEqual(render(files=[ci("management")])[("NetworkPolicy", "larder")]["spec"]["policyTypes"], ["Ingress", "Egress"])

    def test_a_network_policy_lets_the_pods_reach_each_other(self):
        def rules(kind, **policy):
            values = {"mode": kind, "peers": {"enabled": True}, "networkPolicy": {"enabled": True} | policy} | MODES[kind]
            objects = render(values)
            spec = objects[("NetworkPolicy", "larder")]["spec"]
            own = {"podSelector": {"matchLabels": spec["podSelector"]["matchLabels"]}}
            port = [{"port": 8080, "protocol": "TCP"}]
            ingress = [rule for rule in spec["ingress"] if rule["ports"] == port and ("from" not in rule or own in rule["from"])]
            egress = [rule for rule in spec.get("egress", []) if rule.get("ports") == port and rule.get("to") == [own]]
            return len(ingress), len(egress)

        client, dns = {"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ports": [{"port": 53, "protocol": "UDP"}]}
        for kind in MODES:
            with self.subTest(kind):
                self.assertEqual(rules(kind), (1, 0))
                self.assertEqual(rules(kind, clients=[client], egress=[dns]), (1, 1))
        alone = render({"networkPolicy": {"enabled": True, "clients": [client], "egress": [dns]}})[("NetworkPolicy", "larder")]["spec"]
        self.assertEqual((alone["ingress"][0]["from"][0], alone["egress"]), (client, [dns]))

    def test_extra_manifests_are_rendered_as_templates(self):
        objects = render(files=[ci("everything-else")])
        self.assertEqual(objects[("ConfigMap", "mirror-extra")]["data"], {"release": "larder"})
        self.assertIn(("ConfigMap", "larder-text"), objects)

    def test_the_cluster_may_choose_the_user(self):
        spec = pod(render("podSecurityContext: {runAsUser: , runAsGroup: , fsGroup: , fsGroupChangePolicy: }"))
        self.assertEqual(spec["securityContext"], {"seccompProfile": {"type": "RuntimeDefault"}})

    def test_an_additional_container_may_run_as_root(self):
        spec = pod(render(files=[ci("everything-else")]), name="mirror")
        self.assertEqual(spec["securityContext"]["runAsUser"], 1000)
        self.assertNotIn("runAsNonRoot", spec["securityContext"])
        self.assertEqual(spec["initContainers"][0]["securityContext"], {"runAsUser": 0})

    def test_routes_and_ingresses_route_to_the_service(self):
        objects = render(files=[ci("outside")])
        rules = objects[("Ingress", "larder")]["spec"]["rules"]
        self.assertEqual(rules[0]["http"]["paths"][0]["pathType"], "Prefix")
        for rule in rules:
            self.assertEqual(rule["http"]["paths"][0]["backend"]["service"], {"name": "larder", "port": {"number": 8080}})
        self.assertEqual(objects[("HTTPRoute", "larder")]["spec"]["rules"][0]["backendRefs"], [{"name": "larder", "port": 8080}])

    def test_long_names_are_truncated(self):
        objects = render({"configureNodes": {"enabled": True}}, release="a" * 53)
        for _, name in objects:
            self.assertLessEqual(len(name), 63)

    def test_two_releases_in_a_namespace_do_not_conflict(self):
        values = {"configureNodes": {"enabled": True}}
        one, other = render(values, release="one"), render(values, release="other")
        self.assertFalse(set(one) & set(other))
        selector = one[("Service", "one-larder")]["spec"]["selector"]
        labels = other[("Deployment", "other-larder")]["spec"]["template"]["metadata"]["labels"]
        self.assertFalse(selector.items() <= labels.items())


class Reference(unittest.TestCase):
    """Values of the reference server's chart work unchanged."""

    def test_every_file_renders(self):
        files = glob.glob(os.path.join(HERE, "reference", "*.yaml"))
        self.assertGreaterEqual(len(files), 8)
        for file in files:
            with self.subTest(os.path.basename(file)):
                render(files=[file])

    def test_all_keys_take_effect(self):
        objects = render(files=[os.path.join(HERE, "reference", "all-keys.yaml")])
        larder = container(objects)
        self.assertEqual(larder["args"], ["--config-file", "/var/ociregistry/config/larder.yaml", "serve"])
        self.assertIn({"name": "images", "mountPath": "/var/lib/ociregistry", "readOnly": False}, larder["volumeMounts"])
        self.assertEqual(configuration(objects)["imagePath"], "/var/lib/ociregistry")
        self.assertIs(pod(objects)["automountServiceAccountToken"], True)
        self.assertEqual(larder["securityContext"]["capabilities"], {"drop": ["ALL"]})

    def test_the_reference_image_is_rejected_with_instructions(self):
        run = helm({"image": {"ociregistry": {"registry": "quay.io", "tag": "1.12.5"}}})
        self.assertNotEqual(run.returncode, 0)
        self.assertIn("image.ociregistry names the reference server's image: remove it", run.stderr)


# Values, and the error for them.
REJECTED = (
    ("replicas: 2", "Additional property replicas is not allowed"),
    ("image: {name: larder}", "image: Additional property name is not allowed"),
    ("image: {pullPolicy: Sometimes}", "image.pullPolicy must be one of"),
    ("image: {digest: abc}", "image.digest: Does not match pattern"),
    ("mode: job", "mode must be one of"),
    ("statefulset: {strategy: {}}", "statefulset: Additional property strategy is not allowed"),
    ("statefulset: {updateStrategy: {type: Recreate}}", "statefulset.updateStrategy.type must be one of"),
    ("statefulset: {updateStrategy: {rollingUpdate: {maxSurge: 1}}}", "statefulset.updateStrategy.rollingUpdate: Additional property maxSurge is not allowed"),
    ("statefulset: {persistentVolumeClaimRetentionPolicy: {whenScaled: Keep}}", "persistentVolumeClaimRetentionPolicy.whenScaled must be one of"),
    ("autoscaling: {max: 3}", "autoscaling: Additional property max is not allowed"),
    ("autoscaling: {minReplicas: 0}", "autoscaling.minReplicas: Must be greater than or equal to 1"),
    ("autoscaling: {metrics: [{type: Cpu}]}", "autoscaling.metrics.0.type must be one of"),
    ("autoscaling: {behavior: {scaledown: {}}}", "autoscaling.behavior: Additional property scaledown is not allowed"),
    ("antiAffinity: hard", "antiAffinity must be one of"),
    ("affinity: {podAntiaffinity: {}}", "affinity: Additional property podAntiaffinity is not allowed"),
    ("parents: http://a", "parents: Invalid type"),
    ("parents: [a:8080]", "parents.0: Does not match pattern"),
    ("parents: [{kind: larder}]", "parents.0: url is required"),
    ("parents: [{url: 'ftp://a'}]", "parents.0.url: Does not match pattern"),
    ("parents: [{url: 'http://a', user: a}]", "parents.0: Additional property user is not allowed"),
    ("parents: [{url: 'http://a', tls: {cacert: a}}]", "parents.0.tls: Additional property cacert is not allowed"),
    ("objectStore: larder", "objectStore: Invalid type"),
    ("objectStore: {bucket: a, key: b}", "objectStore: Additional property key is not allowed"),
    ("objectStore: {bucket: a, secretAccessKey: b}", "objectStore: Additional property secretAccessKey is not allowed"),
    ("objectStore: {bucket: a, endpoint: 's3:9000'}", "objectStore.endpoint: Does not match pattern"),
    ("objectStore: {bucket: a, addressing: virtualHost}", "objectStore.addressing must be one of"),
    ("objectStore: {bucket: a, uploads: 0}", "objectStore.uploads: Must be greater than or equal to 1"),
    ("objectStore: {bucket: a, readOnly: 'yes'}", "objectStore.readOnly: Invalid type"),
    ("objectStore: {bucket: a, tls: {cacert: a}}", "objectStore.tls: Additional property cacert is not allowed"),
    ("objectStore: {bucket: a, caFrom: {name: a}}", "objectStore.caFrom: Additional property name is not allowed"),
    ("objectStore: {bucket: a, caFrom: a}", "objectStore.caFrom: Invalid type"),
    ("serviceAccount: {automountToken: true}", "serviceAccount: Additional property automountToken is not allowed"),
    ("service: {nodeport: 31080}", "service: Additional property nodeport is not allowed"),
    ("service: {nodePort: 99999}", "service.nodePort: Must be less than or equal to 65535"),
    ("service: {type: ExternalName}", "service.type must be one of"),
    ("health: {path: /}", "health: Additional property path is not allowed"),
    ("metrics: {enabled: true}", "metrics: Additional property enabled is not allowed"),
    ("serverTls: {enabled: true, secret: x}", "serverTls: Additional property secret is not allowed"),
    ("serverTls: {clientAuth: require}", "serverTls.clientAuth must be one of"),
    ("ingress: {host: a}", "ingress: Additional property host is not allowed"),
    ("ingress: {hosts: [{host: a, path: /}]}", "ingress.hosts.0: Additional property path is not allowed"),
    ("ingress: {hosts: [{host: a, paths: [{path: /, type: Prefix}]}]}", "ingress.hosts.0.paths.0: Additional property type is not allowed"),
    ("httpRoute: {hostname: a}", "httpRoute: Additional property hostname is not allowed"),
    ("volumeMounts: [{name: images}]", "volumeMounts.0: mountPath is required"),
    ("daemonset: {hostPort: {number: 1}}", "daemonset.hostPort: Additional property number is not allowed"),
    ("daemonset: {hostport: {}}", "daemonset: Additional property hostport is not allowed"),
    ("probes: {ready: {}}", "probes: Additional property ready is not allowed"),
    ("probes: {liveness: {period: 1}}", "probes.liveness: Additional property period is not allowed"),
    ("persistence: {pvc: {enabled: true}}", "persistence: Additional property pvc is not allowed"),
    ("persistence: {persistentVolumeClaim: {size: 1Gi}}", "persistence.persistentVolumeClaim: Additional property size is not allowed"),
    (
        "persistence: {persistentVolumeClaim: {newClaimSpec: {storage: 1Gi}}}",
        "persistence.persistentVolumeClaim.newClaimSpec: Additional property storage is not allowed",
    ),
    ("persistence: {hostPath: {path: cache}}", "persistence.hostPath.path: Does not match pattern"),
    ("persistence: {hostPath: {readOnly: true}}", "persistence.hostPath: Additional property readOnly is not allowed"),
    ("persistence: {emptyDir: {size: 2Gi}}", "persistence.emptyDir: Additional property size is not allowed"),
    ("persistence: {emptyDir: {sizeLimit: 2GB}}", "persistence.emptyDir.sizeLimit: Does not match pattern"),
    ("podDisruptionBudget: {minUnavailable: 1}", "podDisruptionBudget: Additional property minUnavailable is not allowed"),
    ("networkPolicy: {ingress: []}", "networkPolicy: Additional property ingress is not allowed"),
    ("configureNodes: {url: a}", "configureNodes: Additional property url is not allowed"),
    ("configureNodes: {server: 'larder:8080'}", "configureNodes.server: Does not match pattern"),
    ("serverConfig: {config: {}}", "serverConfig: Additional property config is not allowed"),
    ("serverConfig: {configuration: {tagTTL: 5m}}", "serverConfig.configuration: Additional property tagTTL is not allowed"),
    ("serverConfig: {configuration: {registries: [{host: a}]}}", "Additional property host is not allowed"),
    ("observability: {grafana: {}}", "observability: Additional property grafana is not allowed"),
    ("observability: {serviceMonitor: {path: /}}", "observability.serviceMonitor: Additional property path is not allowed"),
    ("observability: {dashboards: {label: a}}", "observability.dashboards: Additional property label is not allowed"),
    ("observability: {prometheusRule: {rules: []}}", "observability.prometheusRule: Additional property rules is not allowed"),
    # Errors that the templates report, because a schema cannot.
    ("observability: {enabled: true}", "observability.enabled needs a port for metrics: set metrics.port=2112"),
    (
        "persistence: {hostPath: {enabled: true}, persistentVolumeClaim: {enabled: true}}",
        "persistence.persistentVolumeClaim and persistence.hostPath are both enabled",
    ),
    ("{replicaCount: 2, persistence: {persistentVolumeClaim: {enabled: true}}}", "several pods cannot share a ReadWriteOnce volume"),
    ("{mode: daemonset, persistence: {persistentVolumeClaim: {enabled: true}}}", "several pods cannot share a ReadWriteOnce volume"),
    ("replicaCount: 2", "with replicaCount: 2 each pod has its own cache"),
    ("replicaCount: 2", "Set peers.enabled, so that the pods fetch from each other; or replicaCount: 1; or one volume for all pods"),
    ("{peers: {enabled: true}, serverConfig: {configuration: {peers: {urls: ['http://a']}}}}", "remove one of them"),
    ("{parents: ['http://a'], serverConfig: {configuration: {parents: ['http://b']}}}", "parents and serverConfig.configuration.parents conflict"),
    ('{parents: ["http://a"], serverConfig: {configuration: "parents: [http://b]"}}', "parents and serverConfig.configuration.parents conflict"),
    ("objectStore: {region: eu-central-1}", "objectStore needs objectStore.bucket"),
    ("objectStore: {bucket: '', existingSecret: a}", "objectStore needs objectStore.bucket"),
    (
        "{objectStore: {bucket: a}, serverConfig: {configuration: {objectStore: {bucket: b}}}}",
        "objectStore and serverConfig.configuration.objectStore conflict",
    ),
    ('{objectStore: {bucket: a}, serverConfig: {configuration: "objectStore: {bucket: b}"}}', "objectStore and serverConfig.configuration.objectStore conflict"),
    ("objectStore: {bucket: a, existingSecret: b, profile: c}", "objectStore.existingSecret and objectStore.profile conflict"),
    (
        "{objectStore: {bucket: a, existingSecret: b}, env: [{name: AWS_ACCESS_KEY_ID, value: c}]}",
        "objectStore.existingSecret and AWS_ACCESS_KEY_ID in env conflict",
    ),
    ("objectStore: {bucket: a, secretAccessKeyKey: b}", "objectStore.secretAccessKeyKey need objectStore.existingSecret"),
    ("objectStore: {bucket: a, caFrom: {key: b}}", "objectStore.caFrom needs either configMap or secret"),
    ("objectStore: {bucket: a, caFrom: {configMap: b, secret: c}}", "objectStore.caFrom needs either configMap or secret"),
    ("objectStore: {bucket: a, caFrom: {secret: b}, tls: {ca: /c}}", "objectStore.caFrom and objectStore.tls.ca conflict"),
    ("{replicaCount: 2, objectStore: {bucket: a, readOnly: true}}", "with replicaCount: 2 each pod has its own cache"),
    ("{replicaCount: 2, objectStore: {bucket: a}, persistence: {persistentVolumeClaim: {enabled: true}}}", "several pods cannot share a ReadWriteOnce volume"),
    ("mode: statefulset", "mode: statefulset needs persistence.persistentVolumeClaim.enabled"),
    ("{mode: statefulset, persistence: {hostPath: {enabled: true, shared: true}}}", "mode: statefulset needs persistence.persistentVolumeClaim.enabled"),
    (
        "{mode: statefulset, replicaCount: 2, persistence: {persistentVolumeClaim: {enabled: true, existingClaimName: a}}}",
        "mode: statefulset creates a claim for each pod: remove persistence.persistentVolumeClaim.existingClaimName (a)",
    ),
    (
        "{mode: statefulset, replicaCount: 2, persistence: {persistentVolumeClaim: {enabled: true}}}",
        "with mode: statefulset and replicaCount: 2 each pod has its own volume",
    ),
    (
        "{mode: statefulset, autoscaling: {enabled: true}, resources: {requests: {cpu: 1}}, persistence: {persistentVolumeClaim: {enabled: true}}}",
        "Set peers.enabled, so that the pods fetch from each other; or autoscaling.maxReplicas: 1; or mode: deployment with one volume",
    ),
    ("{replicaCount: 2, peers: {enabled: true}, persistence: {persistentVolumeClaim: {enabled: true}}}", "or set mode: statefulset and peers.enabled"),
    ("{autoscaling: {enabled: true}, resources: {requests: {cpu: 1}}}", "with autoscaling.maxReplicas: 5 each pod has its own cache"),
    ("{autoscaling: {enabled: true}, peers: {enabled: true}, mode: daemonset}", "autoscaling conflicts with mode: daemonset"),
    ("{autoscaling: {enabled: true, minReplicas: 9}, peers: {enabled: true}}", "autoscaling.minReplicas (9) is more than autoscaling.maxReplicas (5)"),
    (
        "{autoscaling: {enabled: true, targetCPUUtilizationPercentage: }, peers: {enabled: true}}",
        "autoscaling needs autoscaling.targetCPUUtilizationPercentage or autoscaling.metrics",
    ),
    ("{autoscaling: {enabled: true}, peers: {enabled: true}, resources: }", "the container larder requests none: set resources.requests.cpu"),
    (
        "{autoscaling: {enabled: true}, peers: {enabled: true}, resources: {requests: {cpu: 1}}, sidecarContainers: [{name: proxy, image: a}]}",
        "the container proxy requests none: set its resources.requests.cpu in sidecarContainers",
    ),
    (
        "{replicaCount: 2, peers: {enabled: true}, antiAffinity: required, nodeSelector: {kubernetes.io/hostname: node-1}}",
        "antiAffinity: required conflicts with a nodeSelector for kubernetes.io/hostname",
    ),
    ("{peers: {enabled: true}, serverTls: {enabled: true, secretName: tls}}", "with a certificate that also names"),
    ("{peers: {enabled: true}, mode: daemonset, daemonset: {hostNetwork: true}}", "needs the DNS of the cluster"),
    ("{peers: {enabled: true}, serverConfig: {configuration: {serverAuthConfig: {htpasswd: /u}}}}", "knows no user"),
    ("{replicaCount: 3, persistence: {hostPath: {enabled: true}}}", "or persistence.hostPath.shared if the directory is the same on all nodes"),
    ("{mode: daemonset}", "the service sends a node's pulls to any of them"),
    ("{mode: daemonset, persistence: {hostPath: {enabled: true}}, service: {externalTrafficPolicy: Local}}", "or daemonset.hostPort.enabled"),
    ("{mode: daemonset, service: {internalTrafficPolicy: Local}}", "service.type: ClusterIP with service.internalTrafficPolicy: Local"),
    (
        "{deploymentStrategy: {type: RollingUpdate}, persistence: {persistentVolumeClaim: {enabled: true, newClaimSpec: {accessModes: [ReadWriteOncePod]}}}}",
        "no second pod can start on a ReadWriteOncePod volume",
    ),
    ("test: {img: a}", "test: Additional property img is not allowed"),
    ("test: {server: larder}", "test.server: Does not match pattern"),
    ("test: {extraArgs: --ca}", "test.extraArgs: Invalid type"),
    ("tolerationSeconds: 30", "tolerationSeconds: Invalid type"),
    ("tolerationSeconds: {notready: 30}", "tolerationSeconds: Additional property notready is not allowed"),
    ("tolerationSeconds: {notReady: -1}", "tolerationSeconds.notReady: Must be greater than or equal to 0"),
    ("configureNodes: {address: 'http://a'}", "configureNodes.address: Does not match pattern"),
    ("configureNodes: {enabled: true, address: HOST_IP, server: 'http://a'}", "configureNodes.address and configureNodes.server conflict"),
    ("{service: {type: ClusterIP}, configureNodes: {enabled: true, address: HOST_IP}}", "configureNodes.address needs a port on the nodes"),
    (
        "{mode: daemonset, daemonset: {hostPort: {enabled: true}}, configureNodes: {enabled: true, address: HOST_IP}}",
        "configureNodes.address (HOST_IP): Larder answers only at 127.0.0.1 (daemonset.hostPort.hostIP)",
    ),
    (
        "{mode: daemonset, daemonset: {hostNetwork: true}, configureNodes: {enabled: true, address: HOST_IP}, serverConfig: {configuration: {host: 127.0.0.1}}}",
        "configureNodes.address (HOST_IP): Larder answers only at 127.0.0.1 (serverConfig.configuration.host)",
    ),
    ("serverTls: {enabled: true}", "serverTls.enabled needs serverTls.secretName, or serverTls.cert and serverTls.key"),
    ("serverTls: {enabled: true, cert: a}", "serverTls.enabled needs serverTls.secretName, or serverTls.cert and serverTls.key"),
    ("serverTls: {enabled: true, cert: a, key: b, clientAuth: verify}", "serverTls.clientAuth: verify needs serverTls.ca"),
    (
        "{serverTls: {enabled: true, secretName: a}, serverConfig: {configuration: {serverTlsConfig: {cert: a, key: b}}}}",
        "serverTls.enabled and serverConfig.configuration.serverTlsConfig conflict",
    ),
    (
        "serverConfig: {configuration: {drainTimeout: 1m30s}}",
        "terminationGracePeriodSeconds (70) must be more than preStopSleepSeconds (5) and serverConfig.configuration.drainTimeout (1m30s)",
    ),
    (
        "{mode: daemonset, daemonset: {hostPort: {enabled: true}, updateStrategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}}}",
        "two pods of a node cannot have the same host port",
    ),
    (
        "{mode: daemonset, daemonset: {hostNetwork: true, updateStrategy: {rollingUpdate: {maxSurge: 1}}}, serverConfig: {configuration: {drain: serve}}}",
        "serverConfig.configuration.drain is not handover",
    ),
    ("terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds (5) leaves no time to drain"),
    (
        "{volumeMounts: [{name: images, mountPath: /a}], serverConfig: {configuration: {imagePath: /ab}}}",
        "serverConfig.configuration.imagePath (/ab) is not in the volume images, which volumeMounts mounts at /a",
    ),
    ("serverConfig: {configuration: {host: 127.0.0.1}}", "serverConfig.configuration.host (127.0.0.1) is loopback"),
    (
        "{mode: daemonset, daemonset: {hostNetwork: true}, metrics: {port: 1}, observability: {enabled: true},"
        " serverConfig: {configuration: {host: 127.0.0.1}}}",
        "is loopback: Prometheus could not reach the metrics",
    ),
    ("{mode: daemonset, daemonset: {hostNetwork: true, hostPort: {enabled: true}}}", "daemonset.hostNetwork conflicts with daemonset.hostPort"),
    ("{daemonset: {hostNetwork: true}, serverConfig: {configuration: {host: 127.0.0.1}}}", "host (127.0.0.1) is loopback: clients outside the pod"),
    ("serverConfig: {configuration: {port: 8081}}", "health is 8081, which is also serverConfig.configuration.port"),
    ("metrics: {port: 8090}", "metrics is 8090, which is also serverConfig.configuration.management.port"),
    ('serverConfig: {configuration: "a: ["}', "serverConfig.configuration is not valid YAML"),
    ("{service: {nodePort: }, configureNodes: {enabled: true}}", "configureNodes.server is needed"),
    ("{mode: daemonset, daemonset: {hostNetwork: true}, podDisruptionBudget: {enabled: true}}", "podDisruptionBudget has no effect with mode: daemonset"),
    ("ingress: {enabled: true}", "ingress.enabled needs ingress.hosts"),
    ("httpRoute: {enabled: true}", "httpRoute.enabled needs httpRoute.parentRefs"),
)


class Rejections(unittest.TestCase):
    """Invalid values are rejected with an error that names the key."""

    def test_each_value_is_rejected_with_its_error(self):
        for values, text in REJECTED:
            with self.subTest(values):
                run = helm(values)
                self.assertNotEqual(run.returncode, 0, "accepted")
                self.assertIn(text, run.stderr)

    def test_clusters_that_are_too_old_are_rejected(self):
        self.assertIn("chart requires kubeVersion: >=1.25.0-0", helm(kube="1.24.17").stderr)


class Schema(unittest.TestCase):
    """The schema covers the values. `make generate` writes its part on Larder's configuration."""

    @classmethod
    def setUpClass(cls):
        with open(os.path.join(CHART, "values.schema.json"), encoding="utf-8") as file:
            cls.schema = json.load(file)

    def test_every_default_is_in_the_schema(self):
        with open(os.path.join(CHART, "values.yaml"), encoding="utf-8") as file:
            values = yaml.safe_load(file)
        self.assertEqual(set(values), set(self.schema["properties"]) - {"global"})


def notes(**kwargs):
    """Renders NOTES.txt, which `helm template` does not print, as a template in a copy of the chart."""
    with tempfile.TemporaryDirectory() as copy:
        subprocess.run(["cp", "-r", f"{CHART}/.", copy], check=True)
        with open(os.path.join(copy, "templates", "NOTES.txt"), encoding="utf-8") as file:
            text = file.read()
        os.remove(os.path.join(copy, "templates", "NOTES.txt"))
        with open(os.path.join(copy, "templates", "_notes.tpl"), "w", encoding="utf-8") as file:
            file.write('{{ define "notes" -}}\n' + text + "{{ end }}")
        with open(os.path.join(copy, "templates", "notes.yaml"), "w", encoding="utf-8") as file:
            file.write('kind: Notes\nmetadata: {name: notes}\ntext: {{ include "notes" . | quote }}\n')
        return render(chart=copy, **kwargs)[("Notes", "notes")]["text"]


class Notes(unittest.TestCase):
    """The notes after an installation match its values."""

    def test_the_notes_name_the_node_port_and_its_address(self):
        text = notes()
        self.assertIn('[host."http://127.0.0.1:31080"]\n    capabilities = ["pull", "resolve"]', text)
        self.assertIn("iptables mode", text)
        self.assertIn("ctr --namespace k8s.io images import larder-image.tar", text)
        self.assertIn("kubectl --namespace caches logs deployment/larder --follow", text)
        self.assertNotIn("enforce=privileged", text)

    def test_the_notes_for_tls_name_the_certificates(self):
        text = notes(files=[ci("tls")])
        self.assertIn('[host."https://127.0.0.1:31080"]', text)
        self.assertIn("    ca = ", text)
        self.assertIn("    client = ", text)

    def test_the_notes_omit_steps_that_a_daemon_set_does(self):
        text = notes(files=[ci("daemonset")])
        self.assertIn("daemonset/larder-configure", text)
        self.assertNotIn("[host.", text)
        self.assertIn("install -d -o 65532 -g 65532 /srv/larder", text)
        self.assertIn("enforce=privileged", text)
        self.assertNotIn("install -d", notes(files=[ci("root")]))

    def test_the_notes_for_replicas_show_the_logs_of_all_pods(self):
        text = notes(files=[ci("statefulset")])
        selector = "app.kubernetes.io/name=larder,app.kubernetes.io/instance=larder,app.kubernetes.io/component=server"
        self.assertIn("release larder: statefulset/larder in namespace caches", text)
        self.assertIn(f"logs --selector {selector} --prefix --follow", text)
        self.assertIn("port-forward statefulset/larder 8090:8090", text)
        labels = render(files=[ci("statefulset")])[("StatefulSet", "larder")]["spec"]["template"]["metadata"]["labels"]
        self.assertLessEqual(dict(pair.split("=") for pair in selector.split(",")).items(), labels.items())
        self.assertNotIn("--prefix", notes(files=[ci("daemonset-peers")]))

    def test_the_notes_say_which_volumes_remain(self):
        self.assertIn("delete persistentvolumeclaims --selector", notes(files=[ci("statefulset")]))
        self.assertNotIn("persistentvolumeclaims", notes(files=[ci("statefulset-single")]))
        self.assertNotIn("persistentvolumeclaims", notes(files=[ci("claim")]))

    def test_the_notes_warn_of_an_update_that_needs_another_node(self):
        def warns(**values):
            base = {"replicaCount": 2, "peers": {"enabled": True}, "antiAffinity": "required"}
            return "one more node than there are pods" in notes(values=base | values)

        self.assertTrue(warns())
        self.assertFalse(warns(antiAffinity="preferred"))
        self.assertFalse(warns(replicaCount=1))
        self.assertFalse(warns(deploymentStrategy={"type": "Recreate"}))
        self.assertFalse(warns(deploymentStrategy={"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}))
        self.assertFalse(warns(affinity={"podAntiAffinity": {}}))
        self.assertFalse(warns(**STATEFUL))

    def test_the_notes_say_how_to_watch_the_autoscaler(self):
        self.assertIn("get horizontalpodautoscaler larder", notes(files=[ci("autoscaling")]))
        self.assertNotIn("horizontalpodautoscaler", notes(files=[ci("autoscaling-metrics")]))
        self.assertIn("set mode: statefulset and persistence.persistentVolumeClaim.enabled", notes(files=[ci("autoscaling")]))

    def test_the_notes_have_a_command_for_an_unknown_address(self):
        self.assertIn("jsonpath='{.status.loadBalancer.ingress[0].ip}{.status.loadBalancer.ingress[0].hostname}'", notes(files=[ci("route-rules")]))
        self.assertIn("jsonpath='{.spec.clusterIP}'", notes(values={"service": {"type": "ClusterIP"}}))
        self.assertIn("jsonpath='{.spec.ports[0].nodePort}'", notes(values="service: {nodePort: }"))
        outside = notes(files=[ci("outside")])
        self.assertIn("Replace SERVER with\n   larder.example, the name of the ingress:\n", outside)
        self.assertIn('[host."https://SERVER"]', outside)

    def test_the_notes_name_the_certificate_of_larder_only_if_clients_see_it(self):
        tls, service = {"serverTls": {"enabled": True, "secretName": "a"}}, {"service": {"type": "ClusterIP"}}
        ingress = {"ingress": {"enabled": True, "hosts": [{"host": "larder.example"}]}}
        self.assertIn("    ca = ", notes(values=tls | service))
        proxied = notes(values=tls | service | ingress)
        self.assertIn('[host."http://SERVER"]', proxied)
        self.assertNotIn("    ca = ", proxied)

    def test_the_notes_show_the_header_of_a_user(self):
        text = notes(values={"serverConfig": {"configuration": {"serverAuthConfig": {"htpasswd": "/run/users"}}}})
        self.assertIn('    [host."http://127.0.0.1:31080".header]\n      authorization = "Basic CREDENTIALS"', text)
        self.assertNotIn("authorization", notes())

    def test_the_notes_say_what_becomes_of_a_claim(self):
        claim = {"persistence": {"persistentVolumeClaim": {"enabled": True}}}
        self.assertIn("on the claim larder, which is deleted", notes(values=claim))
        self.assertIn("on the claim images, which remains", notes(files=[ci("recreate")]))
        self.assertNotIn("is deleted", notes(files=[ci("claim")]))

    def test_the_notes_name_the_port_of_each_kind_of_installation(self):
        local = {"mode": "daemonset", "service": {"type": "ClusterIP", "internalTrafficPolicy": "Local", "clusterIP": "10.96.0.31"}}
        for values, url in (
            ({"service": {"nodePort": 30500}}, "http://127.0.0.1:30500"),
            ({"service": {"type": "ClusterIP", "clusterIP": "10.96.0.31", "port": 80}}, "http://10.96.0.31:80"),
            ({"service": {"type": "LoadBalancer", "clusterIP": "10.96.0.31"}}, "http://10.96.0.31:8080"),
            ({"serverTls": {"enabled": True, "secretName": "a"}}, "https://127.0.0.1:31080"),
            ({"serverConfig": {"configuration": {"serverTlsConfig": {"cert": "/a", "key": "/b"}}}}, "https://127.0.0.1:31080"),
            ({"mode": "daemonset", "daemonset": {"hostPort": {"enabled": True, "port": 5001, "hostIP": "::1"}}}, "http://[::1]:5001"),
            ({"mode": "daemonset", "daemonset": {"hostNetwork": True}, "serverConfig": {"configuration": {"port": 5000}}}, "http://127.0.0.1:5000"),
            (local, "http://10.96.0.31:8080"),
            ({"service": {"type": "LoadBalancer"}}, "http://SERVER"),
            ({"service": {"type": "ClusterIP"}}, "http://SERVER"),
            ({"service": {"nodePort": None}}, "http://SERVER"),
        ):
            with self.subTest(values):
                text = notes(values=values)
                self.assertEqual(re.findall(r'^  \[host\."(.*)"\]$', text, re.M), [url])
                self.assertEqual("Replace SERVER with" in text, url.endswith("SERVER"))

    def test_the_notes_name_the_management_port_if_there_is_one(self):
        def forwards(configuration):
            return re.findall(r"port-forward \S+ (\S+)", notes(values={"serverConfig": {"configuration": configuration}}))

        self.assertEqual(forwards({}), ["8090:8090"])
        self.assertEqual(forwards({"management": {"port": 9000}}), ["9000:9000"])
        self.assertEqual(forwards({"management": None}), [])
        self.assertEqual(forwards("port: 8080\n"), [])

    def test_the_notes_have_the_command_of_the_test(self):
        def test_of(values):
            text = notes(values=values)
            found = re.search(r"^Test whether pods can pull (\S+) from (\S+):\n\n  helm test (\S+) --namespace (\S+) --logs$", text, re.M)
            return found and found.groups()

        self.assertEqual(test_of({}), ("docker.io/library/hello-world:latest", "http://HOST_IP:31080", "larder", "caches"))
        self.assertEqual(test_of({"service": {"type": "ClusterIP"}})[1], "http://larder.caches.svc:8080")
        self.assertIsNone(test_of({"test": {"enabled": False}}))
        users = {"serverConfig": {"configuration": {"serverAuthConfig": {"htpasswd": "/run/users"}}}}
        self.assertIn("There is no pod for helm test: clients need a password", notes(values=users))
        self.assertIn("There is no pod for helm test: clients need a certificate", notes(files=[ci("tls")]))
        air_gap = {"serverConfig": {"configuration": {"airGapped": True}}}
        self.assertIn("only if the image was imported", notes(values=air_gap))
        self.assertNotIn("only if the image was imported", notes(values=air_gap | {"test": {"image": "registry.example/a:1"}}))
        hello = {"serverConfig": {"configuration": {"airGapped": True, "helloWorld": True}}}
        self.assertNotIn("only if the image was imported", notes(values=hello))

    def test_the_notes_say_which_address_kube_proxy_serves(self):
        configured = {"configureNodes": {"enabled": True}}
        self.assertIn("configureNodes.address=HOST_IP", notes(values=configured))
        self.assertNotIn("kube-proxy", notes(values={"configureNodes": {"enabled": True, "address": "HOST_IP"}}))
        self.assertNotIn("kube-proxy", notes(files=[ci("daemonset")]))

    def test_the_notes_warn_of_updates_that_wait_for_a_volume(self):
        def notes_of(persistence, **others):
            return notes(values={"persistence": {"persistentVolumeClaim": persistence}} | others)

        def warns(persistence, **others):
            return "deploymentStrategy.type=Recreate" in notes_of(persistence, **others)

        rolling, existing = {"deploymentStrategy": {"type": "RollingUpdate"}}, {"enabled": True, "existingClaimName": "images"}
        self.assertTrue(warns({"enabled": True}, **rolling))
        self.assertTrue(warns(existing, **rolling))
        self.assertFalse(warns({"enabled": True}))
        self.assertFalse(warns(existing))
        self.assertFalse(warns({"enabled": True, "newClaimSpec": {"accessModes": ["ReadWriteMany"]}}, **rolling))
        pause = "An update stops the pod before the next one starts (Recreate)"
        self.assertIn(pause, notes_of({"enabled": True}))
        self.assertIn("if the claim is ReadWriteMany", notes_of(existing))
        self.assertNotIn(pause, notes_of({"enabled": True}, deploymentStrategy={"type": "Recreate"}))
        self.assertNotIn(pause, notes_of({"enabled": True, "newClaimSpec": {"accessModes": ["ReadWriteMany"]}}))
        self.assertFalse(warns({"enabled": True}, deploymentStrategy={"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}))
        self.assertFalse(warns({"enabled": False}))

    def test_the_notes_render_for_every_file_of_values(self):
        for file in glob.glob(os.path.join(CHART, "ci", "*.yaml")):
            with self.subTest(os.path.basename(file)):
                text = notes(files=[file])
                self.assertNotIn("<no value>", text)
                self.assertNotIn("%!", text)
                self.assertNotRegex(text, r"\n\n\n")


class Documentation(unittest.TestCase):
    """The examples in docs/helm.md work."""

    def test_every_yaml_block_is_a_valid_values_file(self):
        with open(os.path.join(ROOT, "docs", "helm.md"), encoding="utf-8") as file:
            blocks = re.findall(r"^```yaml\n(.*?)^```$", file.read(), re.M | re.S)
        self.assertGreaterEqual(len(blocks), 8)
        for block in blocks:
            with self.subTest(block):
                render(block)


if __name__ == "__main__":
    unittest.main()
