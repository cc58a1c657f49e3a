//! A call as its client made it.

use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderMap, Method, Request, Uri};
use tokio::time::Instant;
use weft_cluster::caller::Caller;
use weft_cluster::route;
use weft_proto::v1::ErrorCode;

use super::failure::Failure;
use crate::wire::{hops, timeout};

/// Less than this cannot be said to an instance.
const LEFT_MIN: Duration = Duration::from_micros(1);

/// A call's head: whom it is for, and what goes before the body.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who asks.
    pub caller: Caller,
    /// Where the service is looked up; empty: "default".
    pub namespace: String,
    /// When its client stops waiting.
    pub deadline: Option<Instant>,
    /// Its client says that it may run more than once.
    pub idempotent: bool,
    /// Which service's instances it is for, if not the one that its path names: gRPC's own services (reflection) are
    /// served beside each.
    pub of_service: Option<String>,
    /// How often it has gone through Weft before.
    hops: u32,
    uri: Uri,
    /// Where the service ends in the path.
    slash: usize,
    headers: HeaderMap,
}

impl Call {
    /// A call to the method that the path of `uri` names ("/shop.Cart/Get"); `None` if it names none.
    ///
    /// `headers` reach the instance as they are; `grpc-timeout` is set anew from the deadline.
    pub fn new(uri: Uri, headers: HeaderMap, caller: Caller) -> Option<Call> {
        let (service, _) = route::method_of(uri.path())?;
        let slash = service.len() + 1;
        Some(Call {
            caller,
            namespace: String::new(),
            deadline: None,
            idempotent: false,
            of_service: None,
            hops: 0,
            uri,
            slash,
            headers,
        })
    }

    /// The call of a client that says that it has gone through Weft so often; it goes on with one more.
    pub fn after(mut self, hops: u32) -> Call {
        self.hops = hops;
        self.headers.insert(hops::NAME, hops::write(hops + 1));
        self
    }

    /// How often it has gone through Weft before.
    pub(super) fn hops(&self) -> u32 {
        self.hops
    }

    /// The gRPC service whose instances it is for: "shop.Cart".
    pub fn grpc_service(&self) -> &str {
        self.of_service.as_deref().unwrap_or(&self.uri.path()[1..self.slash])
    }

    /// The method: "Get".
    pub fn method(&self) -> &str {
        &self.uri.path()[self.slash + 1..]
    }

    pub(super) fn path(&self) -> &str {
        self.uri.path_and_query().map_or("", |path| path.as_str())
    }

    /// ":authority"; empty if the client named none.
    pub(super) fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// What is left of the deadline, if there is one; at least a microsecond.
    ///
    /// # Errors
    /// Nothing is left.
    pub(super) fn left(&self, now: Instant) -> Result<Option<Duration>, Failure> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        match left {
            Some(left) if left < LEFT_MIN => Err(Failure::refused(
                ErrorCode::Deadline,
                "the call's deadline passed before it was sent to an instance",
            )),
            left => Ok(left),
        }
    }

    /// The head of the request to an instance, with what is left of the deadline. `address` is the authority of a
    /// client that named none.
    ///
    /// # Errors
    /// Nothing is left of the deadline.
    pub(super) fn request(&self, tls: bool, address: &str, now: Instant) -> Result<Request<()>, Failure> {
        let left = self.left(now)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.headers_mut() = self.headers.clone();
        if let Some(left) = left {
            request.headers_mut().insert(timeout::NAME, timeout::write(left));
        }
        *request.uri_mut() = self.uri_for(tls, address);
        Ok(request)
    }

    /// The client's URI, with the scheme that the instance is really called by.
    fn uri_for(&self, tls: bool, address: &str) -> Uri {
        let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
        if self.uri.scheme() == Some(&scheme) {
            return self.uri.clone();
        }
        let mut parts = self.uri.clone().into_parts();
        parts.scheme = Some(scheme);
        if parts.authority.is_none() {
            parts.authority = address.parse().ok();
        }
        Uri::from_parts(parts).unwrap_or_else(|_| self.uri.clone())
    }
}
