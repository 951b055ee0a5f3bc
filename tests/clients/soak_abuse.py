"""What other clients do: leave, stall, send garbage, come all at once. The server has to refuse or to let go, and to stay."""

import json
import socket
import time

import grpc
from soak_wire import PATIENCE
from soak_work import GRPC, messages, text

# An answer as long as the context allows, nearly.
LONG = 1200
# More bytes of prompt than tokens, whatever the tokenizer: with what the template adds.
PROMPT = 2000
# More than run and wait at once by default.
CROWD = 120


def endless(wire, chance):
    """A body whose answer takes a while."""
    return {"model": wire.model, "messages": messages(chance), "max_tokens": LONG, "ignore_eos": True}


def leave_stream(wire, chance):
    events = wire.events("/v1/chat/completions", endless(wire, chance))
    for _, _ in zip(range(chance.randint(1, 20)), events):
        pass
    events.close()
    wire.counts.lost("left", LONG, PROMPT)


def leave_before_the_answer(wire, chance):
    path = "/v1/chat/completions"
    connection = open_connection(wire)
    connection.sendall(request(path, json.dumps(endless(wire, chance)).encode()))
    time.sleep(chance.random() * 0.1)
    connection.close()
    wire.counts.unanswered("POST", path)
    wire.counts.lost("left_unseen", LONG, PROMPT)


def leave_call(wire, chance):
    message = {"model": wire.model, "prompt": text(chance), "parameters": {"max_tokens": LONG, "ignore_eos": True}}
    stream = wire.grpc("GenerateStream", message)
    try:
        for _, _ in zip(range(chance.randint(0, 10)), stream):
            pass
    except grpc.RpcError as error:
        wire.counts.answered("POST", GRPC, 200)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
        return
    stream.cancel()
    wire.counts.unanswered("POST", GRPC)
    wire.counts.lost("left_unseen", LONG, PROMPT)


def late(wire, chance):
    body = endless(wire, chance) | {"timeout": 0.02}
    answer = wire.ask("/v1/chat/completions", body, expect=504)
    assert answer["error"]["code"] == "deadline_exceeded"
    wire.counts.lost("late", LONG, PROMPT)


def late_call(wire, chance):
    message = {"model": wire.model, "prompt": text(chance), "parameters": {"max_tokens": LONG, "ignore_eos": True}}
    try:
        wire.grpc("Generate", message, timeout=0.05)
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED), error
    # Which of the two was first, the client's clock or the server's, it does not learn.
    wire.counts.unanswered("POST", GRPC)
    wire.counts.lost("left_unseen", LONG, PROMPT)


def broken_json(wire, chance):
    path = chance.choice(["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/generate",
                          "/tokenize", "/v1/embeddings"])
    body = json.dumps(endless(wire, chance)).encode()
    broken = [body[: chance.randrange(len(body))], body.replace(b":", b";", 1), b"[" * 100_000, b"\xff" + body, b"null", b""]
    wire.refused(path, chance.choice(broken), 400)


def wrong_fields(wire, chance):
    field, value = chance.choice([("temperature", 9), ("max_tokens", -1), ("n", 0), ("tempratur", 1), ("stop", 7),
                                  ("top_p", "x"), ("logit_bias", {"999999999": 1}), ("response_format", {"type": "xml"})])
    wire.refused("/v1/chat/completions", endless(wire, chance) | {field: value}, 400, field)


def unknown(wire, chance):
    wire.refused("/v1/completions", {"model": "none", "prompt": "a"}, 404)
    wire.refused("/no/such/page", {}, 404, route="other")
    # What it did not read of a body it does not wait for, but closes the connection.
    wire.drop()
    wire.refused("/v1/completions", None, 405, method="GET")


def too_long_for_the_context(wire, chance):
    wire.refused("/v1/completions", {"model": wire.model, "prompt": text(chance, 9000, 9000)}, 400, "context")


def schema_that_nothing_enforces(wire, chance):
    schema = chance.choice([{"type": "array", "uniqueItems": True}, {"not": {}}, {"enum": []}, {"$ref": "#/$defs/none"}])
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    wire.refused("/v1/chat/completions", endless(wire, chance) | {"ignore_eos": False, "response_format": form}, 400)


def body_without_end(wire, chance):
    """Says that it is larger than anything the server takes."""
    body = b'{"prompt":"' + b"a" * (9 << 20) + b'"}'
    connection = open_connection(wire)
    try:
        connection.sendall(request("/v1/completions", body))
        status, _ = answer(connection)
    except ConnectionError:
        # The answer was lost with the rest of the body.
        wire.counts.unanswered("POST", "/v1/completions")
        return
    finally:
        connection.close()
    wire.counts.answered("POST", "/v1/completions", status)
    assert status == 413, status


def garbage(wire, chance):
    """Bytes that are no HTTP."""
    connection = open_connection(wire)
    try:
        connection.sendall(chance.randbytes(chance.randint(1, 5000)))
        connection.shutdown(socket.SHUT_WR)
        status, is_counted = answer(connection)
        assert status in (None, 400) and not is_counted, status
    except OSError:
        pass
    finally:
        connection.close()
    wire.counts.add("garbled")


def nearly_http(wire, chance):
    status_wanted, data = chance.choice([
        (400, b"GET / HTTP/9.9\r\n\r\n"),
        (400, b"GET /health\r\n\r\n"),
        (400, b"POST /tokenize HTTP/1.1\r\ncontent-length: -5\r\n\r\n"),
        (400, b"POST /tokenize HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n"),
        (431, b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n"),
        (414, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"),
    ])
    connection = open_connection(wire)
    try:
        connection.sendall(data)
        status, is_counted = answer(connection)
        assert status == status_wanted and not is_counted, (status, data[:60])
    except ConnectionError:
        pass
    finally:
        connection.close()
    wire.counts.add("garbled")


def broken_chunks(wire, chance):
    path = "/tokenize"
    connection = open_connection(wire)
    try:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".encode())
        status, _ = answer(connection)
    finally:
        connection.close()
    wire.counts.answered("POST", path, status)
    assert status == 400, status


def half_http2(wire, chance):
    """The preface of HTTP/2, then bytes that are none of it."""
    connection = open_connection(wire)
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.randbytes(400))
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    finally:
        connection.close()
    wire.counts.add("garbled")


def wrong_call(wire, chance):
    message = {"model": wire.model, "prompt": "a", "parameters": {"temperature": 3}}
    try:
        wire.grpc("Generate", message)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    wire.counts.answered("POST", GRPC, 200)


def garbled_call(wire, chance):
    """Bytes that are no message."""
    channel = wire.grpc.channel.unary_unary("/edgelm.v1.EdgeLM/Generate")
    try:
        channel(b"\xff" + chance.randbytes(chance.randint(1, 300)))
        raise AssertionError("garbage was taken for a message")
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT), error
    wire.counts.answered("POST", GRPC, 200)


def crowd(wire, chance):
    """All at once, on a connection each: some wait, others are told to come again."""
    path = "/v1/completions"
    connections = [open_connection(wire) for _ in range(CROWD)]
    body = {"model": wire.model, "prompt": text(chance), "ignore_eos": True, "max_tokens": 30}
    data = request(path, json.dumps(body).encode())
    for connection in connections:
        connection.sendall(data)
    refusals = 0
    for connection in connections:
        status, _, body = answer(connection, with_body=True)
        connection.close()
        wire.counts.answered("POST", path, status)
        if status == 429:
            refusals += 1
            continue
        assert status == 200, body
        usage = json.loads(body)["usage"]
        wire.counts.finished((usage["prompt_tokens"], usage["completion_tokens"]), ["length"])
    # All of them, where another crowd came first.
    assert refusals, f"{CROWD} requests at once all found a place"


def half_headers(wire, _):
    stall(wire, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncont")


def nothing_at_all(wire, _):
    stall(wire, b"")


def half_body(wire, chance):
    path = "/v1/completions"
    whole = request(path, json.dumps(endless(wire, chance)).encode())
    status = stall(wire, whole[:-10])
    if status is None:
        wire.counts.unanswered("POST", path)
    else:
        wire.counts.answered("POST", path, status)
        assert status == 408, status


def stall(wire, data):
    """Sends that and waits to be let go. The status of the answer, if there was one."""
    connection = open_connection(wire)
    connection.settimeout(1)
    got, begin = b"", time.monotonic()
    try:
        connection.sendall(data)
        while time.monotonic() < wire.until:
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                assert time.monotonic() - begin < PATIENCE, f"still waited for {PATIENCE} s after {data[:20]}"
                continue
            if not piece:
                wire.counts.add("let_go")
                break
            got += piece
    except ConnectionError:
        wire.counts.add("let_go")
    finally:
        connection.close()
    # As soon as it is there the connection may be kept for another request.
    return int(got.split(b" ")[1]) if got.startswith(b"HTTP/1.1 ") and b"x-request-id" in got else None


def unread_answer(wire, chance):
    """Asks for much and reads the headers only."""
    path = "/v1/chat/completions"
    body = endless(wire, chance) | {"stream": True, "logprobs": True, "top_logprobs": 20}
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE)
    host, port = wire.address.rsplit(":", 1)
    connection.connect((host, int(port)))
    connection.sendall(request(path, json.dumps(body).encode()))
    status = int(connection.recv(64).split(b" ")[1])
    wire.counts.answered("POST", path, status)
    if status == 200:
        wire.counts.lost("left", LONG, PROMPT)
        time.sleep(max(0, min(chance.uniform(1, 60), wire.until - time.monotonic())))
    connection.close()


def open_connection(wire):
    host, port = wire.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def request(path, body):
    head = f"POST {path} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answer(connection, with_body=False):
    """Status of what comes (None for nothing), and whether it has an id, which means that the server has counted it."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = connection.recv(65536)
        if not piece:
            break
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.1 ") else None
    if not with_body:
        return status, b"x-request-id" in head
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("an answer without its end")
        body += piece
    return status, b"x-request-id" in head, body


QUICK = [leave_stream, leave_stream, leave_before_the_answer, leave_call, late, late_call, broken_json, wrong_fields, unknown,
         too_long_for_the_context, schema_that_nothing_enforces, body_without_end, garbage, nearly_http, broken_chunks,
         half_http2, wrong_call, garbled_call]
BURSTS = [crowd]
STALLS = [half_headers, nothing_at_all, half_body, unread_answer]
