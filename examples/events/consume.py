"""Handles the events of a topic as one consumer of a group: python consume.py SERVER[,SERVER…] TOPIC GROUP [COUNT]"""
import itertools, queue, sys, time
import grpc
from weft.v1 import events_pb2, events_pb2_grpc

servers = itertools.cycle(sys.argv[1].split(","))
topic, group, left = sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else None
Request, CREDIT = events_pb2.SubscribeRequest, 64


def handle(event):
    """Your work. It may come twice for one event: let the second time do no harm."""
    print(f"{event.key.decode()}\t{event.data.decode()}", flush=True)


def consume(stub):
    """One stream, from its opening until it breaks or all is handled."""
    global left
    requests = queue.Queue()
    opening = events_pb2.SubscribeOpen(topic=topic, group=group, credit=CREDIT)
    requests.put(Request(open=opening))
    for response in stub.Subscribe(iter(requests.get, None)):
        for delivery in response.deliveries.deliveries if left != 0 else ():
            at = dict(partition=delivery.partition, epoch=delivery.epoch)
            place = [events_pb2.OffsetRange(first=delivery.offset, last=delivery.offset, **at)]
            try:
                handle(events_pb2.Event.FromString(delivery.event))
                requests.put(Request(ack=events_pb2.AckFrame(ranges=place)))
                left = left and left - 1
            except Exception as error:
                print(f"attempt {delivery.attempt}: {error}", file=sys.stderr)
                requests.put(Request(nack=events_pb2.NackFrame(ranges=place)))
            requests.put(Request(credit=1))
            if left == 0:
                requests.put(None)  # Leaves the group; the stream ends when the acks are answered.
                break


for tries in itertools.count():
    try:
        with grpc.insecure_channel(next(servers)) as channel:
            consume(events_pb2_grpc.EventsStub(channel))
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
            sys.exit(f"not consumed: {error.details()}")
        print(f"again: {error.details()}", file=sys.stderr)
    if left == 0:
        break
    time.sleep(min(0.05 * 2 ** min(tries, 6), 2))
