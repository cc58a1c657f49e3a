"""The service that the check calls, built here so that no protoc is needed."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "e2e.Echo"

_file = descriptor_pb2.FileDescriptorProto(name="e2e/echo.proto", package="e2e", syntax="proto3")
_call = _file.message_type.add(name="Call")
_call.field.add(name="id", number=1, type=9, label=1)
_call.field.add(name="data", number=2, type=12, label=1)
_call.field.add(name="count", number=3, type=13, label=1)
_call.field.add(name="sleep_ms", number=4, type=13, label=1)
_service = _file.service.add(name="Echo")
METHODS = {
    "Unary": (False, False),
    "Collect": (True, False),
    "Count": (False, True),
    "Chat": (True, True),
    "Slow": (False, False),
    "Fail": (False, False),
}
for _name, (_client, _server) in METHODS.items():
    _service.method.add(
        name=_name, input_type=".e2e.Call", output_type=".e2e.Call", client_streaming=_client, server_streaming=_server
    )
descriptor_pool.Default().Add(_file)
Call = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName("e2e.Call"))


def path(method):
    return f"/{SERVICE}/{method}"
