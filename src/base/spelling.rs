//! "Did you mean": the known name that a wrong one is nearest to.

/// `; did you mean "x"?`, when one of the names is near enough.
pub fn did_you_mean<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> String {
    let nearest = names.map(|name| (distance(wrong, name), name)).min();
    match nearest {
        Some((far, name)) if far <= 1 + wrong.chars().count() / 3 => format!("; did you mean {name:?}?"),
        _ => String::new(),
    }
}

/// Letters to change, add, drop or swap with the next, upper and lower case being the same.
fn distance(a: &str, b: &str) -> usize {
    strsim::osa_distance(&a.to_lowercase(), &b.to_lowercase())
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
        check("borkers", "; did you mean \"brokers\"?");
        check("xyzzy", "");
    }
}
