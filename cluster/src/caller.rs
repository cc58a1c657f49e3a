//! Who asks, and as part of which trace. Every gateway makes one `Caller` per request and passes it on to what it
//! calls, so that access control and tracing have one place to look. It goes on with the work to other nodes.

use std::fmt;
use std::sync::{Arc, LazyLock};

use weft_proto::internal::v1 as wire;

/// The principal of a caller that nothing is known of.
pub const ANONYMOUS: &str = "anonymous";
/// The longest `tracestate` that is kept. W3C Trace Context §3.3.1.5 asks for at least 512 characters.
pub const TRACESTATE_BYTES_MAX: usize = 1024;

/// Who asks. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name that it has proved; [`ANONYMOUS`] if none.
    pub principal: Arc<str>,
    /// The trace that the request is part of.
    pub trace: Trace,
}

impl Caller {
    /// A caller that has proved nothing.
    pub fn anonymous() -> Caller {
        // Shared: one is made for each batch that comes over a link.
        static PRINCIPAL: LazyLock<Arc<str>> = LazyLock::new(|| ANONYMOUS.into());
        Caller { principal: PRINCIPAL.clone(), trace: Trace::default() }
    }

    /// A node that acts by itself, by its name.
    pub fn node(name: &str) -> Caller {
        Caller { principal: format!("node:{name}").into(), trace: Trace::default() }
    }

    /// The same caller, with a request of this trace.
    pub fn traced(&self, trace: Trace) -> Caller {
        Caller { principal: self.principal.clone(), trace }
    }

    /// What goes to another node with the work; `None` for an anonymous caller without a trace.
    pub fn to_wire(&self) -> Option<wire::Caller> {
        let known = &*self.principal != ANONYMOUS;
        (known || self.trace.0.is_some()).then(|| wire::Caller {
            principal: if known { self.principal.to_string() } else { String::new() },
            traceparent: self.trace.parent().unwrap_or_default().to_owned(),
            tracestate: self.trace.state().to_owned(),
        })
    }

    /// The caller that another node names.
    pub fn from_wire(caller: Option<wire::Caller>) -> Caller {
        let Some(wire::Caller { principal, traceparent, tracestate }) = caller else { return Caller::anonymous() };
        let anonymous = Caller::anonymous();
        let principal = if principal.is_empty() { anonymous.principal } else { principal.into() };
        Caller { principal, trace: Trace::received(&traceparent, &tracestate) }
    }
}

/// For logs: the principal, and the trace's id if there is one.
impl fmt::Display for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.trace.id() {
            Some(id) => write!(out, "{} (trace {id})", self.principal),
            None => out.write_str(&self.principal),
        }
    }
}

/// A W3C trace context as it was received, or none. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace(Option<Arc<Context>>);

#[derive(Debug, PartialEq, Eq)]
struct Context {
    parent: Box<str>,
    state: Box<str>,
}

impl Trace {
    /// The trace of a request's `traceparent` and `tracestate` (empty if there is none).
    ///
    /// A `traceparent` that breaks the format makes no trace, and a `tracestate` that is too long is left out, as the
    /// specification asks. Source: W3C Trace Context §3.2.
    pub fn received(parent: &str, state: &str) -> Trace {
        if !is_traceparent(parent) {
            return Trace::default();
        }
        let state = if state.len() > TRACESTATE_BYTES_MAX { "" } else { state };
        Trace(Some(Arc::new(Context { parent: parent.into(), state: state.into() })))
    }

    /// `traceparent`, as it was received.
    pub fn parent(&self) -> Option<&str> {
        self.0.as_ref().map(|context| &*context.parent)
    }

    /// `tracestate`, as it was received; empty if there was none.
    pub fn state(&self) -> &str {
        self.0.as_ref().map_or("", |context| &context.state)
    }

    /// The trace's id: 32 hex digits.
    pub fn id(&self) -> Option<&str> {
        self.parent().and_then(|parent| parent.get(3..35))
    }
}

/// `version "-" trace-id "-" parent-id "-" flags`, in lower case hex; later versions may add fields at the end.
fn is_traceparent(text: &str) -> bool {
    const DASHES: [usize; 3] = [2, 35, 52];
    const BYTES: usize = 55;
    let bytes = text.as_bytes();
    let Some(head) = bytes.get(..BYTES) else { return false };
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let formed = head.iter().enumerate().all(|(at, byte)| if DASHES.contains(&at) { *byte == b'-' } else { hex(byte) });
    let ends = bytes.len() == BYTES || (&head[..2] != b"00" && bytes[BYTES] == b'-');
    let zeros = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    formed && ends && &head[..2] != b"ff" && !zeros(&head[3..35]) && !zeros(&head[36..52])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_is_kept_as_it_came() {
        let trace = Trace::received(PARENT, "vendor=1");
        assert_eq!((trace.parent(), trace.state()), (Some(PARENT), "vendor=1"));
        assert_eq!(trace.id(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        let caller = Caller::anonymous().traced(trace.clone());
        assert_eq!((&*caller.principal, &caller.trace), (ANONYMOUS, &trace));
        assert_eq!(Trace::received(PARENT, &"x".repeat(TRACESTATE_BYTES_MAX + 1)).state(), "");
        let later = format!("01{}-more", &PARENT[2..]);
        assert_eq!(Trace::received(&later, "").parent(), Some(&*later));
    }

    #[test]
    fn a_caller_goes_to_another_node_as_it_is() {
        let anonymous = Caller::anonymous();
        assert_eq!(anonymous.to_wire(), None, "nothing is sent for the usual caller");
        let traced = anonymous.traced(Trace::received(PARENT, "vendor=1"));
        let node = Caller::node("n1");
        for caller in [anonymous, traced.clone(), node.clone(), node.traced(traced.trace.clone())] {
            assert_eq!(Caller::from_wire(caller.to_wire()), caller);
        }
        let shown = [traced.to_string(), node.to_string()];
        assert_eq!(shown, ["anonymous (trace 4bf92f3577b34da6a3ce929d0e0e4736)", "node:n1"]);
        let broken = wire::Caller { traceparent: "00-zz".into(), ..Default::default() };
        assert_eq!(Caller::from_wire(Some(broken)), Caller::anonymous());
    }

    #[test]
    fn what_breaks_the_format_is_no_trace() {
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let longer = format!("{PARENT}-more");
        let upper = PARENT.to_uppercase();
        let newest = format!("ff{}", &PARENT[2..]);
        for parent in ["", "00", zeros, &longer, &upper, &newest, &PARENT[..54], &"é".repeat(30)] {
            assert_eq!(Trace::received(parent, "a=1"), Trace::default(), "{parent}");
        }
    }
}
