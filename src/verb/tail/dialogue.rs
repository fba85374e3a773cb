//! The dialogue: from a line that a person typed to what is said to it. Pure; it prints nothing and waits for nobody.

use std::collections::BTreeSet;

use super::event::Account;
use crate::config::{AccountType, Words};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    /// What to do.
    Command,
    /// Which accounts.
    Accounts,
}

/// What follows from a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Say this.
    Say(String),
    /// Show events of the accounts that are selected now, from now on.
    Listen,
}

pub struct Dialogue {
    words: Words,
    account_type: AccountType,
    asking: Asking,
    /// Sorted, each once.
    pub selected: BTreeSet<Account>,
}

impl Dialogue {
    pub fn new(words: Words, account_type: AccountType) -> Dialogue {
        Dialogue { words, account_type, asking: Asking::Command, selected: BTreeSet::new() }
    }

    /// What stands before the line that is typed next.
    pub fn prompt(&self) -> String {
        match self.asking {
            Asking::Command => ">".to_owned(),
            Asking::Accounts => format!("{} >", self.words.accounts),
        }
    }

    /// What may be typed.
    pub fn options(&self) -> String {
        format!("options: [{} {}]", self.words.accounts, self.words.events)
    }

    /// What a person may mean who has typed this much.
    pub fn completions(&self, typed: &str) -> Vec<String> {
        match self.asking {
            Asking::Command => {
                let commands = [&self.words.accounts, &self.words.events];
                commands.into_iter().filter(|word| word.starts_with(typed)).cloned().collect()
            }
            Asking::Accounts => Vec::new(),
        }
    }

    /// Takes a line, without its end.
    pub fn line(&mut self, line: &str) -> Vec<Reply> {
        let line = line.trim();
        match self.asking {
            Asking::Command if line == self.words.accounts => {
                self.asking = Asking::Accounts;
                vec![
                    Reply::Say(format!(" already selected {}: {}", self.words.accounts, self.list())),
                    Reply::Say(format!(" input space separated {}", self.words.account_ids)),
                ]
            }
            Asking::Command if line == self.words.events => {
                if self.selected.is_empty() {
                    return vec![
                        Reply::Say(format!(" no {} selected", self.words.account_ids)),
                        Reply::Say(self.options()),
                    ];
                }
                vec![Reply::Say(self.listening()), Reply::Listen]
            }
            Asking::Command => {
                vec![Reply::Say(format!("unrecognized command: {line}")), Reply::Say(self.options())]
            }
            Asking::Accounts => {
                self.asking = Asking::Command;
                let mut replies = self.select(line);
                replies.push(Reply::Say(format!(
                    " current selected {}: {}",
                    self.words.accounts,
                    self.list()
                )));
                replies.push(Reply::Say(self.options()));
                replies
            }
        }
    }

    /// Adds accounts; what is none is said.
    pub fn select(&mut self, line: &str) -> Vec<Reply> {
        let mut replies = Vec::new();
        let mut words: Vec<&str> = line.split([' ', ',', '\t']).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            words.push("");
        }
        for word in words {
            match Account::parse(word, self.account_type) {
                Some(account) => drop(self.selected.insert(account)),
                None if self.account_type == AccountType::Number => {
                    replies.push(Reply::Say(format!(" \"{word}\" should be an (positive) number")));
                }
                None => replies.push(Reply::Say(format!(" \"{word}\" should be a text"))),
            }
        }
        replies
    }

    /// What is said where events begin.
    pub fn listening(&self) -> String {
        format!("listening for {} from: {}", self.words.events, self.list())
    }

    fn list(&self) -> String {
        let list: Vec<String> = self.selected.iter().map(Account::to_string).collect();
        format!("[{}]", list.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a person sees who types these lines.
    fn played(lines: &[&str]) -> String {
        let mut dialogue = Dialogue::new(Words::default(), AccountType::Number);
        let mut seen = format!("{}\n", dialogue.options());
        for line in lines {
            seen += &format!("{}{line}\n", dialogue.prompt());
            for reply in dialogue.line(line) {
                if let Reply::Say(text) = reply {
                    seen += &format!("{text}\n");
                }
            }
        }
        seen
    }

    #[test]
    fn it_goes_as_it_always_did() {
        let expected = "\
options: [accounts events]
>accounts
 already selected accounts: []
 input space separated account IDs
accounts >1 2 3
 current selected accounts: [1 2 3]
options: [accounts events]
>accounts
 already selected accounts: [1 2 3]
 input space separated account IDs
accounts >
 \"\" should be an (positive) number
 current selected accounts: [1 2 3]
options: [accounts events]
>events
listening for events from: [1 2 3]
";
        assert_eq!(played(&["accounts", "1 2 3", "accounts", "", "events"]), expected);
    }

    #[test]
    fn accounts_add_up_sorted_and_once() {
        let seen = played(&["accounts", "10 2  2 9", "accounts", "1 x -3 0 1.5 99999999999999999999"]);
        assert!(seen.contains("accounts: [2 9 10]\n"), "{seen}");
        for wrong in ["x", "-3", "0", "1.5", "99999999999999999999"] {
            assert!(seen.contains(&format!(" \"{wrong}\" should be an (positive) number\n")), "{seen}");
        }
        assert!(seen.contains("current selected accounts: [1 2 9 10]\n"), "{seen}");
    }

    #[test]
    fn what_is_no_command_is_said() {
        assert!(played(&["evnts"]).contains("unrecognized command: evnts\noptions: [accounts events]\n"));
        assert!(played(&["events"]).contains(" no account IDs selected\noptions: "));
        assert!(played(&[" accounts "]).contains(" already selected"));
    }

    #[test]
    fn words_and_ids_are_the_operators() {
        let word = str::to_owned;
        let words = Words { accounts: word("tags"), account_ids: word("tag names"), events: word("samples") };
        let mut dialogue = Dialogue::new(words, AccountType::Text);
        assert_eq!(dialogue.options(), "options: [tags samples]");
        assert_eq!(dialogue.completions("t"), ["tags"]);
        dialogue.line("tags");
        assert_eq!(dialogue.prompt(), "tags >");
        let said = dialogue.line("b a");
        assert_eq!(said[0], Reply::Say(" current selected tags: [a b]".into()));
        assert_eq!(dialogue.line("samples")[0], Reply::Say("listening for samples from: [a b]".into()));
    }
}
