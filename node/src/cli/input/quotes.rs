//! A reader of CSV that knows whether a quote is open where the input ends: a parser takes all that follows an open quote
//! for one field, and says nothing.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    FieldStart,
    Plain,
    Quoted,
    /// Behind a quote in a quoted field: the end of it, or the first half of a quote that is meant.
    Quote,
}

/// Passes bytes on and follows their quotes.
pub(super) struct Quotes<R> {
    inner: R,
    place: Place,
    open: Open,
}

/// Whether the input has ended in a quoted field.
#[derive(Clone, Default)]
pub(super) struct Open(Rc<Cell<bool>>);

impl Open {
    pub(super) fn at_end(&self) -> bool {
        self.0.get()
    }
}

impl<R: Read> Quotes<R> {
    pub(super) fn new(inner: R) -> (Quotes<R>, Open) {
        let open = Open::default();
        (Quotes { inner, place: Place::FieldStart, open: open.clone() }, open)
    }

    fn follow(&mut self, byte: u8) {
        self.place = match (self.place, byte) {
            (Place::Quoted, b'"') => Place::Quote,
            (Place::Quoted, _) | (Place::FieldStart | Place::Quote, b'"') => Place::Quoted,
            (_, b',' | b'\n' | b'\r') => Place::FieldStart,
            _ => Place::Plain,
        };
    }
}

impl<R: Read> Read for Quotes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        for byte in &buffer[..count] {
            self.follow(*byte);
        }
        if count == 0 && !buffer.is_empty() {
            self.open.0.set(self.place == Place::Quoted);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_quote_is_found_at_the_end() {
        for (text, open) in [
            ("a,\"b\nc", true),
            ("a,\"b\"\"", true),
            ("a,\"b\"\n", false),
            ("a,5\" pipe\n", false),
            ("\"a\"\"b\",c", false),
            ("", false),
        ] {
            let (mut quotes, found) = Quotes::new(text.as_bytes());
            io::copy(&mut quotes, &mut io::sink()).expect("it is in memory");
            assert_eq!(found.at_end(), open, "{text:?}");
        }
    }
}
