"""Real S3 servers on loopback: Ceph's RADOS gateway with its monitor and store, and moto."""

import datetime
import hashlib
import hmac
import os
import re
import shutil
import subprocess
import urllib.parse
import uuid
from pathlib import Path

from support import (
    TOOLS, WORK, Store, environment, free_port, is_open, note, note_started, running, scratch, spawn, stop, tool,
    wait_until,
)

BUCKET = "bucket"

CEPH = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]
mon_initial_members = a
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
ms_bind_ipv6 = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_op_num_shards = 2
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
# It may refuse to start where a large disk is nearly full.
mon_data_avail_crit = 0
mon_warn_on_pool_no_redundancy = false
# The monitor's default pace makes a start take 40 seconds.
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
run_dir = {at}/run
admin_socket = {at}/run/$name.asok
pid_file = {at}/run/$name.pid
log_file = {at}/log/$name.log
mon_cluster_log_file = {at}/log/cluster.log
crash_dir = {at}/log
mon_data = {at}/mon
osd_data = {at}/osd
keyring = {at}/keyring
[client.rgw]
rgw_data = {at}/rgw
# Without tcp_nodelay each request takes 40 ms.
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_thread_pool_size = 32
rgw_enable_usage_log = false
rgw_run_sync_thread = false
rgw_enable_apis = s3,admin
"""


class Server(Store):
    """An S3 server: its port, its keys, and requests that are signed here."""

    port, key, secret = 0, "test", "testtest"

    def env(self, port=None, **more):
        """The environment with which the program finds it, through another port if need be."""
        return environment(
            AWS_ENDPOINT=f"http://127.0.0.1:{port or self.port}",
            AWS_ALLOW_HTTP="true",
            AWS_REGION="us-east-1",
            AWS_ACCESS_KEY_ID=self.key,
            AWS_SECRET_ACCESS_KEY=self.secret,
            **more,
        )

    def request(self, method, path, body=b"", query=""):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        host, hashed = f"127.0.0.1:{self.port}", hashlib.sha256(body).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": hashed, "x-amz-date": now}
        names, scope = ";".join(sorted(headers)), f"{now[:8]}/us-east-1/s3/aws4_request"
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = "\n".join([method, urllib.parse.quote(path), query, lines, names, hashed])
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{self.secret}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return self.ask(method, urllib.parse.quote(path) + (f"?{query}" if query else ""), body, headers)

    def put(self, key, body):
        self.request("PUT", f"/{BUCKET}/{key}", body)

    def get(self, key):
        return self.request("GET", f"/{BUCKET}/{key}")

    def keys(self, prefix=""):
        """All keys that begin so."""
        query = f"list-type=2&max-keys=1000&prefix={urllib.parse.quote(prefix, safe='')}"
        text = self.request("GET", f"/{BUCKET}", query=query).decode()
        assert "<IsTruncated>true" not in text, "more than a page"
        return re.findall(r"<Key>([^<]*)</Key>", text)


class Ceph(Server):
    """A monitor, a store in memory and a gateway; the gateway can be killed and come back."""

    def __init__(self, name="ceph", secret="testtest"):
        self.secret, self.processes = secret, []
        running.append(self)
        for last in (False, True):
            self.at, self.port = scratch(name), free_port()
            for folder in ("mon", "osd", "run", "log", "rgw"):
                (self.at / folder).mkdir()
            fsid, conf = str(uuid.uuid4()), self.at / "ceph.conf"
            mon1, mon2 = free_port(), free_port()
            conf.write_text(CEPH.format(fsid=fsid, at=self.at, port=self.port, mon1=mon1, mon2=mon2))
            self.c = ["-c", str(conf)]
            try:
                return self.start(fsid, mon1, mon2)
            except Exception as error:
                # A daemon that crashes leaves folders there.
                files = filter(Path.is_file, (self.at / "log").iterdir())
                logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in files)
                note(f"Ceph does not start{'' if last else ', once more'}: {error}\n{logs}")
                self.end_processes()
                if last:
                    self.stop()
                    raise

    def start(self, fsid, mon1, mon2):
        keyring = self.at / "keyring"
        caps = "--gen-key -n mon. --cap mon".split() + ["allow *"]
        tool("ceph-authtool", "--create-keyring", keyring, *caps)
        allow = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        tool("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *allow)
        allow = ["--cap", "mon", "allow rwx", "--cap", "osd", "allow rwx"]
        tool("ceph-authtool", keyring, "--gen-key", "-n", "client.rgw", *allow)
        allow = ["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"]
        tool("ceph-authtool", keyring, "--gen-key", "-n", "osd.0", *allow)
        place = f"[v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]"
        tool("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", place, self.at / "monmap")
        mkfs = ["-i", "a", "--mkfs", "--monmap", self.at / "monmap", "--keyring", keyring]
        tool("ceph-mon", *self.c, *mkfs)
        monitor = self.daemon("ceph-mon", "-i", "a", "-f")
        wait_until("the monitor answers or has ended", lambda: self.asks("-s") or monitor.poll() is not None, 120)
        assert monitor.poll() is None, "the monitor has ended"
        osd = str(uuid.uuid4())
        tool("ceph", *self.c, "osd", "new", osd, "0")
        tool("ceph-osd", *self.c, "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.daemon("ceph-osd", "-i", "0", "-f")
        wait_until("the store is up", lambda: "1 up" in self.asks("osd", "stat"))
        self.start_gateway()
        user = ["--uid=test", "--display-name=test", f"--access-key={self.key}", f"--secret-key={self.secret}"]
        tool("radosgw-admin", *self.c, "user", "create", *user)
        self.request("PUT", f"/{BUCKET}")
        version = tool("radosgw", "--version").split(" (")[0]
        note_started(f"{version}, RADOS gateway with ceph-mon and ceph-osd (memstore)", f"port {self.port}")

    def asks(self, *words):
        done = subprocess.run(["timeout", "30", "ceph", *self.c, *words], capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    def daemon(self, name, *words):
        with open(self.at / "log" / f"{name}.out", "a") as log:
            process = spawn([name, *self.c, *words], stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process

    def start_gateway(self):
        self.gateway = self.daemon("radosgw", "-n", "client.rgw", "-f")
        wait_until("the gateway listens or has ended", lambda: is_open(self.port) or self.gateway.poll() is not None)
        assert is_open(self.port), (self.at / "log/radosgw.out").read_text(errors="replace")[-1500:]

    def kill_gateway(self):
        """Kills the gateway as a crash would; what was stored stays."""
        self.gateway.kill()
        self.gateway.wait()

    def end_processes(self):
        # An osd without a monitor does not end by itself, so the last started ends first.
        while self.processes:
            stop(self.processes.pop(), grace=3)

    def stop(self):
        running.remove(self)
        self.end_processes()
        shutil.rmtree(self.at, ignore_errors=True)


class Moto(Server):
    """A second opinion on conditional puts; it does not check signatures."""

    def __init__(self):
        self.port = free_port()
        program = TOOLS / "venv/bin/moto_server"
        env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        command = [program, "-H", "127.0.0.1", "-p", str(self.port)]
        running.append(self)
        with open(WORK / "moto.log", "w") as log:
            self.process = spawn(command, stdout=log, stderr=log, env=env)
        wait_until("moto listens", lambda: is_open(self.port))
        self.request("PUT", f"/{BUCKET}")
        version = tool(TOOLS / "venv/bin/python", "-c", "import moto; print(moto.__version__)")
        note_started(f"moto_server {version}", f"port {self.port}")

    def stop(self):
        running.remove(self)
        stop(self.process)
