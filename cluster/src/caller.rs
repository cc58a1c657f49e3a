//! Who asks, and as part of which trace. Every gateway makes one `Caller` per request and passes it on to what it
//! calls, so that access control and tracing have one place to look.

use std::sync::Arc;

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
        Caller { principal: ANONYMOUS.into(), trace: Trace::default() }
    }

    /// A node that acts by itself, by its name.
    pub fn node(name: &str) -> Caller {
        Caller { principal: format!("node:{name}").into(), trace: Trace::default() }
    }

    /// The same caller, with a request of this trace.
    pub fn traced(&self, trace: Trace) -> Caller {
        Caller { principal: self.principal.clone(), trace }
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
