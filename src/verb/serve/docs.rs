//! `/docs`: one page on which a person reads what there is, and tries it. It is made of `/openapi.json` in the browser, loads nothing
//! from elsewhere, and puts text into the page as text only.

use crate::base::printable::markup;

const PAGE: &str = include_str!("docs.html");

/// The page, with this title.
pub fn page(title: &str) -> String {
    PAGE.replace("TITLE", &markup(title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_and_puts_text_as_text() {
        let page = page("a <b> & \"c\"");
        assert!(page.contains("<title>a &lt;b&gt; &amp; &quot;c&quot;</title>"));
        for word in ["http:", "https:", "//cdn", "src=", "innerHTML", "document.write", "eval("] {
            assert!(!page.contains(word), "{word}");
        }
    }
}
