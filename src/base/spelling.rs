//! "Did you mean": the known name that a wrong one is nearest to.

/// `; did you mean "x"?`, when one of the names is near enough.
pub fn did_you_mean<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> String {
    let nearest = names.map(|name| (distance(wrong, name), name)).min();
    match nearest {
        Some((far, name)) if far <= 1 + wrong.chars().count() / 3 => format!("; did you mean {name:?}?"),
        _ => String::new(),
    }
}

/// Letters to change, add or drop, upper and lower case being the same.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognized_and_anything_else_is_not() {
        #[track_caller]
        fn check(wrong: &str, expected: &str) {
            assert_eq!(did_you_mean(wrong, ["brokers", "group_id"].into_iter()), expected);
        }
        check("broker", "; did you mean \"brokers\"?");
        check("GroupId", "; did you mean \"group_id\"?");
        check("xyzzy", "");
    }
}
