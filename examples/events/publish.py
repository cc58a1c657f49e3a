"""Publishes each line of stdin as one event: python publish.py SERVER[,SERVER…] TOPIC [KEY]"""
import itertools, sys, time, uuid
import grpc
from grpc_status import rpc_status
from google.rpc import error_details_pb2
from weft.v1 import errors_pb2, events_pb2, events_pb2_grpc

servers = itertools.cycle(sys.argv[1].split(","))
topic, key = sys.argv[2], (sys.argv[3] if len(sys.argv) > 3 else "").encode()


def retry_of(error):
    """What a node says may be done; where none has answered, nobody knows whether the event is stored."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else []:
        if detail.Unpack(info) and info.domain == "weft":
            return info.metadata["retry"]
    return "IF_IDEMPOTENT"


def publish(stub, event):
    """One try: the receipt, or what may be done and why."""
    request = events_pb2.PublishRequest(topic=topic, events=[event])
    try:
        result = stub.Publish(request, timeout=10).results[0]
    except grpc.RpcError as error:
        return None, retry_of(error), error.details()
    if result.HasField("receipt"):
        return result.receipt, None, None
    return None, errors_pb2.Retry.Name(result.error.retry).removeprefix("RETRY_"), result.error.message


for line in sys.stdin:
    # Sent again after an unknown outcome it may be stored twice: the same id lets consumers know.
    event = events_pb2.Event(key=key, data=line.rstrip("\n").encode(), id=str(uuid.uuid4()), type="line")
    for tries in itertools.count():
        with grpc.insecure_channel(next(servers)) as channel:
            receipt, retry, why = publish(events_pb2_grpc.EventsStub(channel), event)
        if receipt:
            print(f"partition {receipt.partition} offset {receipt.offset}", flush=True)
            break
        if retry == "NEVER" or tries == 20:
            sys.exit(f"not published: {why}")
        time.sleep(min(0.05 * 2**tries, 2))
