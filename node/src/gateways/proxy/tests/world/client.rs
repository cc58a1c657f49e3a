//! A client that knows nothing of Weft.

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};

use super::SERVICE;

/// The head of a call.
pub(in crate::gateways::proxy::tests) fn request(method: &str) -> Request<()> {
    Request::post(format!("http://shop.example/{SERVICE}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("token-bin", "AAEC")
        .body(())
        .expect("a good request")
}

/// An answer as the client sees it.
#[derive(Debug)]
pub(in crate::gateways::proxy::tests) struct Answer {
    pub(in crate::gateways::proxy::tests) http: StatusCode,
    pub(in crate::gateways::proxy::tests) headers: HeaderMap,
    pub(in crate::gateways::proxy::tests) data: Bytes,
    pub(in crate::gateways::proxy::tests) trailers: HeaderMap,
}

impl Answer {
    /// The gRPC status, from headers or trailers.
    pub(in crate::gateways::proxy::tests) fn status(&self) -> tonic::Status {
        let from = |headers: &HeaderMap| tonic::Status::from_header_map(headers);
        from(&self.trailers).or_else(|| from(&self.headers)).expect("an answer has a status")
    }

    /// Weft's own code.
    #[track_caller]
    pub(in crate::gateways::proxy::tests) fn code(&self) -> weft_proto::v1::ErrorCode {
        let status = self.status();
        assert!(tonic_types::StatusExt::get_details_error_info(&status).is_some(), "not Weft's own: {status:?}");
        crate::wire::from_status(&status).code()
    }
}

/// Makes a call with a whole body.
pub(in crate::gateways::proxy::tests) async fn call(
    client: &SendRequest<Bytes>,
    request: Request<()>,
    body: impl Into<Bytes>,
) -> Result<Answer, h2::Error> {
    let mut client = client.clone().ready().await?;
    let (response, mut send) = client.send_request(request, false)?;
    let body = body.into();
    if body.len() < 1_000 {
        send.send_data(body, true)?;
    } else {
        let _ = put(&mut send, body).await;
        let _ = send.send_data(Bytes::new(), true);
    }
    receive(response).await
}

/// Waits for the whole answer.
pub(in crate::gateways::proxy::tests) async fn receive(
    response: h2::client::ResponseFuture,
) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let mut data = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        data.extend_from_slice(&part);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(Answer { http: head.status, headers: head.headers, data: data.freeze(), trailers })
}

/// Sends with flow control; `None`: the other end is gone.
pub(in crate::gateways::proxy::tests) async fn put(send: &mut h2::SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = match send.capacity() {
            0 => std::future::poll_fn(|context| send.poll_capacity(context)).await?.ok()?,
            room => room,
        };
        let part = data.split_to(room.min(data.len()));
        send.send_data(part, false).ok()?;
    }
    Some(())
}
