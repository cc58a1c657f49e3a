"""An ordinary grpcio client; it knows nothing of Weft.

conform: makes every kind of call and prints one JSON line {"case", "passed", "why"} for each.
load: unary calls for some time, each with an id of its own; prints {"id", "status", "detail", "at_ms", "took_ms"} for each.
"""

import argparse
import json
import os
import queue
import sys
import threading
import time
import traceback

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import schema

BIG = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


class Stub:
    def __init__(self, channel):
        kinds = {
            (False, False): channel.unary_unary,
            (True, False): channel.stream_unary,
            (False, True): channel.unary_stream,
            (True, True): channel.stream_stream,
        }
        for name, kind in schema.METHODS.items():
            method = kinds[kind](
                schema.path(name),
                request_serializer=schema.Call.SerializeToString,
                response_deserializer=schema.Call.FromString,
            )
            setattr(self, name.lower(), method)


def info(error):
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        found = error_details_pb2.ErrorInfo()
        if detail.Unpack(found):
            return found
    return None


def calls_of(directory, request_id, event, patience=3.0):
    """The lines that the servers wrote about a call; waits for the first of them."""
    deadline = time.monotonic() + patience
    while True:
        found = []
        for name in sorted(os.listdir(directory)):
            if name.startswith("calls-"):
                with open(os.path.join(directory, name), encoding="utf-8") as lines:
                    whole = [json.loads(line) for line in lines if line.endswith("\n")]
                found += [line for line in whole if line["id"] == request_id and line["event"] == event]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


class Cases:
    def __init__(self, server, other, directory):
        self.channel = grpc.insecure_channel(server, options=BIG)
        self.other = grpc.insecure_channel(other, options=BIG)
        self.stub, self.directory, self.turn = Stub(self.channel), directory, 0

    def named(self, name):
        return f"{name}-{self.turn}"

    def case_unary(self):
        answer = self.stub.unary(schema.Call(id="unary", data=b"tea"), timeout=10)
        assert (answer.id, answer.data) == ("unary", b"tea"), answer

    def case_empty_message(self):
        assert self.stub.unary(schema.Call(), timeout=10) == schema.Call()

    def case_client_stream(self):
        answer = self.stub.collect((schema.Call(id="collect", data=b"x" * 1000) for _ in range(500)), timeout=10)
        assert (answer.count, answer.data) == (500, b"500000"), answer

    def case_server_stream(self):
        answers = list(self.stub.count(schema.Call(id="count", count=500, data=b"y" * 1000), timeout=10))
        assert [answer.count for answer in answers] == list(range(500))
        assert all(len(answer.data) == 1000 for answer in answers)

    def case_chat_takes_turns(self):
        turns = queue.Queue()
        answers = self.stub.chat(iter(turns.get, None), timeout=10)
        for number in range(50):
            turns.put(schema.Call(id="chat", count=number))
            assert next(answers).count == number + 1
        turns.put(None)
        assert next(answers, None) is None

    def case_half_closed_stream_of_nothing(self):
        assert list(self.stub.chat(iter(()), timeout=10)) == []

    def case_metadata(self):
        sent = [("e2e-a", "1"), ("e2e-a", "2"), ("e2e-raw-bin", bytes(range(256))), ("e2e-empty", "")]
        answer, call = self.stub.unary.with_call(schema.Call(id="metadata"), metadata=sent, timeout=10)
        initial = [(key, value) for key, value in call.initial_metadata() if key.startswith("e2e-")]
        trailing = [(key, value) for key, value in call.trailing_metadata() if key.startswith("trailing-e2e-")]
        assert sorted(initial) == sorted(sent), initial
        assert sorted(trailing) == sorted(("trailing-" + key, value) for key, value in sent), trailing

    def case_deadline_passes(self):
        began = time.monotonic()
        try:
            self.stub.slow(schema.Call(id=self.named("deadline"), sleep_ms=5000), timeout=0.5)
            raise AssertionError("it was answered")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert time.monotonic() - began < 2
        (line,) = calls_of(self.directory, self.named("deadline"), "began")
        # grpcio rounds deadlines up on the wire.
        assert 0 < line["deadline_s"] < 0.6, line
        assert calls_of(self.directory, self.named("deadline"), "cancelled"), "the server was not told"

    def case_cancelled_unary(self):
        call = self.stub.slow.future(schema.Call(id=self.named("cancel-unary"), sleep_ms=10000), timeout=20)
        assert calls_of(self.directory, self.named("cancel-unary"), "began")
        call.cancel()
        assert calls_of(self.directory, self.named("cancel-unary"), "cancelled"), "the server was not told"

    def case_cancelled_stream(self):
        answers = self.stub.count(schema.Call(id=self.named("cancel-stream"), count=100000, sleep_ms=10), timeout=60)
        for _ in range(3):
            next(answers)
        answers.cancel()
        assert calls_of(self.directory, self.named("cancel-stream"), "cancelled"), "the server was not told"

    def case_rich_status(self):
        try:
            self.stub.fail(schema.Call(id="fail"), timeout=10)
            raise AssertionError("it was answered")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            assert error.details() == "no tea – sorry", error.details()
            assert (info(error).reason, info(error).metadata["cup"]) == ("OUT_OF_TEA", "7")

    def case_large_messages(self):
        for size in [4 << 20, 9 << 20]:
            data = os.urandom(size)
            assert self.stub.unary(schema.Call(id=f"large-{size}", data=data), timeout=30).data == data

    def case_large_stream(self):
        data = os.urandom(1 << 20)
        answers = self.stub.chat((schema.Call(id="large-chat", count=n, data=data) for n in range(16)), timeout=30)
        assert [(answer.count, answer.data == data) for answer in answers] == [(n + 1, True) for n in range(16)]

    def case_compression(self):
        data = b"tea " * 100_000
        answer = self.stub.unary(schema.Call(id="gzip", data=data), timeout=10, compression=grpc.Compression.Gzip)
        assert answer.data == data

    def case_slow_reader_is_waited_for(self):
        answers = self.stub.count(schema.Call(id="slow-reader", count=64, data=b"z" * (1 << 20)), timeout=60)
        count = 0
        for answer in answers:
            assert answer.count == count
            count += 1
            if count < 10:
                time.sleep(0.1)
        assert count == 64

    def case_unknown_method(self):
        call = self.channel.unary_unary(schema.path("Nothing"))
        try:
            call(b"", timeout=10)
            raise AssertionError("it was answered")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
            assert info(error) is None, "the instance answers this, not Weft"

    def case_unknown_service(self):
        call = self.channel.unary_unary("/no.Such/Method")
        try:
            call(b"", timeout=10)
            raise AssertionError("it was answered")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
            assert (info(error).domain, info(error).reason) == ("weft", "UNKNOWN_SERVICE"), info(error)

    def case_reflection_through_another_node(self):
        stub = reflection_pb2_grpc.ServerReflectionStub(self.other)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=schema.SERVICE),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="weft.v1.Events"),
        ]
        listed, echo, events = list(stub.ServerReflectionInfo(iter(asked), timeout=10))
        names = {service.name for service in listed.list_services_response.service}
        assert {schema.SERVICE, "weft.v1.Events"} <= names, names
        assert b"e2e/echo.proto" in echo.file_descriptor_response.file_descriptor_proto[0]
        assert events.file_descriptor_response.file_descriptor_proto

    def case_health_through_another_node(self):
        stub = health_pb2_grpc.HealthStub(self.other)
        for service in ["", schema.SERVICE]:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, (service, answer)
        try:
            stub.Check(health_pb2.HealthCheckRequest(service="no.Such"), timeout=10)
            raise AssertionError("it was answered")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error

    def run(self):
        for name in sorted(name for name in dir(self) if name.startswith("case_")):
            # Some cases look at the time, on a machine that may be busy: a second try counts, and is told.
            for self.turn in range(2):
                why = ""
                try:
                    getattr(self, name)()
                    break
                except Exception:  # Every way to fail is a failed case, the others still run.
                    why = traceback.format_exc(limit=3)
                    print(f"case {name[5:]}, try {self.turn + 1}: {why}", file=sys.stderr)
            print(json.dumps({"case": name[5:], "passed": not why, "why": why}), flush=True)


def load(servers, seconds, workers, rate, prefix):
    """With a rate, call number i is due i / rate seconds after the start, whatever the calls before it do.

    With 0 seconds it goes on until stdin is closed.
    """
    target = servers[0] if len(servers) == 1 else "ipv4:" + ",".join(servers)
    # Of a list of addresses grpcio makes an authority that no HTTP/2 server of Rust accepts.
    stub = Stub(grpc.insecure_channel(target, options=[("grpc.default_authority", "weft")]))
    began, lock, closed = time.monotonic(), threading.Lock(), threading.Event()
    if not seconds:
        threading.Thread(target=lambda: (sys.stdin.read(), closed.set()), daemon=True).start()

    def work(worker):
        number = 0
        while True:
            due = began + (number * workers + worker) / rate if rate else time.monotonic()
            if closed.is_set() or (seconds and due - began >= seconds):
                return
            time.sleep(max(0, due - time.monotonic()))
            request_id = f"{prefix}-{worker}-{number}"
            number += 1
            sent = due
            status, detail = "OK", ""
            try:
                call = schema.Call(id=request_id, data=b"d" * 100)
                assert stub.unary(call, timeout=5, metadata=[("load-id", request_id)]).id == request_id
            except grpc.RpcError as error:
                found = info(error)
                status, detail = error.code().name, found.reason if found else error.details()
            ended = time.monotonic()
            line = {"id": request_id, "status": status, "detail": detail}
            line |= {"at_ms": int((ended - began) * 1000), "took_ms": (ended - sent) * 1000}
            with lock:
                print(json.dumps(line), flush=True)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main():
    arguments = argparse.ArgumentParser()
    commands = arguments.add_subparsers(dest="command", required=True)
    conform = commands.add_parser("conform")
    conform.add_argument("--server", required=True)
    conform.add_argument("--other", required=True)
    conform.add_argument("--directory", required=True)
    loading = commands.add_parser("load")
    loading.add_argument("--server", required=True, action="append")
    loading.add_argument("--seconds", type=float, required=True)
    loading.add_argument("--workers", type=int, default=16)
    loading.add_argument("--rate", type=float, default=0)
    loading.add_argument("--prefix", required=True)
    arguments = arguments.parse_args()
    if arguments.command == "conform":
        Cases(arguments.server, arguments.other, arguments.directory).run()
    else:
        load(arguments.server, arguments.seconds, arguments.workers, arguments.rate, arguments.prefix)


main()
