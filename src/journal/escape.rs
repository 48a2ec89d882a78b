//! Text from outside, made safe to print.
//!
//! A client or a program chooses what we log. Unescaped it could forge a record, hide one, or drive the terminal of
//! whoever reads it (CVE-2023-28486 is sudo's). What comes out is UTF-8 without any control or invisible formatting
//! character, and it is unambiguous: a backslash is always doubled, so `\x1b` in the log was the byte 1b.

use super::Buffer;
use std::fmt;
use std::io::Write as _;

/// The longest message; the rest is counted, not kept. journald cuts the lines of a stream at 48 KiB.
pub(crate) const LONGEST: usize = 16 * 1024;

/// Appends to a buffer, escaped and up to [`LONGEST`] bytes.
pub(super) struct Escaper<'a> {
    out: &'a mut Buffer,
    /// What stands for a newline; `None` escapes it like any control character.
    newline: Option<&'a str>,
    room: usize,
    cut: usize,
}

impl<'a> Escaper<'a> {
    pub(super) fn new(out: &'a mut Buffer, newline: Option<&'a str>) -> Self {
        Escaper { out, newline, room: LONGEST, cut: 0 }
    }

    /// Appends bytes that need not be UTF-8.
    pub(super) fn bytes(&mut self, text: &[u8]) {
        for chunk in text.utf8_chunks() {
            self.text(chunk.valid());
            for &byte in chunk.invalid() {
                self.put(1, format_args!("\\x{byte:02x}"));
            }
        }
    }

    /// Says how much was cut, if anything was.
    pub(super) fn finish(self) {
        if self.cut > 0 {
            let _ = write!(self.out, "... [{} bytes more]", self.cut);
        }
    }

    fn text(&mut self, text: &str) {
        let mut clean = 0;
        for (at, character) in text.char_indices() {
            if !is_special(character) {
                continue;
            }
            self.copy(&text[clean..at]);
            self.special(character);
            clean = at + character.len_utf8();
        }
        self.copy(&text[clean..]);
    }

    fn copy(&mut self, text: &str) {
        let mut end = text.len().min(self.room);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.out.extend_from_slice(&text.as_bytes()[..end]);
        if end == text.len() {
            self.room -= end;
        } else {
            self.cut(text.len() - end);
        }
    }

    fn special(&mut self, character: char) {
        let code = u32::from(character);
        match (character, self.newline) {
            ('\\', _) => self.put(1, format_args!("\\\\")),
            ('\n', Some(newline)) => self.put(1, format_args!("{newline}")),
            _ if character.is_ascii() => self.put(1, format_args!("\\x{code:02x}")),
            _ => self.put(character.len_utf8(), format_args!("\\u{{{code:x}}}")),
        }
    }

    /// Appends what replaces `length` bytes, whole or not at all.
    fn put(&mut self, length: usize, replacement: fmt::Arguments<'_>) {
        let before = self.out.len();
        let _ = self.out.write_fmt(replacement);
        let added = self.out.len() - before;
        if added <= self.room {
            self.room -= added;
        } else {
            self.out.truncate(before);
            self.cut(length);
        }
    }

    /// Nothing may follow what was cut, or the text would look whole.
    fn cut(&mut self, length: usize) {
        self.room = 0;
        self.cut += length;
    }
}

impl fmt::Write for Escaper<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text(text);
        Ok(())
    }
}

/// Controls (C0, DEL, C1), line separators, and what is invisible or reorders text (CVE-2021-42574).
pub(crate) fn is_special(character: char) -> bool {
    if character.is_ascii() {
        return character == '\\' || character.is_ascii_control();
    }
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::dontfork::DontForkAlloc;

    fn escaped(text: &[u8]) -> String {
        let mut out = Buffer::new_in(DontForkAlloc::new());
        let mut escaper = Escaper::new(&mut out, None);
        escaper.bytes(text);
        escaper.finish();
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn what_a_terminal_or_a_parser_would_obey_is_escaped() {
        for (text, safe) in [
            ("plain text, even with üñí日本", "plain text, even with üñí日本"),
            ("a\nb\r\tc\0", "a\\x0ab\\x0d\\x09c\\x00"),
            ("\x1b]0;title\x07\x7f", "\\x1b]0;title\\x07\\x7f"),
            ("\u{85}\u{9b}31m", "\\u{85}\\u{9b}31m"),
            ("a\u{2028}b\u{202e}c\u{feff}", "a\\u{2028}b\\u{202e}c\\u{feff}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(escaped(text.as_bytes()), safe);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_show_as_bytes() {
        assert_eq!(escaped(b"a\xffb\xc3"), "a\\xffb\\xc3");
        assert_eq!(escaped(b"\xed\xa0\x80"), "\\xed\\xa0\\x80", "a surrogate");
        assert_eq!(escaped(b"\xc0\xaf"), "\\xc0\\xaf", "an overlong slash");
    }

    #[test]
    fn a_backslash_is_never_taken_for_an_escape() {
        assert_eq!(escaped(b"\\x1b"), "\\\\x1b");
        assert_eq!(escaped(b"\x1b"), "\\x1b");
    }

    #[test]
    fn a_newline_of_our_own_can_be_kept() {
        let mut out = Buffer::new_in(DontForkAlloc::new());
        let mut escaper = Escaper::new(&mut out, Some("\n  "));
        fmt::Write::write_fmt(&mut escaper, format_args!("a\nb{}", "\r")).unwrap();
        escaper.finish();
        assert_eq!(out, b"a\n  b\\x0d");
    }

    #[test]
    fn long_text_is_cut_between_characters_and_says_how_much_is_missing() {
        assert_eq!(escaped(&[b'a'; LONGEST]).len(), LONGEST);
        let cut = escaped(&[b'a'; LONGEST + 7]);
        assert!(cut.ends_with("aaa... [7 bytes more]"), "{}", &cut[LONGEST - 10..]);

        // Nothing is let through behind the cut, and neither an escape nor a character is split.
        for odd in ["\u{1b}", "é", "日", "\u{202e}"] {
            for pad in LONGEST - 10..=LONGEST {
                let text = format!("{}{odd}{odd}{odd}{odd}{odd}{odd}end", "a".repeat(pad));
                let cut = escaped(text.as_bytes());
                let (kept, mark) = cut.split_once("... [").unwrap();
                assert!(kept.len() <= LONGEST && mark.ends_with(" bytes more]"), "{pad} {odd:?}");
                assert!(!kept.contains("end"));
            }
        }
    }
}
