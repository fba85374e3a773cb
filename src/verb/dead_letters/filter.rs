//! Which letters are meant, and what is to be done with them.

use anyhow::{Result, bail};
use jiff::Zoned;
use postgres::types::{ToSql, Type};

use crate::verb::moment;

/// Which letters, and whether it is meant.
#[derive(clap::Args)]
pub struct Decision {
    #[command(flatten)]
    pub(super) filter: Filter,
    /// All open letters of the pipeline: what an empty filter would mean has to be said.
    #[arg(long, conflicts_with_all = ["ids", "topic", "table", "reason", "since", "until"])]
    pub(super) every: bool,
    /// Do it all, and roll it back.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// One JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

/// A value with its type, as a statement without a name takes it.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

#[derive(clap::Args, Default)]
pub struct Filter {
    /// Only these letters.
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<i64>,
    /// Only from this topic.
    #[arg(long)]
    pub(super) topic: Option<String>,
    /// Only for this table, as schema.table or without the schema.
    #[arg(long)]
    pub(super) table: Option<String>,
    /// Only for this reason, as `list` shows it.
    #[arg(long)]
    pub(super) reason: Option<String>,
    /// Only those set aside since then: RFC 3339, or how long ago, such as 2h or 3d.
    #[arg(long, value_parser = moment)]
    pub(super) since: Option<String>,
    /// Only those set aside before then.
    #[arg(long, value_parser = moment)]
    pub(super) until: Option<String>,
}

/// A point in time, or a distance back from now, as PostgreSQL reads it.
fn moment(text: &str) -> Result<String, String> {
    moment::past(text, &Zoned::now())
        .map(|at| at.to_string())
        .ok_or_else(|| "expected a time like 2024-05-01T12:00:00Z, or how long ago, like 2h or 3d".to_owned())
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Filter { ids, topic, table, reason, since, until } = self;
        ids.is_empty()
            && topic.is_none()
            && table.is_none()
            && reason.is_none()
            && since.is_none()
            && until.is_none()
    }

    /// A condition on rowmill.dead_letter for [`Filter::parameters`], which are `$1` to `$7`.
    pub(super) const SQL: &str = "pipeline = $1 AND ($2::BIGINT[] = '{}' OR id = ANY ($2)) AND ($3::TEXT IS NULL OR topic = $3)
        AND ($4::TEXT IS NULL OR target = $4 OR split_part(target, '.', 2) = $4) AND ($5::TEXT IS NULL OR reason = $5)
        AND ($6::TEXT IS NULL OR created_at >= $6::TIMESTAMPTZ) AND ($7::TEXT IS NULL OR created_at < $7::TIMESTAMPTZ)";

    /// The parameters of [`Filter::SQL`], and more behind them.
    pub(super) fn parameters<'a>(
        &'a self,
        pipeline: &'a String,
        more: &[Parameter<'a>],
    ) -> Vec<Parameter<'a>> {
        let Filter { ids, topic, table, reason, since, until } = self;
        let mut all: Vec<Parameter<'_>> = vec![(pipeline, Type::TEXT), (ids, Type::INT8_ARRAY)];
        all.extend([topic, table, reason, since, until].map(|text| (text as _, Type::TEXT)));
        all.extend_from_slice(more);
        all
    }
}

impl Decision {
    pub(super) fn check(&self) -> Result<()> {
        if self.filter.is_empty() && !self.every {
            bail!(
                "which letters? Give ids, --topic, --table, --reason, --since or --until, or --every for all of them"
            );
        }
        Ok(())
    }
}

/// "3 letters discarded".
pub(super) fn count(letters: usize, what: &str) -> String {
    format!("{letters} {} {what}", if letters == 1 { "letter" } else { "letters" })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn moments_are_times_or_distances() {
        let second = |text: &str| moment(text).unwrap().parse::<Timestamp>().unwrap().as_second();
        assert_eq!(second("2024-05-01T12:00:00Z"), 1_714_564_800);
        let now = Timestamp::now().as_second();
        for (text, seconds) in [("2h", 7200), ("90m", 5400), ("PT1H", 3600), ("30 s", 30)] {
            let back = now - second(text);
            assert!((seconds..seconds + 5).contains(&back), "{text}: {back}");
        }
        for wrong in ["", "yesterday", "-2h", "12", "2024-05-01"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_decision_about_everything_has_to_be_said() {
        let decision = |filter, every| Decision { filter, every, dry_run: false, json: false };
        assert!(decision(Filter::default(), false).check().is_err());
        assert!(decision(Filter::default(), true).check().is_ok());
        assert!(decision(Filter { ids: vec![1], ..Filter::default() }, false).check().is_ok());
        assert!(
            decision(Filter { reason: Some("too_long".into()), ..Filter::default() }, false).check().is_ok()
        );
    }
}
