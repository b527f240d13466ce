//! Server-sent events: the data of each, one after the other.

use crate::retry::Failure;

/// Where the bytes come from: fills a buffer and says how many there were, 0 at the end.
pub(crate) trait Source {
    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, Failure>;
}

impl Source for crate::server::Answer<'_> {
    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        Self::some(self, buffer)
    }
}

/// Cuts a stream into events, as <https://html.spec.whatwg.org/multipage/server-sent-events.html> says, with lines that end in
/// LF or CR LF. What it holds is bounded by the source, which gives up behind a limit.
pub(crate) struct Events<S> {
    source: S,
    /// Bytes read, of which those before `begin` are done with and those before `searched` hold no end of a line.
    bytes: Vec<u8>,
    begin: usize,
    searched: usize,
    ended: bool,
}

impl<S: Source> Events<S> {
    pub(crate) fn new(source: S) -> Self {
        Self { source, bytes: Vec::new(), begin: 0, searched: 0, ended: false }
    }

    /// The lines of data of the next event, joined by line feeds; none at the end of the stream. Comments and the other fields are
    /// passed over. An event that the end of the stream closes counts.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut data: Option<Vec<u8>> = None;
        loop {
            let Some((from, to)) = self.line()? else { return Ok(data) };
            let line = &self.bytes[from..to];
            if line.is_empty() {
                if data.is_some() {
                    return Ok(data);
                }
                continue;
            }
            let Some(value) = line.strip_prefix(b"data") else { continue };
            let value = match value {
                [b':', b' ', value @ ..] | [b':', value @ ..] => value,
                [] => value,
                // Another field, whose name begins alike.
                _ => continue,
            };
            match &mut data {
                None => data = Some(value.to_vec()),
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            }
        }
    }

    /// Where the next line lies, without its end.
    fn line(&mut self) -> Result<Option<(usize, usize)>, Failure> {
        loop {
            if let Some(at) = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') {
                let (from, to) = (self.begin, self.searched + at);
                (self.begin, self.searched) = (to + 1, to + 1);
                return Ok(Some((from, self.without_cr(from, to))));
            }
            self.searched = self.bytes.len();
            if self.ended {
                let (from, to) = (self.begin, self.bytes.len());
                self.begin = to;
                return Ok((from < to).then(|| (from, self.without_cr(from, to))));
            }
            self.bytes.drain(..self.begin);
            self.searched -= self.begin;
            self.begin = 0;
            let mut buffer = [0; 8 << 10];
            match self.source.some(&mut buffer)? {
                0 => self.ended = true,
                count => self.bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }

    fn without_cr(&self, from: usize, to: usize) -> usize {
        if to > from && self.bytes[to - 1] == b'\r' { to - 1 } else { to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives so many bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl Source for Pieces<'_> {
        fn some(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
            let count = self.1.min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn events(text: &str, at_a_time: usize) -> Vec<String> {
        let mut events = Events::new(Pieces(text.as_bytes(), at_a_time));
        std::iter::from_fn(|| events.next().unwrap()).map(|data| String::from_utf8(data).unwrap()).collect()
    }

    #[test]
    fn events_do_not_depend_on_how_they_arrive() {
        let text = ": hello\n\nevent: x\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\n\n\ndata:b\ndatabase: no\nid: 4\n\ndata\n\ndata:  é\n\n\
                    data: [DONE]";
        for at_a_time in [1, 2, 3, 7, 1000] {
            assert_eq!(events(text, at_a_time), ["{\"a\":\n1}", "b", "", " é", "[DONE]"], "{at_a_time}");
        }
        assert!(events("", 1).is_empty() && events("\n\n: c\n", 1).is_empty());
    }
}
