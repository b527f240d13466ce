//! A pickled text, read as data.
//!
//! A pickle is a program for a machine that can import and call anything. Of its operations only those are known here that a lone
//! `str` needs (<https://docs.python.org/3/library/pickletools.html>); every other one is refused by its name.

/// Reads the one text in a pickle.
///
/// # Errors
///
/// What was expected, and what was found.
pub(crate) fn text(pickle: &[u8]) -> Result<String, (String, String)> {
    let mut rest = Rest(pickle);
    let mut text: Option<String> = None;
    loop {
        let opcode = rest.byte()?;
        match opcode {
            // PROTO, with its number.
            0x80 => {
                let version = rest.byte()?;
                if version > 5 {
                    return Err(("protocol 0 to 5".to_owned(), version.to_string()));
                }
            }
            // FRAME, with the length of what follows.
            0x95 => {
                let length = rest.number::<8>()?;
                if length > rest.0.len() as u64 {
                    let found = format!("one of {length} with {} left", rest.0.len());
                    return Err(("a frame within the pickle".to_owned(), found));
                }
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8.
            0x8c | b'X' | 0x8d => {
                let length = match opcode {
                    0x8c => rest.number::<1>()?,
                    b'X' => rest.number::<4>()?,
                    _ => rest.number::<8>()?,
                };
                let bytes = rest.take(usize::try_from(length).unwrap_or(usize::MAX))?;
                let string = String::from_utf8(bytes.to_vec())
                    .map_err(|e| ("a text in UTF-8".to_owned(), e.utf8_error().to_string()))?;
                if text.replace(string).is_some() {
                    return Err(("one text".to_owned(), "two".to_owned()));
                }
            }
            // MEMOIZE, BINPUT, LONG_BINPUT: notes that nothing here looks up.
            0x94 => {}
            b'q' => drop(rest.take(1)?),
            b'r' => drop(rest.take(4)?),
            // STOP.
            b'.' => {
                return match (text, rest.0.len()) {
                    (Some(text), 0) => Ok(text),
                    (None, _) => Err(("a text".to_owned(), "none".to_owned())),
                    (_, more) => Err(("the end of the pickle".to_owned(), format!("{more} bytes more"))),
                };
            }
            other => return Err(("only a text".to_owned(), format!("the operation {}", name(other)))),
        }
    }
}

/// What is left of a pickle.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], (String, String)> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| (format!("{count} bytes more"), format!("{}", self.0.len())))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, (String, String)> {
        Ok(self.take(1)?[0])
    }

    /// A number of `N` bytes, at most eight, the lowest first.
    fn number<const N: usize>(&mut self) -> Result<u64, (String, String)> {
        let bytes = self.take(N)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }
}

/// Name of an operation that is refused.
fn name(opcode: u8) -> String {
    let known = match opcode {
        b'(' => "MARK",
        b')' => "EMPTY_TUPLE",
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'F' => "FLOAT",
        b'G' => "BINFLOAT",
        b'I' => "INT",
        b'J' => "BININT",
        b'K' => "BININT1",
        b'L' => "LONG",
        b'M' => "BININT2",
        b'N' => "NONE",
        b'P' => "PERSID",
        b'Q' => "BINPERSID",
        b'R' => "REDUCE",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b']' => "EMPTY_LIST",
        b'a' => "APPEND",
        b'b' => "BUILD",
        b'c' => "GLOBAL",
        b'd' => "DICT",
        b'e' => "APPENDS",
        b'g' => "GET",
        b'h' => "BINGET",
        b'i' => "INST",
        b'j' => "LONG_BINGET",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        b's' => "SETITEM",
        b't' => "TUPLE",
        b'u' => "SETITEMS",
        b'}' => "EMPTY_DICT",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x85 => "TUPLE1",
        0x86 => "TUPLE2",
        0x87 => "TUPLE3",
        0x88 => "NEWTRUE",
        0x89 => "NEWFALSE",
        0x8a => "LONG1",
        0x8b => "LONG4",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{opcode:#04x}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), string in ".{0,40}") {
            drop(text(&bytes));
            let mut pickle = b"\x80\x04\x8d".to_vec();
            pickle.extend((string.len() as u64).to_le_bytes());
            pickle.extend(string.as_bytes());
            // Cut anywhere, or with more behind its end.
            for cut in 0..pickle.len() {
                prop_assert!(text(&pickle[..cut]).is_err());
            }
            pickle.push(b'.');
            prop_assert_eq!(text(&pickle), Ok(string));
            pickle.extend(&bytes);
            prop_assert_eq!(text(&pickle).is_ok(), bytes.is_empty());
        }
    }

    #[test]
    fn texts_of_all_protocols_with_lengths_are_read() {
        // pickle.dumps("hé", 1), 2, 3, 4, 5 of CPython 3.11.
        for pickle in [
            &b"X\x03\x00\x00\x00h\xc3\xa9q\x00."[..],
            b"\x80\x02X\x03\x00\x00\x00h\xc3\xa9q\x00.",
            b"\x80\x03X\x03\x00\x00\x00h\xc3\xa9q\x00.",
            b"\x80\x04\x95\x07\x00\x00\x00\x00\x00\x00\x00\x8c\x03h\xc3\xa9\x94.",
            b"\x80\x05\x95\x07\x00\x00\x00\x00\x00\x00\x00\x8c\x03h\xc3\xa9\x94.",
            b"\x80\x04\x8d\x03\x00\x00\x00\x00\x00\x00\x00h\xc3\xa9r\x00\x00\x00\x00.",
        ] {
            assert_eq!(text(pickle).unwrap(), "hé");
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (pickle, found) in [
            // os.system("id"), by protocols 0 and 4.
            (&b"cposix\nsystem\n(S'id'\ntR."[..], "the operation GLOBAL"),
            (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.", "two"),
            (b"\x80\x04\x8c\x05posix\x94\x93.", "the operation STACK_GLOBAL"),
            (b"\x80\x04]\x94.", "the operation EMPTY_LIST"),
            (b"\x80\x04N.", "the operation NONE"),
            (b"\xff", "the operation 0xff"),
            (b"\x80\x09.", "9"),
            (b"\x80\x04.", "none"),
            (b"\x8c\x01a..", "1 bytes more"),
            (b"\x8c\x05ab", "2"),
            (b"\x8c\x01a", "0"),
            (b"\x8c\x01\xff.", "invalid utf-8 sequence of 1 bytes from index 0"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "1"),
            (b"\x95\xff\x00\x00\x00\x00\x00\x00\x00.", "one of 255 with 1 left"),
            (b"", "0"),
        ] {
            assert_eq!(text(pickle).unwrap_err().1, found, "{pickle:?}");
        }
    }
}
