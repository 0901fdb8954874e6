"""A real server of Azure's blob storage on loopback: Azurite, which keeps everything in memory."""

import base64
import datetime
import hashlib
import hmac
import re
import urllib.parse

from support import (
    AZURITE, WORK, Store, environment, free_port, is_open, note_started, running, spawn, stop, tool, wait_until,
)

CONTAINER = "container"
# The account of all of Azurite's users, published in its manual.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-12-02"


class Azurite(Store):
    """An account with one container."""

    def __init__(self):
        self.port = free_port()
        command = ["node", AZURITE / "node_modules/azurite/dist/src/blob/main.js", "--blobHost", "127.0.0.1"]
        command += ["--blobPort", self.port, "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]
        running.append(self)
        with open(WORK / "azurite.log", "w") as log:
            self.process = spawn(command, stdout=log, stderr=log, cwd=WORK)
        wait_until("Azurite listens", lambda: is_open(self.port))
        self.request("PUT", CONTAINER, {"restype": "container"})
        version = tool("node", "-p", f"require('{AZURITE}/node_modules/azurite/package.json').version")
        note_started(f"Azurite {version}", f"port {self.port}")

    def env(self, **more):
        """The environment in which the program finds this server."""
        settings = {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_ENDPOINT": f"http://127.0.0.1:{self.port}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }
        return environment(**settings | more)

    def request(self, method, path, query=None, body=b"", **headers):
        query = query or {}
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"x-ms-date": now, "x-ms-version": VERSION}
        signed = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        path = f"/{ACCOUNT}/{urllib.parse.quote(path)}"
        resource = f"/{ACCOUNT}{path}" + "".join(f"\n{name}:{query[name]}" for name in sorted(query))
        length = str(len(body)) if body else ""
        text = f"{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n{signed}{resource}"
        signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
        headers |= {"authorization": f"SharedKey {ACCOUNT}:{signature}", "content-length": str(len(body))}
        return self.ask(method, f"{path}?{urllib.parse.urlencode(query)}" if query else path, body, headers)

    def put(self, name, body):
        self.request("PUT", f"{CONTAINER}/{name}", body=body, x_ms_blob_type="BlockBlob")

    def get(self, name):
        return self.request("GET", f"{CONTAINER}/{name}")

    def keys(self, prefix=""):
        """All names that begin so."""
        query = {"restype": "container", "comp": "list", "prefix": prefix}
        text = self.request("GET", CONTAINER, query).decode()
        assert "<NextMarker/>" in text or "<NextMarker></NextMarker>" in text, "more than a page"
        return re.findall(r"<Name>([^<]*)</Name>", text)

    def stop(self):
        running.remove(self)
        stop(self.process)
