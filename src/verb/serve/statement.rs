//! A statement with names to one with numbers: `:tag` becomes `$1`. A name is one outside of quotes, comments and casts. No value
//! ever becomes a part of the text.

use anyhow::{Result, bail};

/// One statement, its names taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// With `$1`, `$2`, ..; without the semicolon at its end.
    pub text: String,
    /// What the numbers stand for, from 1 on.
    pub names: Vec<String>,
    /// Words outside of quotes and comments, in lower case: names of functions among them.
    pub words: Vec<String>,
}

impl Statement {
    /// # Errors
    /// With line and column: quotes and comments that do not end, a `$1`, or a second statement.
    pub fn parse(sql: &str) -> Result<Statement> {
        let mut scan = Scan { sql, at: 0 };
        let mut found = Statement { text: String::new(), names: Vec::new(), words: Vec::new() };
        let mut ended_at = None;
        while scan.at < sql.len() {
            let start = scan.at;
            let token = scan.token()?;
            let text = &sql[start..scan.at];
            if let (Some(_), Token::Word | Token::Quoted | Token::Name | Token::Other) = (ended_at, token)
                && !text.trim().is_empty()
            {
                bail!("{}: a second statement begins; an endpoint has one", scan.place(start));
            }
            match token {
                Token::Name => {
                    let name = &text[1..];
                    let number = found.names.iter().position(|other| other == name).unwrap_or_else(|| {
                        found.names.push(name.to_owned());
                        found.names.len() - 1
                    });
                    found.text.push_str(&format!("${}", number + 1));
                }
                Token::Dollar => bail!(
                    "{}: {text} is a value without a name; write :NAME and declare it under params",
                    scan.place(start)
                ),
                Token::End => ended_at = Some(start),
                Token::Word => {
                    found.words.push(text.to_ascii_lowercase());
                    found.text.push_str(text);
                }
                Token::Quoted | Token::Comment | Token::Other => found.text.push_str(text),
            }
        }
        found.text = found.text.trim().to_owned();
        if found.words.is_empty() {
            bail!("sql is empty");
        }
        Ok(found)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// `:name`
    Name,
    Word,
    /// Text, an identifier in quotes, or a dollar-quoted text.
    Quoted,
    Comment,
    /// `$1`
    Dollar,
    /// `;`
    End,
    Other,
}

struct Scan<'a> {
    sql: &'a str,
    at: usize,
}

impl Scan<'_> {
    fn rest(&self) -> &str {
        &self.sql[self.at..]
    }

    fn token(&mut self) -> Result<Token> {
        let start = self.at;
        let rest = self.rest();
        let first = rest.chars().next().unwrap_or(' ');
        let second = rest[first.len_utf8()..].chars().next();
        match (first, second) {
            ('-', Some('-')) => {
                self.at += rest.find('\n').unwrap_or(rest.len());
                Ok(Token::Comment)
            }
            ('/', Some('*')) => self.comment(start),
            ('e' | 'E', Some('\'')) => {
                self.at += 1;
                self.quoted(start, '\'', true)
            }
            ('\'' | '"', _) => self.quoted(start, first, false),
            ('$', Some(digit)) if digit.is_ascii_digit() => {
                self.at += 1;
                self.take_while(|c| c.is_ascii_digit());
                Ok(Token::Dollar)
            }
            ('$', _) => self.dollar(start),
            (':', Some(':' | '=')) => {
                self.at += 2;
                Ok(Token::Other)
            }
            (':', Some(c)) if begins_word(c) => {
                self.at += 1;
                self.take_while(continues_word);
                Ok(Token::Name)
            }
            (';', _) => {
                self.at += 1;
                Ok(Token::End)
            }
            (c, _) if begins_word(c) => {
                self.take_while(|c| continues_word(c) || c == '$');
                Ok(Token::Word)
            }
            (c, _) if c.is_ascii_digit() => {
                self.take_while(|c| continues_word(c) || c == '.');
                Ok(Token::Other)
            }
            (c, _) => {
                self.at += c.len_utf8();
                Ok(Token::Other)
            }
        }
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|c| !wanted(c)).unwrap_or(rest.len());
    }

    /// Comments may hold comments.
    fn comment(&mut self, start: usize) -> Result<Token> {
        let mut depth = 0;
        while self.at < self.sql.len() {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(Token::Comment);
                }
            } else {
                self.at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        bail!("{}: this comment does not end", self.place(start))
    }

    /// A quote within is written twice; after E' a backslash takes the next character along.
    fn quoted(&mut self, start: usize, quote: char, escapes: bool) -> Result<Token> {
        self.at += 1;
        while let Some(c) = self.rest().chars().next() {
            self.at += c.len_utf8();
            if escapes && c == '\\' {
                self.at += self.rest().chars().next().map_or(0, char::len_utf8);
            } else if c == quote {
                if self.rest().starts_with(quote) {
                    self.at += 1;
                } else {
                    return Ok(Token::Quoted);
                }
            }
        }
        bail!("{}: this quote does not end", self.place(start))
    }

    /// `$$text$$` or `$word$text$word$`; a dollar alone is an operator.
    fn dollar(&mut self, start: usize) -> Result<Token> {
        let rest = self.rest();
        let tag = rest[1..].find(|c| !continues_word(c)).map(|end| &rest[..end + 1]);
        let Some(tag) = tag.filter(|tag| rest[tag.len()..].starts_with('$')).map(|tag| format!("{tag}$"))
        else {
            self.at += 1;
            return Ok(Token::Other);
        };
        match rest[tag.len()..].find(&tag) {
            Some(end) => {
                self.at += 2 * tag.len() + end;
                Ok(Token::Quoted)
            }
            None => bail!("{}: this quote does not end", self.place(start)),
        }
    }

    fn place(&self, at: usize) -> String {
        let before = &self.sql[..at];
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
        format!("sql, line {line}, column {column}")
    }
}

fn begins_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn continues_word(c: char) -> bool {
    begins_word(c) || c.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_numbers() {
        #[track_caller]
        fn check(sql: &str, text: &str, names: &[&str]) {
            let found = Statement::parse(sql).unwrap();
            assert_eq!(
                (found.text.as_str(), found.names.iter().map(String::as_str).collect()),
                (text, names.to_vec())
            );
        }
        check("SELECT :a", "SELECT $1", &["a"]);
        check("SELECT :a + :b - :a;", "SELECT $1 + $2 - $1", &["a", "b"]);
        check("SELECT :a::int, x::text", "SELECT $1::int, x::text", &["a"]);
        check("SELECT ':a', \":a\", 'it''s :a'", "SELECT ':a', \":a\", 'it''s :a'", &[]);
        check("SELECT E'\\':a', :b", "SELECT E'\\':a', $1", &["b"]);
        check("SELECT '\\', :b", "SELECT '\\', $1", &["b"]);
        check("SELECT $$:a$$, $x$ :a $$ $x$, :b", "SELECT $$:a$$, $x$ :a $$ $x$, $1", &["b"]);
        check("SELECT 1 -- :a\n, :b", "SELECT 1 -- :a\n, $1", &["b"]);
        check("SELECT /* :a /* :c */ :d */ :b", "SELECT /* :a /* :c */ :d */ $1", &["b"]);
        check("SELECT f(x := :b), a[1:2]", "SELECT f(x := $1), a[1:2]", &["b"]);
        check("SELECT ':ä' || :ä", "SELECT ':ä' || $1", &["ä"]);
        check("SELECT fee'x' , :b", "SELECT fee'x' , $1", &["b"]);
        check("SELECT :a ; -- that is all", "SELECT $1  -- that is all", &["a"]);
        check("SELECT a$b, :c", "SELECT a$b, $1", &["c"]);
        check("SELECT 1e5, 0x1f, :c", "SELECT 1e5, 0x1f, $1", &["c"]);
    }

    #[test]
    fn what_is_no_single_statement_is_said_with_its_place() {
        #[track_caller]
        fn check(sql: &str, words: &str) {
            let error = Statement::parse(sql).unwrap_err().to_string();
            assert!(error.contains(words), "{sql}: {error}");
        }
        check("SELECT 'a", "line 1, column 8: this quote does not end");
        check("SELECT\n  \"a", "line 2, column 3: this quote does not end");
        check("SELECT $x$ a $y$", "this quote does not end");
        check("SELECT /* a /* b */", "this comment does not end");
        check("SELECT $1", "column 8: $1 is a value without a name");
        check("SELECT 1; DROP TABLE a", "column 11: a second statement begins");
        check("SELECT 1; :a", "a second statement");
        check(" -- nothing", "sql is empty");
    }

    #[test]
    fn words_are_known_for_what_they_call() {
        let found =
            Statement::parse("SELECT Now(), \"now\", 'random()' FROM t -- clock_timestamp()").unwrap();
        assert_eq!(found.words, ["select", "now", "from", "t"]);
    }
}
