//! Events to publish, read on a thread of their own: stdin cannot be read without blocking.

mod members;
mod quotes;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use weft_sdk::Event;

use self::quotes::Quotes;
use super::encode;
use super::failure::Failure;

/// Rows handed over at a time.
const CHUNK_ROWS: usize = 128;
/// Chunks read ahead.
const CHUNKS_AHEAD: usize = 8;

/// What every event gets unless its row says otherwise.
#[derive(Clone, Default)]
pub(crate) struct Defaults {
    pub(crate) event_type: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
}

/// Where rows come from.
pub(crate) enum Source {
    Csv {
        path: PathBuf,
        key_column: Option<String>,
    },
    JsonLines(PathBuf),
    /// Each line is the data of one event.
    Lines {
        path: PathBuf,
        key: Option<String>,
    },
}

/// An event and its place in the input, from 1: the row after the header, or the line.
pub(crate) struct Row {
    pub(crate) number: u64,
    pub(crate) event: Event,
}

/// Why reading ended early.
#[derive(Debug)]
pub(crate) struct Bad {
    /// The row at fault; `None`: the input as a whole.
    pub(crate) row: Option<u64>,
    pub(crate) failure: Failure,
}

impl From<Failure> for Bad {
    fn from(failure: Failure) -> Bad {
        Bad { row: None, failure }
    }
}

/// Chunks of rows, or why reading ended early.
pub(crate) type Rows = mpsc::Receiver<Result<Vec<Row>, Bad>>;

/// Starts to read, from row `from` on. Dropping the receiver ends the reading.
pub(crate) fn read(source: Source, defaults: Defaults, from: u64) -> Rows {
    let (rows, receiver) = mpsc::channel(CHUNKS_AHEAD);
    std::thread::spawn(move || {
        let mut chunks = Chunks { rows, chunk: Vec::with_capacity(CHUNK_ROWS), from };
        let read = match source {
            Source::Csv { path, key_column } => read_csv(&path, key_column.as_deref(), &defaults, &mut chunks),
            Source::JsonLines(path) => read_lines(&path, &mut chunks, &|line| parse_line(line, &defaults)),
            Source::Lines { path, key } => {
                read_lines(&path, &mut chunks, &|line| Ok(plain_line(line, key.as_deref(), &defaults)))
            }
        };
        let read = read.and_then(|rows| {
            chunks.flush()?;
            // One more than there are is where an input that was published whole goes on.
            if from > rows + 1 {
                Err(whole(Failure::invalid(format!("--from-row {from}: there are only {rows} rows"))))
            } else {
                Ok(())
            }
        });
        if let Err(Some(bad)) = read {
            // What came before it is published first.
            let _ = chunks.flush();
            let _ = chunks.rows.blocking_send(Err(bad));
        }
    });
    receiver
}

/// Why reading stops: a failure, or nobody reads any more.
type Stop = Option<Bad>;

/// A failure of the input as a whole.
fn whole(failure: Failure) -> Stop {
    Some(failure.into())
}

struct Chunks {
    rows: mpsc::Sender<Result<Vec<Row>, Bad>>,
    chunk: Vec<Row>,
    /// Rows before it are passed over.
    from: u64,
}

impl Chunks {
    fn push(&mut self, number: u64, event: Event, live: bool) -> Result<(), Stop> {
        self.chunk.push(Row { number, event });
        if live || self.chunk.len() >= CHUNK_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_ROWS));
        if chunk.is_empty() {
            return Ok(());
        }
        self.rows.blocking_send(Ok(chunk)).map_err(|_| None)
    }
}

/// Opens a file, or stdin for `-`.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).map_err(|error| Failure::from(error).context(&path.display().to_string()))?;
    Ok(Box::new(file))
}

/// The text in a file or stdin: a byte order mark at its beginning is none of it.
fn open_text(path: &Path) -> Result<BufReader<Box<dyn Read>>, Failure> {
    let mut input = BufReader::with_capacity(256 << 10, open(path)?);
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    Ok(input)
}

/// Returns how many rows there are.
fn read_csv(path: &Path, key_column: Option<&str>, defaults: &Defaults, chunks: &mut Chunks) -> Result<u64, Stop> {
    let failure = |error: csv::Error| whole(Failure::invalid(format!("{}: {error}", path.display())));
    let (input, quote) = Quotes::new(open_text(path).map_err(whole)?);
    // A row of another length is told with its number, below.
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let columns = reader.byte_headers().map_err(failure)?.clone();
    let unclosed = |at: &str, row| {
        let message = format!("{}: {at} has a quote that is not closed before the end of the file", path.display());
        Some(Bad { row, failure: Failure::invalid(message) })
    };
    if quote.at_end() {
        return Err(unclosed("the header", None));
    }
    let mut known = BTreeSet::new();
    if let Some(twice) = columns.iter().find(|name| !known.insert(*name)) {
        let message = format!("{} has two columns `{}`", path.display(), String::from_utf8_lossy(twice));
        return Err(whole(Failure::invalid(message + ": each needs a name of its own")));
    }
    let text =
        |place: usize| std::str::from_utf8(&columns[place]).map_err(|_| not_text(path, "the header", place, None));
    let names: Vec<String> =
        (0..columns.len()).map(|place| Ok(Value::from(text(place)?).to_string())).collect::<Result<_, Stop>>()?;
    let key = match key_column {
        None => None,
        Some(wanted) => Some(columns.iter().position(|name| name == wanted.as_bytes()).ok_or_else(|| {
            let known: Vec<String> = columns.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
            let message = format!("{} has no column `{wanted}`; it has {}", path.display(), known.join(", "));
            whole(Failure::invalid(message))
        })?),
    };
    let event_type = defaults.event_type.clone().unwrap_or_else(|| "csv.row".into());
    let mut row = csv::ByteRecord::new();
    let mut number = 0;
    while reader.read_byte_record(&mut row).map_err(failure)? {
        number += 1;
        if quote.at_end() {
            let line = row.position().map_or(0, csv::Position::line);
            return Err(unclosed(&format!("row {number} (line {line})"), Some(number)));
        }
        if number < chunks.from {
            continue;
        }
        if row.len() != columns.len() {
            let line = row.position().map_or(0, csv::Position::line);
            let message = format!(
                "{}: row {number} (line {line}) has {} fields, the header has {}",
                path.display(),
                row.len(),
                columns.len()
            );
            return Err(Some(Bad { row: Some(number), failure: Failure::invalid(message) }));
        }
        let data = row_as_json(&names, &row).map_err(|place| {
            let line = row.position().map_or(0, csv::Position::line);
            not_text(path, &format!("row {number} (line {line})"), place, Some(number))
        })?;
        let key = key.and_then(|place| row.get(place)).unwrap_or_default();
        let event = Event {
            key: Bytes::copy_from_slice(key),
            data: data.into(),
            r#type: event_type.clone(),
            datacontenttype: "application/json".into(),
            headers: defaults.headers.iter().cloned().collect(),
            ..Event::default()
        };
        chunks.push(number, event, false)?;
    }
    Ok(number)
}

/// A field that JSON cannot hold as it is.
fn not_text(path: &Path, at: &str, place: usize, row: Option<u64>) -> Stop {
    let message = format!("{}: {at}, field {} is not UTF-8: convert the file first", path.display(), place + 1);
    Some(Bad { row, failure: Failure::invalid(message) })
}

/// An object of strings, in the order of the columns. `names`: already JSON strings.
///
/// # Errors
/// The place of a field that is not UTF-8.
fn row_as_json(names: &[String], row: &csv::ByteRecord) -> Result<String, usize> {
    let mut text = String::with_capacity(row.as_slice().len() + 16 * row.len());
    text.push('{');
    for (place, (name, field)) in names.iter().zip(row.iter()).enumerate() {
        if place > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push(':');
        text.push_str(&Value::from(std::str::from_utf8(field).map_err(|_| place)?).to_string());
    }
    text.push('}');
    Ok(text)
}

/// Returns how many lines there are.
fn read_lines(path: &Path, chunks: &mut Chunks, parse: &dyn Fn(&str) -> Result<Event, String>) -> Result<u64, Stop> {
    // What is typed or piped in is published line by line, a file in chunks.
    let live = path.as_os_str() == "-";
    let mut lines = open_text(path).map_err(whole)?;
    let mut line = String::new();
    let mut number = 0;
    loop {
        number += 1;
        line.clear();
        let bad = |failure: Failure| {
            Some(Bad { row: Some(number), failure: failure.context(&format!("{}: line {number}", path.display())) })
        };
        if lines.read_line(&mut line).map_err(|error| bad(error.into()))? == 0 {
            return Ok(number - 1);
        }
        if number < chunks.from || line.trim().is_empty() {
            continue;
        }
        let event = parse(&line).map_err(|reason| bad(Failure::invalid(reason)))?;
        chunks.push(number, event, live)?;
    }
}

/// One line of `--lines`, without its end.
fn plain_line(line: &str, key: Option<&str>, defaults: &Defaults) -> Event {
    let data = line.strip_suffix('\n').unwrap_or(line);
    let data = data.strip_suffix('\r').unwrap_or(data);
    Event {
        key: key.unwrap_or_default().to_owned().into(),
        data: data.to_owned().into(),
        r#type: defaults.event_type.clone().unwrap_or_default(),
        headers: defaults.headers.iter().cloned().collect(),
        ..Event::default()
    }
}

/// One line of `--json-lines`. Data that is no string is published as the bytes that stand there.
fn parse_line(line: &str, defaults: &Defaults) -> Result<Event, String> {
    let members = members::of(line)?;
    let mut event = Event {
        r#type: defaults.event_type.clone().unwrap_or_default(),
        headers: defaults.headers.iter().cloned().collect(),
        ..Event::default()
    };
    let (mut has_data, mut json) = (false, false);
    for (name, raw) in members {
        if name == "data" && !raw.starts_with('"') {
            has_data = true;
            event.data = raw.to_owned().into();
            json = true;
            continue;
        }
        let value: Value = serde_json::from_str(raw).map_err(|error| format!("`{name}`: {error}"))?;
        let text = || value.as_str().map(str::to_owned).ok_or_else(|| format!("`{name}` is not a string"));
        match name.as_str() {
            "key" => event.key = text()?.into(),
            "key_base64" => event.key = encode::decode(&text()?)?.into(),
            "data" => {
                has_data = true;
                event.data = text()?.into();
            }
            "data_base64" => {
                has_data = true;
                event.data = encode::decode(&text()?)?.into();
            }
            "id" => event.id = text()?,
            "source" => event.source = text()?,
            "type" => event.r#type = text()?,
            "subject" => event.subject = text()?,
            "datacontenttype" => event.datacontenttype = text()?,
            "time_ms" => event.time_ms = value.as_i64().ok_or("`time_ms` is not a whole number")?,
            "headers" => {
                let headers = value.as_object().ok_or("`headers` is not an object")?;
                for (name, value) in headers {
                    let value = value.as_str().ok_or_else(|| format!("header `{name}` is not a string"))?;
                    event.headers.insert(name.clone(), value.to_owned());
                }
            }
            // What `weft subscribe --json` prints may be published again as it is.
            "partition" | "offset" | "epoch" | "attempt" => {}
            _ => {
                return Err(format!(
                    "`{name}` is unknown: key, data, type, headers, id, source, subject, datacontenttype, time_ms"
                ));
            }
        }
    }
    if json && event.datacontenttype.is_empty() {
        event.datacontenttype = "application/json".into();
    }
    if has_data { Ok(event) } else { Err("`data` is missing".into()) }
}

impl From<csv::Error> for Failure {
    fn from(error: csv::Error) -> Failure {
        Failure::invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_events() {
        let defaults = Defaults { event_type: Some("t".into()), headers: vec![("a".into(), "1".into())] };
        let event = parse_line(r#"{"key":"k","data":{"x":1},"headers":{"b":"2"}}"#, &defaults).unwrap();
        assert_eq!((&event.key[..], &event.data[..], event.r#type.as_str()), (&b"k"[..], &br#"{"x":1}"#[..], "t"));
        assert_eq!(event.headers.len(), 2);
        assert_eq!(event.datacontenttype, "application/json");
        let event = parse_line(r#"{"key_base64":"AP8=","data":"plain","type":"u"}"#, &defaults).unwrap();
        assert_eq!((&event.key[..], &event.data[..], event.r#type.as_str()), (&[0, 255][..], &b"plain"[..], "u"));
        for (line, why) in [
            ("[1]", "not an object"),
            ("{", "not JSON"),
            (r#"{"key":"k"}"#, "`data` is missing"),
            (r#"{"data":"","kye":"k"}"#, "`kye` is unknown"),
            (r#"{"data":"","key":1}"#, "`key` is not a string"),
            (r#"{"data_base64":"*"}"#, "not base64"),
        ] {
            let refusal = parse_line(line, &defaults).unwrap_err();
            assert!(refusal.contains(why), "{line}: {refusal}");
        }
    }

    /// Reads a whole file: the numbers of its rows, and what ended it.
    fn all(text: &str, csv: bool, from: u64) -> (Vec<u64>, Option<Bad>) {
        use std::io::Write;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_owned();
        let source = if csv { Source::Csv { path, key_column: None } } else { Source::JsonLines(path) };
        let mut rows = read(source, Defaults::default(), from);
        let mut numbers = Vec::new();
        while let Some(chunk) = rows.blocking_recv() {
            match chunk {
                Ok(chunk) => numbers.extend(chunk.into_iter().map(|row| row.number)),
                Err(bad) => return (numbers, Some(bad)),
            }
        }
        (numbers, None)
    }

    #[test]
    fn a_bad_row_is_named_after_those_before_it() {
        let csv = "a,b\n1,2\n3,4\n5\n6,7\n";
        let (numbers, bad) = all(csv, true, 1);
        let bad = bad.unwrap();
        assert_eq!((numbers, bad.row), (vec![1, 2], Some(3)));
        assert!(
            bad.failure.message.ends_with("row 3 (line 4) has 1 fields, the header has 2"),
            "{}",
            bad.failure.message
        );
        assert!(matches!(all(csv, true, 4), (numbers, None) if numbers == [4]));

        let lines = "{\"data\":\"a\"}\n\n{\"data\":\n{\"data\":\"b\"}\n";
        let (numbers, bad) = all(lines, false, 1);
        let bad = bad.unwrap();
        assert_eq!((numbers, bad.row), (vec![1], Some(3)));
        assert!(bad.failure.message.contains("line 3: not JSON"), "{}", bad.failure.message);
        assert!(matches!(all(lines, false, 4), (numbers, None) if numbers == [4]));
    }

    #[test]
    fn data_is_published_as_it_stands_there() {
        for data in [r#"{"b":1.10,"a":1e400}"#, "12345678901234567890123", r#"[ 1,  2 ]"#, "null"] {
            let event = parse_line(&format!("{{\"key\":\"k\",\"data\": {data} }}\n"), &Defaults::default()).unwrap();
            assert_eq!((&event.data[..], event.datacontenttype.as_str()), (data.as_bytes(), "application/json"));
        }
        let plain = plain_line("{\"data\": 1} \r\n", Some("k"), &Defaults::default());
        assert_eq!((&plain.key[..], &plain.data[..]), (&b"k"[..], &b"{\"data\": 1} "[..]));
    }

    #[test]
    fn an_open_quote_and_a_byte_order_mark_are_found() {
        let (numbers, bad) = all("a,b\n1,2\n3,\"4\n5,6\n7,8\n", true, 1);
        let bad = bad.expect("the quote of row 2 is open");
        assert_eq!((numbers, bad.row), (vec![1], Some(2)));
        assert!(bad.failure.message.contains("row 2 (line 3) has a quote"), "{}", bad.failure.message);
        assert!(all("\u{feff}\"a\",b\n1,2\n", true, 1).1.is_none());
        assert!(all("\u{feff}{\"data\":1}\n", false, 1).1.is_none());
    }

    #[test]
    fn an_input_that_cannot_be_meant_is_refused() {
        for (text, csv, from, why) in [
            ("a,b\n1,2\n", true, 3, "--from-row 3: there are only 1 rows"),
            ("{\"data\":1}\n", false, 3, "--from-row 3: there are only 1 rows"),
            ("a,b,a\n1,2,3\n", true, 1, "two columns `a`"),
        ] {
            let (numbers, bad) = all(text, csv, from);
            let bad = bad.expect(why);
            assert!(
                numbers.is_empty() && bad.row.is_none() && bad.failure.message.contains(why),
                "{}",
                bad.failure.message
            );
        }
        assert!(matches!(all("a\n1\n", true, 2), (numbers, None) if numbers.is_empty()), "all was published before");
    }

    #[test]
    fn rows_keep_their_columns_in_order() {
        let row = csv::ByteRecord::from(vec!["N1", "a \"b\"\n"]);
        let names = ["\"z\"".into(), "\"a\"".into()];
        assert_eq!(row_as_json(&names, &row).as_deref(), Ok(r#"{"z":"N1","a":"a \"b\"\n"}"#));
        let latin = csv::ByteRecord::from(vec![&b"N1"[..], b"caf\xe9"]);
        assert_eq!(row_as_json(&names, &latin), Err(1), "nothing is changed silently");
    }
}
