"""A network that fails by a seed: an HTTP/1.1 proxy before a server.

Each request draws its fate from the seed and its own number. `refuse`: 503 instead of passing it on; `cut`: the
body of an answer ends early; `lose`: the server acts, its answer never comes; `latency`: seconds before each
request; `unconditional`: drops If-None-Match, as a store does that does not know it.
"""

import asyncio
import random
import socket
import threading

from support import free_port, note

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class Proxy:
    def __init__(self, upstream, seed=1, **faults):
        self.upstream, self.seed, self.faults, self.port = upstream, seed, faults, free_port()
        self.requests, self.injected = 0, {"refuse": 0, "cut": 0, "lose": 0}
        # The first line of each request, such as `GET /bucket/key HTTP/1.1`.
        self.log = []
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(10), "the proxy does not start"
        shown = ", ".join(f"{name} {value}" for name, value in faults.items())
        note(f"started: fault proxy (seed {seed}; {shown}), port {self.port} before {upstream}")

    def serve(self, ready):
        asyncio.set_event_loop(self.loop)
        listen = asyncio.start_server(self.connection, "127.0.0.1", self.port)
        self.server = self.loop.run_until_complete(listen)
        ready.set()
        self.loop.run_forever()

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        counts = ", ".join(f"{count} {name}" for name, count in self.injected.items() if count)
        note(f"stopped: fault proxy after {self.requests} requests; injected: {counts or 'nothing'}")

    def fate(self):
        """What this request draws; the draw depends on its number alone."""
        self.requests += 1
        draw = random.Random(f"{self.seed} {self.requests}")
        return {name: draw.random() < self.faults.get(name, 0) for name in self.injected}, draw

    async def connection(self, reader, writer):
        server = None
        try:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                server, goes_on = await self.exchange(reader, writer, server)
                if not goes_on:
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, server[1] if server else None):
                if end is not None:
                    end.close()

    async def exchange(self, reader, writer, server):
        head = await reader.readuntil(b"\r\n\r\n")
        fate, draw = self.fate()
        self.log.append(head.split(b"\r\n", 1)[0].decode())
        fields = headers(head)
        body = await reader.readexactly(int(fields.get(b"content-length", 0)))
        await asyncio.sleep(self.faults.get("latency", 0))
        if fate["refuse"]:
            self.injected["refuse"] += 1
            answer = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
            writer.write(answer % len(SLOW_DOWN) + (b"" if head.startswith(b"HEAD") else SLOW_DOWN))
            await writer.drain()
            return server, True
        if self.faults.get("unconditional"):
            lines = head.split(b"\r\n")
            head = b"\r\n".join(line for line in lines if not line.lower().startswith(b"if-none-match:"))
        if server is None:
            server = await asyncio.open_connection("127.0.0.1", self.upstream)
        server[1].write(head + body)
        answer = await server[0].readuntil(b"\r\n\r\n")
        while answer.startswith(b"HTTP/1.1 100"):
            answer = await server[0].readuntil(b"\r\n\r\n")
        data = await answer_body(head, answer, server[0])
        if fate["lose"]:
            self.injected["lose"] += 1
            return server, False
        if fate["cut"] and len(data) > 1:
            self.injected["cut"] += 1
            data = data[: draw.randrange(1, len(data))]
            writer.write(answer + data)
            await writer.drain()
            return server, False
        writer.write(answer + data)
        await writer.drain()
        return server, headers(answer).get(b"connection", b"").lower() != b"close"


def headers(head):
    pairs = (line.split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    return {name.strip().lower(): value.strip() for name, value in pairs}


async def answer_body(request, answer, reader):
    fields, status = headers(answer), int(answer.split(b" ", 2)[1])
    if request.startswith(b"HEAD") or status in (204, 304):
        return b""
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        data = b""
        while True:
            size = await reader.readuntil(b"\r\n")
            chunk = await reader.readexactly(int(size.split(b";")[0], 16) + 2)
            data += size + chunk
            if chunk == b"\r\n":
                return data
    if b"content-length" in fields:
        return await reader.readexactly(int(fields[b"content-length"]))
    return await reader.read()
