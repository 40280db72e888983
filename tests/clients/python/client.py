"""Drives the server with python3-grpcio and messages encoded by hand; see ../README.md for arguments and output."""

import struct
import sys
import threading
import time

import grpc

PLAIN, TLS, CERTIFICATE, _PROTOS = sys.argv[1:5]


# ---- protobuf by hand: a message is a list of (field number, value); ints are varints, floats fixed32, the rest length-delimited ----


def varint(n):
    out = b""
    n &= (1 << 64) - 1
    while True:
        byte, n = n & 127, n >> 7
        out += bytes([byte | (128 if n else 0)])
        if not n:
            return out


def message(*fields):
    out = b""
    for number, value in fields:
        if isinstance(value, bool) or isinstance(value, int):
            out += varint(number << 3) + varint(int(value))
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def parse(data):
    """Field number -> list of values."""
    fields, at = {}, 0

    def read():
        nonlocal at
        n = shift = 0
        while True:
            byte = data[at]
            at += 1
            n |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return n

    while at < len(data):
        key = read()
        kind = key & 7
        if kind == 0:
            value = read()
        elif kind == 2:
            size = read()
            value = data[at : at + size]
            at += size
        else:
            size = 4 if kind == 5 else 8
            value = data[at : at + size]
            at += size
        fields.setdefault(key >> 3, []).append(value)
    return fields


def one(fields, number, default=b""):
    return fields.get(number, [default])[-1]


def packed(data):
    out, n, shift = [], 0, 0
    for byte in data:
        n |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            out.append(n)
            n = shift = 0
    return out


def ids(max_tokens, *tokens):
    """A GenerateRequest."""
    return message(
        (4, message((1, b"".join(varint(t) for t in tokens)))),
        (11, message((1, max_tokens), (5, True))),
    )


# ---- calls ----


def same(x):
    return x


class Transport:
    def __init__(self, name, channel):
        self.name = name
        self.unary = lambda path: channel.unary_unary(path, same, same)
        self.stream = lambda path: channel.unary_stream(path, same, same)
        self.bidi = lambda path: channel.stream_stream(path, same, same)
        self.complete = self.unary("/inference.v1.Completions/Complete")
        self.generate = self.stream("/inference.v1.Completions/Generate")


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


def fails(code, call):
    try:
        call()
    except grpc.RpcError as e:
        expect(e.code() == code, f"expected {code}, got {e.code()} {e.details()}")
        return e
    raise AssertionError(f"expected {code}, got success")


def details(error):
    """(reason, domain, fields) of the status details."""
    status = parse(dict(error.trailing_metadata())["grpc-status-details-bin"])
    reason, domain, fields = "", "", []
    for item in status.get(3, []):
        any_message = parse(item)
        kind, value = one(any_message, 1).decode(), parse(one(any_message, 2))
        if kind.endswith("google.rpc.ErrorInfo"):
            reason, domain = one(value, 1).decode(), one(value, 2).decode()
        if kind.endswith("google.rpc.BadRequest"):
            fields = [one(parse(v), 1).decode() for v in value.get(1, [])]
    return reason, domain, fields


def tokens_of(events):
    out = []
    for event in events:
        delta = one(parse(event), 3, None)
        if delta is not None:
            out += packed(one(parse(delta), 3))
    return out


# ---- cases ----


def unary(t):
    response = parse(t.complete(ids(20, 5, 6, 7)))
    expect(len(packed(one(response, 3))) == 20, "not 20 tokens")
    expect(one(parse(one(response, 6)), 1, 0) == 2, "not FINISH_REASON_LENGTH")
    expect(one(parse(one(response, 1)), 3, 0) == 3, "not 3 prompt tokens")


def stream(t):
    events = list(t.generate(ids(100, 5, 6, 7)))
    expect([one(parse(e), 1, 0) for e in events] == list(range(len(events))), "sequence numbers have gaps")
    expect(2 in parse(events[0]) and 4 in parse(events[-1]), "first or last event is wrong")
    expect(tokens_of(events) == packed(one(parse(t.complete(ids(100, 5, 6, 7))), 3)), "the stream and the unary call differ")


def sessions(t):
    def call(method, *fields):
        return parse(t.unary(f"/inference.v1.Sessions/{method}")(message(*fields)))

    name, tokens = f"{t.name}-py", list(range(10, 610))
    made = call("CreateSession", (1, name), (3, message((2, message((1, b"".join(varint(i) for i in tokens)))))))
    expect(one(made, 3, 0) == 600 and one(parse(one(made, 8)), 1, 0) == 600, "600 tokens, all in memory")
    whole = parse(t.complete(ids(5, *tokens, 7, 8)))
    going = parse(t.complete(ids(5, 7, 8) + message((13, name))))
    expect(packed(one(going, 3)) == packed(one(whole, 3)), "a session answers otherwise than its tokens")
    expect(one(call("GetSession", (1, name)), 3, 0) == 607, "prompt and answer are not the session's")
    names = [one(parse(s), 1).decode() for s in call("ListSessions").get(1, [])]
    expect(name in names, names)
    call("DeleteSession", (1, name))
    fails(grpc.StatusCode.NOT_FOUND, lambda: call("GetSession", (1, name)))


def chat_and_tokenization(t):
    user = message((1, 2), (2, message((1, "Hi 🙂"))))
    chat = message((1, user), (3, 1))
    rendered = parse(t.unary("/inference.v1.Tokenization/RenderChat")(message((2, chat))))
    text = one(rendered, 1).decode()
    expect(text == "<｜begin▁of▁sentence｜><｜User｜>Hi 🙂<｜Assistant｜></think>", text)
    answer = parse(t.complete(message((5, chat), (11, message((1, 1))))))
    expect(one(parse(one(answer, 1)), 3, 0) == one(rendered, 3, -1), "token counts differ")
    tokens = packed(one(rendered, 2))
    back = parse(t.unary("/inference.v1.Tokenization/Detokenize")(message((2, b"".join(varint(i) for i in tokens)))))
    expect(one(back, 1).decode() == text and one(back, 2) == text.encode(), "Detokenize")
    again = parse(t.unary("/inference.v1.Tokenization/Tokenize")(message((2, text))))
    expect(packed(one(again, 1)) == tokens, "Tokenize")


def model_description(t):
    model = parse(t.unary("/inference.v1.Models/GetModel")(b""))
    expect(one(model, 7, 0) == 4096 and one(model, 14, 0) == 1, "wrong model")


def deadline(t):
    start, seen = time.time(), []
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: seen.extend(t.generate(ids(4000, 5), timeout=0.5)))
    expect(time.time() - start < 10, "late")


def unary_deadline(t):
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: t.complete(ids(4000, 5), timeout=0.3))


def cancel(t):
    call = t.generate(ids(4000, 5))
    for _ in range(5):
        next(call)
    call.cancel()
    fails(grpc.StatusCode.CANCELLED, lambda: list(call))


def oversized_message(t):
    fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: t.complete(message((3, "x" * (3 << 20)))))
    t.complete(ids(1, 5))


def bad_field(t):
    request = ids(-1, 5) + message((10, message((1, float("nan")))))
    error = fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: t.complete(request))
    found = details(error)
    expect(found == ("INVALID_FIELD", "inference", ["sampling.temperature", "stopping.max_tokens"]), str(found))


def bad_field_in_a_stream(t):
    error = fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: list(t.generate(ids(1, 99999))))
    expect(details(error)[2] == ["token_ids.ids[0]"], str(details(error)))


def unreadable_message(t):
    for data in (b"\xff\xff", message((3, b"\xc3\x28"))):
        error = fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: t.complete(data))
        expect(details(error)[0] == "UNREADABLE_MESSAGE", details(error)[0])


def metadata(t):
    given = (("x-request-id", "from-python"), ("x-any-bin", b"\x00\xff\x07"))
    response, call = t.complete.with_call(ids(1, 5), metadata=given)
    expect(dict(call.initial_metadata())["x-request-id"] == "from-python", str(call.initial_metadata()))
    expect(one(parse(one(parse(response), 1)), 1) == b"from-python", "not in the message")


def unknown_method(t):
    for path in ("/inference.v1.Completions/Nope", "/nope.Nope/Nope"):
        fails(grpc.StatusCode.UNIMPLEMENTED, lambda: t.unary(path)(b""))


def compressed_request(t):
    request = message((3, "a " * 500), (11, message((1, 1))))
    response = parse(t.complete(request, compression=grpc.Compression.Gzip))
    expect(len(packed(one(response, 3))) == 1, "not 1 token")


def health(t):
    check = t.unary("/grpc.health.v1.Health/Check")
    for service in ("", "inference.v1.Completions"):
        expect(one(parse(check(message((1, service)))), 1, 0) == 1, f"{service} is not serving")
    fails(grpc.StatusCode.NOT_FOUND, lambda: check(message((1, "nope"))))


def reflection(t):
    for version in ("v1", "v1alpha"):
        info = t.bidi(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        requests = [message((7, "")), message((4, "inference.v1.Completions"))]
        listed, files = [parse(r) for r in info(iter(requests))]
        names = [one(parse(s), 1).decode() for s in parse(one(listed, 6)).get(1, [])]
        for name in ("inference.v1.Completions", "inference.v1.Models", "inference.v1.Tokenization", "grpc.health.v1.Health"):
            expect(name in names, f"{name} is not in {names}")
        expect(one(parse(one(files, 4)), 1), "no file descriptor")


CASES = [
    unary, stream, sessions, chat_and_tokenization, model_description, deadline, unary_deadline, cancel, oversized_message, bad_field,
    bad_field_in_a_stream, unreadable_message, metadata, unknown_method, compressed_request, health, reflection,
]


def report(transport, name, run):
    try:
        run()
        print(f"ok {transport.name} {name}", flush=True)
    except Exception as e:  # every failure is a line, not the end of the run
        print(f"FAIL {transport.name} {name}: {type(e).__name__} {e}", flush=True)


def drain(transports):
    """Both transports at once, last: watches see the drain, a stream ends well, a new call is refused."""
    watched = {t.name: [] for t in transports}
    ends = {}

    def watch(t):
        try:
            for response in t.stream("/grpc.health.v1.Health/Watch")(b""):
                watched[t.name].append(one(parse(response), 1, 0))
        except grpc.RpcError as e:
            ends[t.name] = e.code()

    threads = [threading.Thread(target=watch, args=(t,), daemon=True) for t in transports]
    for thread in threads:
        thread.start()
    calls = [t.generate(ids(150, 5)) for t in transports]
    heads = [[next(c) for _ in range(3)] for c in calls]
    while not all(watched.values()):
        time.sleep(0.005)
    print("drain", flush=True)
    while not all(len(seen) == 2 for seen in watched.values()):
        time.sleep(0.005)

    refusals = [t.complete.future(ids(1, 5)).exception() for t in transports]

    def check(i, t):
        error = refusals[i]
        expect(error is not None and error.code() == grpc.StatusCode.UNAVAILABLE, f"not refused: {error}")
        expect(details(error)[0] == "DRAINING", str(details(error)))
        expect(len(tokens_of(heads[i] + list(calls[i]))) == 150, "cut short")

    for i, t in enumerate(transports):
        report(t, "drain", lambda: check(i, t))
    for thread in threads:
        thread.join(10)
    for t in transports:
        report(t, "health watch", lambda: expect(
            watched[t.name] == [1, 2] and ends.get(t.name) == grpc.StatusCode.UNAVAILABLE, f"{watched[t.name]} {ends.get(t.name)}"))


def main():
    with open(CERTIFICATE, "rb") as file:
        credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
    transports = [Transport("h2c", grpc.insecure_channel(PLAIN)), Transport("tls", grpc.secure_channel(TLS, credentials))]
    for t in transports:
        for case in CASES:
            report(t, case.__name__.replace("_", " "), lambda: case(t))
    drain(transports)


main()
