"""The manifests of jobs/kubernetes: against the API's schemas, and what these leave open."""

import copy
import functools
import re
import shutil
import unittest

from support import KUBECTL, ROOT, TOOLS, WORK, note, scratch, tool

MANIFESTS = ROOT / "jobs/kubernetes"
DOCKERFILE = ROOT / "jobs/container/Dockerfile"
PLACES = ("base", "overlays/local", "overlays/gpu")
VERSIONS = ("1.32", "1.34")
NEVER_WORTH_A_RETRY = [2, 65, 74, 78]
# Seconds in which a checkpoint must have reached the store: a step, and twice a gigabyte at 20 MB/s.
CHECKPOINT = 110
QUANTITY = re.compile(r"^(\d+|\d+m|\d+(\.\d+)?(Ki|Mi|Gi|Ti))$")
WEEK = 7 * 24 * 3600
METRICS = 9400
DIGEST = "sha256:" + "0" * 64


def size(quantity):
    """The bytes of a quantity with a binary suffix, as Kubernetes (`Gi`) or the program (`GiB`) writes it."""
    number, unit = re.fullmatch(r"(\d+)([KMGT])iB?", quantity).groups()
    return int(number) * 1024 ** ("KMGT".index(unit) + 1)


@functools.cache
def built(place):
    """The objects that `kubectl kustomize` makes of a folder."""
    import yaml

    text = tool(KUBECTL, "kustomize", MANIFESTS / place)
    (WORK / f"{place.replace('/', '-')}.yaml").write_text(text)
    return list(yaml.safe_load_all(text))


def of_kind(place, kind):
    return [item for item in built(place) if item["kind"] == kind]


def jobs(place):
    """Name and specification of every job, those of cron jobs and job sets too."""
    found = [(item["metadata"]["name"], item["spec"]) for item in of_kind(place, "Job")]
    found += [(item["metadata"]["name"], item["spec"]["jobTemplate"]["spec"]) for item in of_kind(place, "CronJob")]
    for item in of_kind(place, "JobSet"):
        found += [(part["name"], part["template"]["spec"]) for part in item["spec"]["replicatedJobs"]]
    return found


class Manifests(unittest.TestCase):
    def test_every_object_is_valid_by_the_schemas_of_the_api(self):
        version = tool(KUBECTL, "version", "--client").splitlines()[0]
        note(f"kubectl {version}, kubernetes-validate against {', '.join(VERSIONS)}")
        for place in PLACES:
            self.assertTrue(built(place))
            file = WORK / f"{place.replace('/', '-')}.yaml"
            for version in VERSIONS:
                tool(TOOLS / "venv/bin/kubernetes-validate", "--strict", "-k", version, file)

    def test_the_secret_that_the_jobs_name_is_made_from_a_file_of_variables(self):
        import yaml

        file = WORK / "credentials.env"
        file.write_text("AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=planted\n")
        words = ["create", "secret", "generic", "instdisc-credentials", f"--from-env-file={file}"]
        made = yaml.safe_load(tool(KUBECTL, *words, "--dry-run=client", "-o", "yaml"))
        self.assertEqual(sorted(made["data"]), ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])

    def each_job(self):
        for place in (*PLACES, "jobset"):
            for name, spec in jobs(place):
                with self.subTest(place=place, job=name):
                    yield name, spec, spec["template"]["spec"]

    def test_jobs_retry_what_is_worth_it(self):
        for name, spec, pod in self.each_job():
            container = pod["containers"][0]["name"]
            self.assertEqual(pod["restartPolicy"], "Never")
            self.assertEqual(spec["podReplacementPolicy"], "Failed")
            # One pod that is lost ends all others of the run, and each of them counts.
            least = 2 if name.endswith("hourly") else 6 * spec.get("completions", 1)
            self.assertGreaterEqual(spec["backoffLimit"], least)
            ignore, fail = spec["podFailurePolicy"]["rules"]
            self.assertEqual(ignore["action"], "Ignore")
            self.assertEqual(ignore["onPodConditions"], [{"type": "DisruptionTarget", "status": "True"}])
            self.assertEqual(fail["action"], "FailJob")
            codes = {"containerName": container, "operator": "In", "values": NEVER_WORTH_A_RETRY}
            self.assertEqual(fail["onExitCodes"], codes)

    def test_pods_have_no_rights_and_their_limits(self):
        for name, spec, pod in self.each_job():
            self.assertIs(pod["securityContext"]["runAsNonRoot"], True)
            self.assertGreater(pod["securityContext"]["runAsUser"], 0)
            self.assertIs(pod["automountServiceAccountToken"], False)
            (container,) = pod["containers"]
            rights = container["securityContext"]
            self.assertIs(rights["readOnlyRootFilesystem"], True)
            self.assertIs(rights["allowPrivilegeEscalation"], False)
            self.assertEqual(rights["capabilities"], {"drop": ["ALL"]})
            for kind in ("requests", "limits"):
                for what, amount in container["resources"][kind].items():
                    self.assertRegex(str(amount), QUANTITY, what)
                    if what == "nvidia.com/gpu":
                        self.assertIsInstance(amount, int)
                self.assertLessEqual({"cpu", "memory"}, set(container["resources"][kind]))
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            self.assertEqual(mounts, {volume["name"] for volume in pod["volumes"]})

    def test_a_pod_requests_the_disk_that_its_volumes_may_fill(self):
        for name, spec, pod in self.each_job():
            (container,) = pod["containers"]
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            folders = [volume for volume in pod["volumes"] if "emptyDir" in volume]
            in_memory = [volume for volume in folders if volume["emptyDir"].get("medium") == "Memory"]
            on_disk = sum(size(volume["emptyDir"]["sizeLimit"]) for volume in folders if volume not in in_memory)
            self.assertLess(on_disk, size(requests["ephemeral-storage"]), "logs come on top")
            self.assertEqual(requests["ephemeral-storage"], limits["ephemeral-storage"])
            # What is in memory counts as the container's.
            memory = sum(size(volume["emptyDir"]["sizeLimit"]) for volume in in_memory)
            self.assertLessEqual(memory, size(limits["memory"]))
            for arg in container["args"]:
                if arg.startswith("--cache-size="):
                    (cache,) = [volume for volume in pod["volumes"] if volume["name"] == "cache"]
                    claim = cache.get("ephemeral", {}).get("volumeClaimTemplate", {}).get("spec", {})
                    room = claim["resources"]["requests"]["storage"] if claim else cache["emptyDir"]["sizeLimit"]
                    self.assertLess(size(arg.split("=")[1]), size(room))

    def test_a_machine_of_ones_own_has_the_disk_that_the_local_overlay_requests(self):
        for name, spec in jobs("overlays/local"):
            requests = spec["template"]["spec"]["containers"][0]["resources"]["requests"]
            self.assertLessEqual(size(requests["ephemeral-storage"]), 10 * 2**30, name)

    def test_a_finished_job_is_deleted_after_a_week(self):
        for name, spec, pod in self.each_job():
            if name.startswith("instdisc-"):
                self.assertEqual(spec.get("ttlSecondsAfterFinished"), WEEK)
            else:
                # Of a part of a JobSet the controller of that looks after.
                self.assertNotIn("ttlSecondsAfterFinished", spec)
        (job_set,) = of_kind("jobset", "JobSet")
        self.assertEqual(job_set["spec"].get("ttlSecondsAfterFinished"), WEEK)

    def test_only_the_monitoring_reaches_the_port_of_the_metrics(self):
        for place in (*PLACES, "jobset"):
            (policy,) = of_kind(place, "NetworkPolicy")
            self.assertEqual(policy["spec"]["policyTypes"], ["Ingress"])
            selected = policy["spec"]["podSelector"]["matchLabels"]
            for name, spec in jobs(place):
                labels = spec["template"]["metadata"]["labels"]
                self.assertEqual(selected.items() <= labels.items(), "train" in name, f"{place}: {name}")
            reached = [
                rule["from"]
                for rule in policy["spec"]["ingress"]
                for port in rule["ports"]
                if port["port"] <= METRICS <= port.get("endPort", port["port"])
            ]
            monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
            self.assertEqual(reached, [[monitoring]], place)

    def test_the_processes_of_a_run_reach_each_other(self):
        for place in (*PLACES, "jobset"):
            (policy,) = of_kind(place, "NetworkPolicy")
            (rule,) = [rule for rule in policy["spec"]["ingress"] if "podSelector" in rule["from"][0]]
            self.assertEqual(rule["from"], [{"podSelector": policy["spec"]["podSelector"]}])
            (train,) = [spec for name, spec in jobs(place) if "train" in name]
            env = {item["name"]: item["value"] for item in train["template"]["spec"]["containers"][0]["env"]}
            for port in (int(env["MASTER_PORT"]), 1024, 65535):
                self.assertTrue(any(open["port"] <= port <= open["endPort"] for open in rule["ports"]), port)

    def test_an_image_of_the_program_shows_a_gpu_to_nobody_who_requested_none(self):
        said = [line for line in DOCKERFILE.read_text().splitlines() if "NVIDIA_VISIBLE_DEVICES" in line]
        self.assertEqual([line.split("=")[1].rstrip(" \\") for line in said], ["void"])
        for name, spec, pod in self.each_job():
            env = {item["name"] for item in pod["containers"][0].get("env", [])}
            self.assertNotIn("NVIDIA_VISIBLE_DEVICES", env)

    def test_an_overlay_may_name_its_images_by_digest(self):
        for place in ("overlays/gpu", "jobset"):
            folder = scratch("by-digest") / "kubernetes"
            shutil.copytree(MANIFESTS, folder)
            file = folder / place / "kustomization.yaml"
            text, count = re.subn(r"newTag: [\w.]+", f"digest: {DIGEST}", file.read_text())
            self.assertEqual(count, 2, "an image for each of the two targets")
            file.write_text(text)
            made = tool(KUBECTL, "kustomize", folder / place)
            images = set(re.findall(r"image: (\S+)", made))
            repository = "registry.example/instdisc"
            self.assertEqual(images, {f"{repository}-cpu-tools@{DIGEST}", f"{repository}-train@{DIGEST}"})

    def test_the_dockerfile_takes_its_base_images_from_arguments_and_the_rust_of_cargo_toml(self):
        lines = DOCKERFILE.read_text().splitlines()
        arguments = dict(line.removeprefix("ARG ").split("=", 1) for line in lines if line.startswith("ARG "))
        stages = {line.split(" AS ")[1] for line in lines if line.startswith("FROM ")}
        for line in (line for line in lines if line.startswith("FROM ")):
            base = line.split()[1]
            self.assertTrue(base in {"scratch"} | stages | {f"${{{name}}}" for name in arguments}, line)
        (version,) = re.findall(r'^rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
        self.assertRegex(arguments["RUST"], rf"rust:{re.escape(version)}\.\d+-slim")

    def test_secrets_are_named_and_not_written(self):
        for name, spec, pod in self.each_job():
            sources = pod["containers"][0]["envFrom"]
            self.assertIn("instdisc-credentials", [s["secretRef"]["name"] for s in sources if "secretRef" in s])
        for place in PLACES:
            self.assertEqual(of_kind(place, "Secret"), [])
            for item in of_kind(place, "ConfigMap"):
                self.assertFalse([key for key in item["data"] if re.search("SECRET|TOKEN|PASSWORD|ACCESS_KEY", key)])

    def test_training_is_an_indexed_job_with_a_headless_service(self):
        for place in PLACES:
            (spec,) = [spec for name, spec in jobs(place) if name == "instdisc-train"]
            (service,) = of_kind(place, "Service")
            self.assertEqual(spec["completionMode"], "Indexed")
            self.assertEqual(spec["completions"], spec["parallelism"])
            self.assertEqual(service["spec"]["clusterIP"], "None")
            self.assertIs(service["spec"]["publishNotReadyAddresses"], True)
            self.assertEqual(service["spec"]["selector"], {"job-name": "instdisc-train"})
            pod = spec["template"]["spec"]
            self.assertEqual(pod["subdomain"], service["metadata"]["name"])
            env = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
            self.assertEqual(env["MASTER_ADDR"], "instdisc-train-0.instdisc-train")
            self.assertEqual(spec["template"]["metadata"]["annotations"]["prometheus.io/port"], "9400")

    def test_training_has_time_to_save_a_checkpoint_when_it_is_told_to_stop(self):
        for name, spec, pod in self.each_job():
            if "train" in name:
                self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], CHECKPOINT)

    def test_the_gpu_overlay_asks_for_a_gpu_a_fast_cache_and_a_queue(self):
        (spec,) = [spec for name, spec in jobs("overlays/gpu") if name == "instdisc-train"]
        pod = spec["template"]["spec"]
        self.assertEqual(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], 1)
        cache = [volume for volume in pod["volumes"] if volume["name"] == "cache"][0]
        self.assertEqual(set(cache), {"name", "ephemeral"})
        shared = [volume for volume in pod["volumes"] if volume["name"] == "shm"][0]
        self.assertEqual(shared["emptyDir"]["medium"], "Memory")
        for item in of_kind("overlays/gpu", "Job"):
            self.assertEqual(item["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "research")
            self.assertEqual(item["metadata"]["labels"]["app.kubernetes.io/name"], "instdisc")
        (cron,) = of_kind("overlays/gpu", "CronJob")
        made = cron["spec"]["jobTemplate"]["metadata"]["labels"]
        self.assertEqual(made["kueue.x-k8s.io/queue-name"], "research")

    def test_the_job_set_orders_its_parts(self):
        (job_set,) = of_kind("jobset", "JobSet")
        parts = {part["name"]: part for part in job_set["spec"]["replicatedJobs"]}
        self.assertEqual(list(parts), ["ingest", "train", "knn"])
        for name in ("train", "knn"):
            self.assertEqual(parts[name]["dependsOn"], [{"name": "ingest", "status": "Complete"}])
        # A part is the job of the overlay gpu, whose pods are found by other names, with a cache of the node's.
        alone = dict(jobs("overlays/gpu"))
        for name, spec in jobs("jobset"):
            expected = copy.deepcopy(alone[f"instdisc-{name}"])
            pod, expected_pod = spec["template"]["spec"], expected["template"]["spec"]
            expected_pod.pop("subdomain", None)
            for item in expected_pod["containers"][0].get("env", []):
                item["value"] = item["value"].replace("instdisc-train-0.instdisc-train", "instdisc-train-0-0.instdisc")
            for volume in expected_pod["volumes"]:
                if volume["name"] == "cache":
                    volume.pop("ephemeral")
                    volume["emptyDir"] = {"sizeLimit": "200Gi"}
                    for amounts in expected_pod["containers"][0]["resources"].values():
                        amounts["ephemeral-storage"] = "202Gi"
            self.assertEqual(pod, expected_pod, name)
            for key in expected.keys() - {"template", "ttlSecondsAfterFinished"}:
                self.assertEqual(spec[key], expected[key], f"{name}: {key}")
        rule = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        self.assertEqual(job_set["spec"]["failurePolicy"]["rules"], [rule])


if __name__ == "__main__":
    unittest.main()
