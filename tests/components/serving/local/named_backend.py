"""A small server in a process of its own, which answers everything with its name: what stands behind the proxy in tests.

Run as ``python named_backend.py NAME PORT``; port 0 lets the kernel choose. The first line it prints is its port. ``POST
/behave`` with ``{"ready": bool, "status": int, "seconds": float, "models": [str], "other": int}`` tells it how to answer from
then on, for which models it is ready, and with what status it answers for others; ``GET /seen`` tells what inference requests
it has seen.
"""

import asyncio
import json
import socket
import sys


class Backend:
    def __init__(self, name: str) -> None:
        self.name = name
        self.ready, self.status, self.seconds = True, 200, 0.0
        self.seen = self.checks = 0
        self.models, self.other = ["fraud", "churn.eu"], 404
        self.last_headers: dict[str, str] = {}
        self.most_body = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                method, path, _ = (await reader.readline()).decode().split(" ")
                headers = {}
                while line := (await reader.readline()).decode().strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                body = await self._body(reader, headers)
                status, answer = await self._answer(method, path, headers, body)
                content = json.dumps(answer, separators=(",", ":")).encode()
                writer.write(
                    b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\nx-backend: %s\r\ncontent-length: %d\r\n\r\n%s"
                    % (status, self.name.encode(), len(content), content)
                )
                await writer.drain()
        except (ValueError, ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
            return body
        return await reader.readexactly(int(headers.get("content-length", 0)))

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict]:
        if path == "/behave":
            for name, value in json.loads(body).items():
                setattr(self, name, value)
            return 200, {}
        if path == "/seen":
            return 200, {"seen": self.seen, "checks": self.checks, "headers": self.last_headers, "most_body": self.most_body}
        if path.endswith("/ready"):
            model = path.split("/")[3]
            self.checks += model == "fraud"
            if model not in ("ready", *self.models):
                return self.other, {}
            return (200 if self.ready else 503), {"ready": self.ready, **({"name": model} if model != "ready" else {})}
        if method == "POST":
            self.seen += 1
            self.last_headers, self.most_body = headers, max(self.most_body, len(body))
            if self.seconds:
                await asyncio.sleep(self.seconds)
            return self.status, {"backend": self.name}
        return 200, {"backend": self.name, "path": path}


async def main(name: str, port: int) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    server = await asyncio.start_server(Backend(name).serve, sock=listener, backlog=1024)
    print(listener.getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
