//! A real terminal, played by tmux: what a person sees there of a command, and whether it left the terminal as it was.

use std::process::{Command, Output};

use crate::world::{World, wait_for};

/// What of a terminal's state a program could change, and what it could reach beyond it.
const STATE: &str = "#{pane_title}|#{window_name}|#{session_name}|#{alternate_on}|#{cursor_flag}|#{insert_flag}|#{wrap_flag}|\
                     #{origin_flag}|#{keypad_flag}|#{keypad_cursor_flag}|#{mouse_any_flag}|#{scroll_region_upper}|\
                     #{scroll_region_lower}|#{window_bell_flag}|#{pane_in_mode}";

/// A tmux server of its own, with one window that is wide enough for every line.
struct Tmux<'w> {
    world: &'w World,
    socket: String,
}

impl Tmux<'_> {
    fn run(&self, arguments: &[&str]) -> std::io::Result<Output> {
        self.world
            .command("tmux")
            .args(["-u", "-S", &self.socket, "-f", "/dev/null"])
            .args(arguments)
            .env_remove("TMUX")
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm")
            .env("DATABASE_URL", &self.world.database_url)
            .env("REDIS_URL", &self.world.redis_url)
            .output()
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).expect("tmux runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// All that is on the screen and above it, with the escapes of whatever is not plain.
    fn seen(&self) -> String {
        self.says(&["capture-pane", "-p", "-e", "-t", "test", "-S", "-"])
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        self.run(&["kill-server"]).ok();
    }
}

/// Runs rowmill in a terminal: a person must see these lines and nothing else, and find the terminal as it was.
#[track_caller]
pub(crate) fn check(world: &World, arguments: &[&str], lines: &[String]) {
    let Some(seen) = shown(world, arguments) else { return };
    // What is empty at the end of a line cannot be told from nothing.
    let expected: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    assert_eq!(seen, expected, "{arguments:?}");
}

/// Runs rowmill in a terminal, which must be as it was behind it; the lines that a person saw. `None` where there is no tmux.
#[track_caller]
pub(crate) fn shown(world: &World, arguments: &[&str]) -> Option<Vec<String>> {
    if Command::new("tmux").arg("-V").output().is_err() {
        println!("NOT TESTED in a terminal: there is no tmux; `stack/install --checks` brings it");
        return None;
    }
    let socket = world.path("tmux").display().to_string();
    let tmux = Tmux { world, socket };
    let script = world.file("terminal.sh", "read -r go; \"$@\"; echo the-end; read -r go\n");
    // The history is made with the window, so the option comes before it.
    let mut start = vec![
        "start-server",
        ";",
        "set-option",
        "-g",
        "history-limit",
        "20000",
        ";",
        "set-option",
        "-g",
        "set-clipboard",
        "on",
        ";",
    ];
    start.extend(["new-session", "-d", "-s", "test", "-n", "test", "-x", "2000", "-y", "50"]);
    start.extend(["sh", &script, env!("CARGO_BIN_EXE_rowmill")]);
    start.extend(arguments);
    let output = tmux.run(&start).expect("tmux runs");
    assert!(output.status.success(), "{output:?}");
    let state = || tmux.says(&["display-message", "-p", "-t", "test", STATE]);
    let before = state();
    tmux.run(&["send-keys", "-t", "test", "Enter"]).expect("tmux runs");
    wait_for("the verb to end", 60, || tmux.seen().lines().any(|line| line == "the-end"));
    assert_eq!(state(), before, "{arguments:?} changed the terminal");
    assert_eq!(tmux.says(&["list-buffers"]), "", "{arguments:?} reached the clipboard");
    let seen = tmux.seen();
    // What the first Enter echoed comes before, and what is empty behind.
    Some(seen.lines().skip(1).take_while(|line| *line != "the-end").map(str::to_owned).collect())
}
