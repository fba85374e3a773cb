//! A thousand texts that other people might write, so that a reader does what it should not.

/// What acts on a terminal, ends a line or a string, opens a tag or a comment, or is taken for a column's end.
pub(crate) const PIECES: [&str; 24] = [
    "\u{1b}[2J\u{1b}[31m",
    "\u{1b}]0;owned\u{7}",
    "\u{9b}31m",
    "\u{202e}txt.exe",
    "\u{2066}\u{2069}",
    "\u{200b}\u{feff}",
    "\r\n",
    "\n  ok       everything\n",
    "\u{2028}\u{2029}\u{85}",
    "\u{8}\u{7f}",
    "\\\" level=error thread=main",
    "\\n\\u001b[0m",
    "'; DROP TABLE t; --",
    "\"); DELETE FROM t",
    "$$;\\! touch owned",
    "*/ /*",
    "<!--<script",
    "</script><img src=x onerror=document.title='owned'>",
    "=cmd|' /C calc'!A0",
    "a,b;\"c\"\td",
    "{\"a\":1}",
    "%s%n{}{0}",
    "naïve 日本 🚀",
    "",
];

/// Each piece beside each other one, and some more.
pub(crate) fn texts() -> Vec<String> {
    let pairs = PIECES.iter().flat_map(|a| PIECES.iter().map(move |b| format!("x{a}y{b}z")));
    let triples = (0..1000 - PIECES.len() * PIECES.len())
        .map(|n| format!("{}{}{}", PIECES[n % 24], PIECES[n * 7 % 24], PIECES[n * 11 % 23]));
    pairs.chain(triples).collect()
}

/// True of a character that moves a cursor, ends a line, hides, or turns the reading direction.
pub(crate) fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
