//! The page of `rowmill.toml`(5), made of the example that explains every setting, so that there is one text. Pure.

/// What `models/rowmill.example.toml` explains, in the language of man(7).
pub(super) fn page(example: &str, version: &str) -> String {
    let mut page = format!(
        ".TH rowmill.toml 5 \"\" \"rowmill {version}\" \"File formats\"\n.SH NAME\nrowmill.toml \\- servers, topics and tables of \
         rowmill\n.SH DESCRIPTION\n"
    );
    let mut is_literal = false;
    for line in example.lines() {
        let setting = setting(line);
        if is_literal != setting.is_some() {
            is_literal = setting.is_some();
            page.push_str(if is_literal { ".PP\n.nf\n" } else { ".fi\n" });
        }
        match (setting, line.strip_prefix("# ")) {
            (Some(text), _) => {
                if let Some(name) = section(text) {
                    page.push_str(&format!(".fi\n.SS \"{}\"\n.nf\n", escaped(name).replace('"', "\\(dq")));
                }
                page.push_str(&format!("\\fB{}\\fR\n", escaped(text)));
            }
            // What is set in stays as it is: it is a command, or an example.
            (None, Some(prose)) if prose.starts_with(' ') => {
                page.push_str(&format!(".br\n{}\n", escaped(prose)));
            }
            (None, Some(prose)) => page.push_str(&format!("{}\n", escaped(prose))),
            (None, None) => page.push_str(".PP\n"),
        }
    }
    page + if is_literal { ".fi\n" } else { "" } + ".SH SEE ALSO\n.BR rowmill (1)\n"
}

/// A setting or a section, also one that is commented out because it is the default.
fn setting(line: &str) -> Option<&str> {
    let text = match line.strip_prefix('#') {
        Some(text) if text.starts_with([' ', '#']) || text.is_empty() => return None,
        Some(text) => text,
        None => line,
    };
    Some(text).filter(|text| !text.is_empty())
}

fn section(text: &str) -> Option<&str> {
    text.starts_with('[').then(|| text.trim_end())
}

/// A text that means itself: a backslash is one, a hyphen is no dash, and no line is a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_prose_and_settings_stand_out() {
        let example =
            "# What a\n# pipeline is.\npipeline = \"a-b\"\n\n# .dots\n[kafka]\n#start = \"x\\n\"\n#\n";
        let expected = ".SH DESCRIPTION\nWhat a\npipeline is.\n.PP\n.nf\n\\fBpipeline = \"a\\-b\"\\fR\n.fi\n.PP\n\\&.dots\n.PP\n.nf\n.fi\n\
                        .SS \"[kafka]\"\n.nf\n\\fB[kafka]\\fR\n\\fBstart = \"x\\en\"\\fR\n.fi\n.PP\n.SH SEE ALSO\n.BR rowmill (1)\n";
        let page = page(example, "1.0");
        assert!(page.starts_with(".TH rowmill.toml 5 \"\" \"rowmill 1.0\""), "{page}");
        assert_eq!(
            page.split_once("\n.SH DESC").map(|(_, rest)| format!(".SH DESC{rest}")).as_deref(),
            Some(expected)
        );
    }
}
