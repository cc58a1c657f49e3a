"""An ordinary grpcio server; it knows nothing of Weft.

Prints its port, then serves until stdin closes. Every call is a line of --calls when its head has come, when it begins, and
when it is cancelled: {"id", "method", "event": "came" | "began" | "cancelled", "deadline_s"}.
"""

import argparse
import json
import sys
import threading
import time
from concurrent import futures

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

import schema


class Arrivals(grpc.ServerInterceptor):
    """Notes a call before it waits for a thread; its id is in the metadata."""

    def __init__(self, echo):
        self.echo = echo

    def intercept_service(self, continuation, details):
        for key, value in details.invocation_metadata:
            if key == "load-id":
                self.echo.note("came", details.method, value, None)
        return continuation(details)


class Echo:
    def __init__(self, calls, name, spoil):
        self.calls, self.name, self.spoil = calls, name, spoil
        self.lock = threading.Lock()

    def note(self, event, method, request_id, context):
        line = {"id": request_id, "method": method, "event": event}
        line["deadline_s"] = context.time_remaining() if context else None
        with self.lock:
            times = 2 if self.spoil == "twice" and event == "began" else 1
            self.calls.write((json.dumps(line) + "\n") * times)
            self.calls.flush()

    def begin(self, method, request_id, context):
        self.note("began", method, request_id, context)
        sent = [(key, value) for key, value in context.invocation_metadata() if key.startswith("e2e-")]
        if self.spoil == "metadata":
            sent = sent[1:]
        context.send_initial_metadata([*sent, ("served-by", self.name)])
        context.set_trailing_metadata([("trailing-" + key, value) for key, value in sent])

    def unary(self, request, context):
        self.begin("Unary", request.id, context)
        data = request.data[1:] if self.spoil == "data" else request.data
        return schema.Call(id=request.id, data=data)

    def collect(self, requests, context):
        request_id, count, size = "", 0, 0
        for request in requests:
            if count == 0:
                request_id = request.id
                self.begin("Collect", request_id, context)
            count, size = count + 1, size + len(request.data)
        return schema.Call(id=request_id, count=count, data=str(size).encode())

    def count(self, request, context):
        done = threading.Event()
        # Nobody resumes the generator of a cancelled call.
        context.add_callback(lambda: done.is_set() or self.note("cancelled", "Count", request.id, context))
        self.begin("Count", request.id, context)
        for number in range(request.count):
            if request.sleep_ms:
                time.sleep(request.sleep_ms / 1000)
            yield schema.Call(id=request.id, count=number, data=request.data)
        done.set()

    def chat(self, requests, context):
        first = True
        for request in requests:
            if first:
                self.begin("Chat", request.id, context)
                first = False
            yield schema.Call(id=request.id, count=request.count + 1, data=request.data)

    def slow(self, request, context):
        ended = threading.Event()
        context.add_callback(ended.set)
        self.begin("Slow", request.id, context)
        if ended.wait(request.sleep_ms / 1000):
            self.note("cancelled", "Slow", request.id, context)
        return schema.Call(id=request.id)

    def fail(self, request, context):
        self.begin("Fail", request.id, context)
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="OUT_OF_TEA", domain="e2e.example", metadata={"cup": "7"}))
        status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="no tea – sorry", details=[detail])
        context.abort_with_status(rpc_status.to_status(status))

    def handlers(self):
        kinds = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        methods = {
            name: kinds[kind](
                getattr(self, name.lower()),
                request_deserializer=schema.Call.FromString,
                response_serializer=schema.Call.SerializeToString,
            )
            for name, kind in schema.METHODS.items()
        }
        return grpc.method_handlers_generic_handler(schema.SERVICE, methods)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--calls", required=True)
    arguments.add_argument("--name", required=True)
    arguments.add_argument("--spoil", default="")
    arguments = arguments.parse_args()
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    with open(arguments.calls, "a", encoding="utf-8") as calls:
        echo = Echo(calls, arguments.name, arguments.spoil)
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), interceptors=[Arrivals(echo)], options=options)
        server.add_generic_rpc_handlers((echo.handlers(),))
        checks = health.HealthServicer()
        checks.set(schema.SERVICE, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        reflection.enable_server_reflection([schema.SERVICE, reflection.SERVICE_NAME], server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(port, flush=True)
        sys.stdin.read()
        server.stop(2).wait()


main()
