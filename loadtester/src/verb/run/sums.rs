//! Aggregates at the end of a run: what they must hold follows from the messages once more, and they are read until they do, or
//! patience ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::base::signals;
use crate::judge::aggregate::{self, OfAggregate, Rows};
use crate::judge::verify::Sent;
use crate::message::account::Outcome;
use crate::message::fold::Truth;
use crate::plan::Plan;
use crate::send::replay::{Replay, Score};
use crate::verb::run::reporter::{GLANCE, Reporter};
use crate::verb::run::start::Cast;

/// Between two readings of tables that are not as they must be.
const AGAIN: Duration = Duration::from_millis(500);

/// What each must hold.
fn truths(plan: &Plan, score: &Score, cast: &Cast, sent: &Sent) -> Result<Vec<Truth>> {
    let models = plan.models();
    let needed: Vec<Vec<bool>> = models
        .iter()
        .map(|model| {
            let slots =
                model.folds.iter().flat_map(|fold| fold.key.iter().chain(fold.values.iter().flatten()));
            model.program.needed(slots.copied())
        })
        .collect();
    let mut truths: Vec<Truth> = plan.aggregates.iter().map(|_| Truth::default()).collect();
    let mut replay = Replay::new(score.clone(), cast.first, cast.own());
    // What is not due yet was not sent, however the run ended.
    replay.each(score.clock.now_ns(), |draft, model, id| {
        let place = usize::from(id.stream - sent.known.first);
        // What was never sent has no outcome.
        if models[model].folds.is_empty() || id.seq >= sent.accounts[place].sent {
            return;
        }
        let outcome = sent.accounts[place].outcome(id.seq);
        if outcome == Outcome::Failed {
            return;
        }
        draft.fill_only(&models[model].program, id, &needed[model]);
        for fold in &models[model].folds {
            let values = &plan.aggregates[fold.aggregate].values;
            truths[fold.aggregate].add(values, fold, draft, id.due_us, outcome);
        }
    });
    for (truth, aggregate) in truths.iter().zip(&plan.aggregates) {
        anyhow::ensure!(
            truth.unfit == 0,
            "the aggregate \"{}\" folds what is no number and no time; sum, min, max and first need one",
            aggregate.name
        );
    }
    Ok(truths)
}

/// Waits until all hold what they must, for as long as the user is patient, and says what they hold then.
pub fn settle(
    plan: &Plan,
    score: &Score,
    cast: &Cast,
    sent: &Sent,
    before: &[Rows],
    reporter: &mut Reporter,
) -> Result<Vec<OfAggregate>> {
    if plan.aggregates.is_empty() {
        return Ok(Vec::new());
    }
    let truths = truths(plan, score, cast, sent)?;
    let mut client = plan.database.connect("aggregates")?;
    let until = Instant::now() + plan.args.drain_timeout;
    loop {
        let found = aggregate::read_all(&mut client, &plan.aggregates).context("judge the aggregates")?;
        let judged: Vec<OfAggregate> = plan
            .aggregates
            .iter()
            .enumerate()
            .map(|(at, aggregate)| aggregate::judge(aggregate, &truths[at], &before[at], &found[at]))
            .collect();
        let right = judged.iter().all(|a| a.missing + a.wrong == 0);
        if right || Instant::now() > until || signals::count() > 1 {
            return Ok(judged);
        }
        let pause = Instant::now() + AGAIN;
        while Instant::now() < pause {
            std::thread::sleep(GLANCE);
            reporter.tick_if_due(Some(crate::measure::phase::Phase::Drain));
        }
    }
}
