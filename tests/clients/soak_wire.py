"""How the soak's clients speak: HTTP by hand, so that every answer can be counted and any of them left half-way, and gRPC."""

import http.client
import json
import time
from urllib.parse import urlparse

from check_grpc import Api

# Longer than anything the soak asks for can take on a slow and busy machine.
PATIENCE = 300
# A kept connection that was idle for longer may be closed by the server while the next request is on its way.
KEEP = 0.5


class Refused(Exception):
    """429: the queue is full. Due whenever many ask at once."""


class Wire:
    """One client. Not shared between threads."""

    def __init__(self, url, model, counts, until=None):
        self.url, self.model, self.counts = url, model, counts
        # When the soak is over: nothing that only waits needs to go on then.
        self.until = until
        self.address = urlparse(url).netloc
        self.kept = None
        self.used = 0
        self.api = None

    def close(self):
        self.drop()
        if self.api:
            self.api.channel.close()

    def drop(self):
        if self.kept:
            self.kept.close()
        self.kept = None

    @property
    def grpc(self):
        """Opened when first asked for: the server's reflection is some calls."""
        if not self.api:
            self.api = Api(self.url).__enter__()
        return self.api

    def send(self, path, body, method="POST", route=None):
        """Sends a request and waits for the headers of its answer."""
        if self.kept and time.monotonic() - self.used > KEEP:
            self.drop()
        self.kept = self.kept or http.client.HTTPConnection(self.address, timeout=PATIENCE)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            self.kept.request(method, path, data, {"content-type": "application/json"})
            response = self.kept.getresponse()
        except OSError:
            self.drop()
            raise
        self.counts.answered(method, route or path, response.status)
        if "x-request-id" not in response.headers:
            raise AssertionError(f"{method} {path}: an answer without an id, {response.status}")
        if response.status == 429:
            error = response.read()
            self.used = time.monotonic()
            assert int(response.headers["retry-after"]) >= 1 and b"queue" in error, error
            raise Refused
        return response

    def ask(self, path, body=None, method="POST", route=None, expect=200):
        """A whole answer."""
        response = self.send(path, body, method, route)
        data = response.read()
        self.used = time.monotonic()
        assert response.status == expect, f"{path}: {response.status} {data[:300]}"
        return json.loads(data)

    def refused(self, path, body, status, names=None, **more):
        """What must be refused, with a message that names the field."""
        answer = self.ask(path, body, expect=status, **more)
        error = answer["error"]
        message = error if isinstance(error, str) else error["message"]
        assert names is None or names in message, f"{path}: {message} does not name {names}"

    def stream(self, path, body):
        """The answer's lines as they come. Closing the generator leaves the rest."""
        response = self.send(path, body)
        is_whole = False
        try:
            assert response.status == 200, f"{path}: {response.status} {response.read()[:300]}"
            while line := response.readline():
                if line := line.strip():
                    yield line
            is_whole = True
        finally:
            self.used = time.monotonic()
            if not is_whole:
                response.close()
                self.drop()

    def events(self, path, body):
        """Data of server-sent events."""
        for line in self.stream(path, body | {"stream": True}):
            if line.startswith(b"data: "):
                data = line[6:]
                yield data if data == b"[DONE]" else json.loads(data)
