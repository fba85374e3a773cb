//! Rust source as the rules see it: which paths a file names outside of its tests, which words it uses, and its texts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{Item, UseTree};

/// A path that a file names, as written, and the line.
pub(crate) type Named = (Vec<String>, usize);

/// One file, tests left out.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Relative to the repository.
    pub(crate) file: String,
    /// `["write", "hand"]`; the crate's root is empty.
    pub(crate) module: Vec<String>,
    pub(crate) paths: Vec<Named>,
    /// Names that stand alone: keywords, macros, types.
    pub(crate) words: Vec<(String, usize)>,
    /// String literals with their lines; documentation is none.
    pub(crate) texts: Vec<(String, usize)>,
}

impl Source {
    pub(crate) fn parse(file: &str, module: Vec<String>, text: &str) -> Source {
        let mut source = Source { file: file.to_owned(), module, ..Source::default() };
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        source.read(parsed.items);
        source
    }

    fn read(&mut self, items: Vec<Item>) {
        for item in items.into_iter().filter(|item| !is_for_tests(attributes(item))) {
            match item {
                Item::Use(item) => self.read_use(Vec::new(), &item.tree),
                Item::Mod(item) => self.read(item.content.map(|(_, items)| items).unwrap_or_default()),
                item => self.scan(without_docs(item.into_token_stream())),
            }
        }
    }

    fn read_use(&mut self, mut path: Vec<String>, tree: &UseTree) {
        let line = |span: Span| span.start().line;
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.read_use(path, &tree.tree);
            }
            UseTree::Name(tree) if tree.ident == "self" => self.paths.push((path, line(tree.ident.span()))),
            UseTree::Name(tree) => {
                path.push(tree.ident.to_string());
                self.paths.push((path, line(tree.ident.span())));
            }
            UseTree::Rename(tree) => {
                path.push(tree.ident.to_string());
                self.paths.push((path, line(tree.ident.span())));
            }
            UseTree::Glob(tree) => self.paths.push((path, line(tree.star_token.spans[0]))),
            UseTree::Group(tree) => tree.items.iter().for_each(|tree| self.read_use(path.clone(), tree)),
        }
    }

    /// Paths and words in any tokens, those of macros included.
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is_colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.scan(group.stream()),
                TokenTree::Literal(literal) => {
                    let line = literal.span().start().line;
                    if let Ok(text) = syn::parse2::<syn::LitStr>(TokenTree::from(literal.clone()).into()) {
                        self.texts.push((text.value(), line));
                    }
                }
                TokenTree::Ident(ident) => {
                    let mut path = vec![ident.to_string()];
                    while is_colon(at + 1) && is_colon(at + 2) {
                        let Some(TokenTree::Ident(next)) = tokens.get(at + 3) else { break };
                        path.push(next.to_string());
                        at += 3;
                    }
                    let line = ident.span().start().line;
                    match path.len() {
                        1 => self.words.push((path.remove(0), line)),
                        _ => self.paths.push((path, line)),
                    }
                }
                TokenTree::Punct(_) => {}
            }
            at += 1;
        }
    }

    /// The path of `named` from the crate's root, if it leads into the crate. `children` are the modules below this one.
    fn absolute(&self, named: &[String], children: &BTreeSet<String>) -> Option<Vec<String>> {
        let mut path: Vec<String> = self.module.clone();
        let mut rest = named;
        match rest.first()?.as_str() {
            "crate" => (path, rest) = (Vec::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|name| name == "super") {
                    path.pop();
                    rest = &rest[1..];
                }
            }
            child if children.contains(child) => {}
            _ => return None,
        }
        path.extend(rest.iter().cloned());
        Some(path)
    }
}

fn attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.to_token_stream().to_string().contains("test")
    })
}

/// Comments for people are attributes by now; what they name is no use of it.
fn without_docs(tokens: TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is_doc = |at: usize| {
        let group = match (tokens.get(at), tokens.get(at + 1)) {
            (Some(TokenTree::Punct(hash)), Some(TokenTree::Group(group))) if hash.as_char() == '#' => group,
            _ => return false,
        };
        matches!(group.stream().into_iter().next(), Some(TokenTree::Ident(name)) if name == "doc")
    };
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_doc(at) {
            at += 2;
            continue;
        }
        kept.push(match &tokens[at] {
            TokenTree::Group(group) => {
                let mut inner = proc_macro2::Group::new(group.delimiter(), without_docs(group.stream()));
                inner.set_span(group.span());
                inner.into()
            }
            other => other.clone(),
        });
        at += 1;
    }
    kept.into_iter().collect()
}

/// All files of one crate.
pub(crate) struct Tree {
    pub(crate) sources: Vec<Source>,
}

impl Tree {
    /// Every Rust file below a crate's `src`, which is given relative to the repository.
    pub(crate) fn read(root: &str) -> Tree {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        collect(&repository.join(root), &mut files);
        let sources = files.iter().map(|path| {
            let text = std::fs::read_to_string(path).expect("a file that was just listed");
            let file = path.strip_prefix(repository).expect("below the repository").display().to_string();
            let module = module_of(&file[root.len() + 1..]);
            Source::parse(&file, module, &text)
        });
        Tree { sources: sources.collect() }
    }

    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Tree {
        let parse = |(file, text): &(&str, &str)| Source::parse(file, module_of(file), text);
        Tree { sources: files.iter().map(parse).collect() }
    }

    /// Which file names what of which other file: from, to, line. Indexes into the sources.
    pub(crate) fn imports(&self) -> BTreeSet<(usize, usize, usize)> {
        let files: BTreeMap<&[String], usize> =
            self.sources.iter().enumerate().map(|(index, source)| (&source.module[..], index)).collect();
        let mut imports = BTreeSet::new();
        for (from, source) in self.sources.iter().enumerate() {
            let depth = source.module.len();
            let is_child =
                |module: &&[String]| module.len() == depth + 1 && module.starts_with(&source.module);
            let children = files.keys().filter(|m| is_child(m)).map(|m| m[depth].clone()).collect();
            for (named, line) in &source.paths {
                let Some(path) = source.absolute(named, &children) else { continue };
                let target = (0..=path.len()).rev().find_map(|length| files.get(&path[..length]));
                if let Some(to) = target.filter(|to| **to != from) {
                    imports.insert((from, *to, *line));
                }
            }
        }
        imports
    }

    /// Files that import each other in a circle, each circle sorted.
    pub(crate) fn circles(&self) -> Vec<Vec<&str>> {
        let mut edges: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (from, to, _) in self.imports() {
            edges.entry(from).or_default().insert(to);
        }
        let reach = |from: usize| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
            while let Some(at) = open.pop() {
                open.extend(edges.get(&at).into_iter().flatten().filter(|to| seen.insert(**to)));
            }
            seen
        };
        let reached: Vec<BTreeSet<usize>> = (0..self.sources.len()).map(reach).collect();
        let mut circles: BTreeSet<Vec<&str>> = BTreeSet::new();
        for at in (0..self.sources.len()).filter(|at| reached[*at].contains(at)) {
            let circle = reached[at].iter().filter(|to| reached[**to].contains(&at));
            let mut names: Vec<&str> = circle.map(|index| self.sources[*index].file.as_str()).collect();
            names.sort_unstable();
            circles.insert(names);
        }
        circles.into_iter().collect()
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", directory.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

/// `write/mod.rs` is `write`, `write/hand.rs` is `write::hand`.
fn module_of(file: &str) -> Vec<String> {
    let mut module: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|name| matches!(name.as_str(), "mod" | "lib" | "main")) {
        module.pop();
    }
    module
}
