//! Goes the generators' courses again: for whoever must know of every message when it was due and what it said.

use std::sync::Arc;

use crate::base::clock::Clock;
use crate::message::draw::{Draft, Identity, People};
use crate::message::index::Index;
use crate::message::known::identity;
use crate::message::model::{Mix, Model, Recognize};
use crate::message::stream::Stream;
use crate::plan::shape::{Arrivals, Shape};
use crate::send::course::{Arrival, Course};
use crate::send::schedule::Schedule;

/// Everything that decides which messages a run sends.
#[derive(Clone)]
pub struct Score {
    pub run: u32,
    pub seed: u64,
    pub mix: Arc<Mix>,
    pub people: Arc<People>,
    pub shape: Arc<Shape>,
    pub arrivals: Arrivals,
    /// Over all parts of the run.
    pub threads: usize,
    pub clock: Clock,
}

impl Score {
    pub fn course(&self, thread: usize, streams: &[Stream]) -> Course {
        let schedule =
            Schedule::new(self.shape.clone(), self.arrivals, self.seed, thread as u64, self.threads as u64);
        Course::new(schedule, self.mix.clone(), self.seed, thread as u64, streams)
    }
}

/// The courses of some threads, side by side.
pub struct Replay {
    score: Score,
    courses: Vec<(Vec<Stream>, Course, Option<Arrival>)>,
    draft: Draft,
    models: Vec<Arc<Model>>,
    /// By model, the draws of its identity; `None` where rows tell what they are.
    looked_up: Vec<Option<Vec<bool>>>,
}

impl Replay {
    /// `streams` by thread, the first of which has the number `first`.
    pub fn new(score: Score, first: usize, streams: &[Vec<Stream>]) -> Self {
        let models = score.mix.models();
        let course = |(at, streams): (usize, &Vec<Stream>)| {
            let mut course = score.course(first + at, streams);
            let next = course.next();
            (streams.clone(), course, next)
        };
        Self {
            courses: streams.iter().enumerate().map(course).collect(),
            draft: Draft::new(score.seed, score.run, score.people.clone()),
            looked_up: models.iter().map(|model| keys(model)).collect(),
            models,
            score,
        }
    }

    /// Whether anything is to be known that rows do not tell themselves.
    pub fn is_needed(models: &[Arc<Model>]) -> bool {
        let tells = |model: &Arc<Model>| {
            model
                .table
                .as_ref()
                .is_none_or(|table| table.due.is_some() && matches!(table.recognize, Recognize::Reading(_)))
        };
        !models.iter().all(tells)
    }

    /// Calls `on_message` for each message that is due by `until_ns`, thread by thread.
    pub fn each(&mut self, until_ns: i64, mut on_message: impl FnMut(&mut Draft, usize, Identity)) {
        let Self { score, courses, draft, .. } = self;
        for (streams, course, next) in courses {
            while let Some(arrival) = next.filter(|arrival| arrival.due_ns <= until_ns) {
                let due_us = score.clock.wall_us(arrival.due_ns);
                let id = Identity { stream: streams[arrival.stream].id, seq: arrival.seq, due_us };
                on_message(draft, arrival.model, id);
                *next = course.next();
            }
        }
    }

    /// Notes what is due by `until_ns` and not yet in the index.
    pub fn fill(&mut self, index: &mut Index, until_ns: i64) {
        let (models, looked_up) = (self.models.clone(), std::mem::take(&mut self.looked_up));
        self.each(until_ns, |draft, model, id| {
            index.note_due(id.stream, id.seq, id.due_us);
            if let Some(needed) = &looked_up[model] {
                index.note(identity(draft, model, &models[model], needed, id), id.stream, id.seq);
            }
        });
        self.looked_up = looked_up;
    }
}

fn keys(model: &Model) -> Option<Vec<bool>> {
    let table = model.table.as_ref()?;
    matches!(table.recognize, Recognize::Looking)
        .then(|| model.program.needed(table.identity_columns().map(|column| column.slot)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::keys::{KeySpread, Keys};
    use crate::message::model::Scenario;
    use crate::message::stream::streams;

    fn score(arrivals: Arrivals) -> Score {
        let names = Arc::new(vec!["somebody".to_owned()]);
        Score {
            run: 7,
            seed: 3,
            mix: Arc::new(Scenario::collectors().mix(Some(&"metric=2,state=1".parse().unwrap())).unwrap()),
            people: Arc::new(People {
                keys: Keys::new(1, KeySpread::Uniform),
                tokens: names.clone(),
                ids: names,
            }),
            shape: Arc::new(Shape::constant(1000.0, 2.0)),
            arrivals,
            threads: 2,
            clock: Clock::starting_in(Duration::ZERO),
        }
    }

    #[test]
    fn the_same_course_is_gone_again() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson, Arrivals::Burst(10)] {
            let (score, streams) = (score(arrivals), streams(2, &[2, 1]));
            let mut index = Index::default();
            let mut replay = Replay::new(score.clone(), 0, &streams);
            for until_ns in (0..3).map(|second| second * 1_000_000_000) {
                replay.fill(&mut index, until_ns);
            }
            let mut count = 0;
            for (thread, streams) in streams.iter().enumerate() {
                for arrival in score.course(thread, streams) {
                    let id = streams[arrival.stream].id;
                    assert_eq!(index.due_us(id, arrival.seq), Some(score.clock.wall_us(arrival.due_ns)));
                    count += 1;
                }
            }
            assert!((1800..2200).contains(&count), "{count}");
        }
    }
}
