//! The course of one thread's messages: which model, which stream, which number, and when each is due. A pure function of the
//! seed, so that whoever wants to know afterwards, or beside the run, goes the same course again.

use std::sync::Arc;

use crate::base::clock::SECOND_NS;
use crate::base::hash::{mix, unit};
use crate::message::model::Mix;
use crate::message::stream::Stream;
use crate::send::schedule::Schedule;

pub struct Course {
    schedule: Schedule,
    mix: Arc<Mix>,
    seed: u64,
    thread: u64,
    /// For each model of the mix, the places of its streams.
    by_model: Vec<Vec<usize>>,
    models: Vec<usize>,
    sent: Vec<u64>,
    arrival: u64,
}

/// One message that is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// The place of its stream among the thread's.
    pub stream: usize,
    pub model: usize,
    pub seq: u64,
    pub due_ns: i64,
}

impl Course {
    pub fn new(schedule: Schedule, mix: Arc<Mix>, seed: u64, thread: u64, streams: &[Stream]) -> Self {
        let of_model = |model| (0..streams.len()).filter(|s| streams[*s].model == model).collect();
        Self {
            by_model: (0..mix.0.len()).map(of_model).collect(),
            models: streams.iter().map(|stream| stream.model).collect(),
            sent: vec![0; streams.len()],
            schedule,
            mix,
            seed,
            thread,
            arrival: 0,
        }
    }

    /// Messages so far.
    pub fn arrivals(&self) -> u64 {
        self.arrival
    }

    /// The model is drawn; the streams of a model take turns.
    fn pick_stream(&mut self) -> usize {
        let drawn = unit(mix(self.seed ^ mix(self.thread << 48 | self.arrival)));
        self.arrival += 1;
        let streams = &self.by_model[self.mix.pick(drawn)];
        streams[self.arrival as usize % streams.len()]
    }
}

impl Iterator for Course {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let due = self.schedule.next()?;
        let stream = self.pick_stream();
        let seq = self.sent[stream];
        self.sent[stream] += 1;
        Some(Arrival { stream, model: self.models[stream], seq, due_ns: (due * SECOND_NS as f64) as i64 })
    }
}
