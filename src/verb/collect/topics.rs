//! What the topics of the routes take: read from the brokers at the start and every minute, since an operator may change it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::base::retry::Episode;
use crate::base::thread::Pulse;
use crate::config;
use crate::kafka::{self, native};
use crate::verb::collect::figures::Figures;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(60);

/// Before the first look has succeeded.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// For one question.
const ASK: Duration = Duration::from_secs(10);

/// What a record has around its value in Kafka's format, and a batch around its records; keys and ids come on top.
const OVERHEAD: usize = 200;

/// By the topic's number.
#[derive(Debug)]
pub struct Topics {
    names: Vec<String>,
    /// 0 while nobody knows.
    record_max: Vec<AtomicUsize>,
    /// Somebody has seen that what is known is not true any more.
    is_stale: AtomicBool,
}

impl Topics {
    pub fn new(names: &[String]) -> Topics {
        Topics {
            names: names.to_vec(),
            record_max: names.iter().map(|_| AtomicUsize::new(0)).collect(),
            is_stale: AtomicBool::new(false),
        }
    }

    /// Bytes of the largest record that the topic takes, where that is known.
    pub fn record_max(&self, topic: usize) -> Option<usize> {
        Some(self.record_max[topic].load(Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// Within a second, and not only when it is time.
    pub fn look_soon(&self) {
        self.is_stale.store(true, Relaxed);
    }

    /// Looks again and again.
    ///
    /// # Errors
    /// Where there is no client to ask with.
    pub fn watch(&self, kafka: &config::Kafka, figures: &Figures, pulse: &Pulse) -> Result<()> {
        let client = kafka::consumer(kafka)?;
        let mut trouble = Episode::default();
        loop {
            let mut all = true;
            let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
            let asked = pulse.during("asking for the topics' configuration", || {
                native::topic_settings(&client, &names, "max.message.bytes", ASK)
            });
            if asked.is_ok() {
                figures.kafka_answers(Instant::now());
            }
            let answers = asked.unwrap_or_else(|error| vec![Err(error)]);
            for (answer, record_max) in answers.into_iter().zip(&self.record_max) {
                match answer.map(|value| value.parse::<usize>()) {
                    Ok(Ok(bytes)) => record_max.store(bytes.saturating_sub(OVERHEAD).max(1), Relaxed),
                    Ok(Err(_)) => {}
                    Err(error) => {
                        all = false;
                        if trouble.begins() {
                            log::warn!(
                                "{error:#}; until it is known, a record may be refused by the brokers only"
                            );
                        }
                    }
                }
            }
            if all {
                trouble = Episode::default();
            }
            let looked = Instant::now();
            loop {
                std::thread::sleep(LOOK_AGAIN);
                if !all
                    || self.is_stale.swap(false, Relaxed)
                    || figures.is_failing()
                    || looked.elapsed() >= LOOK
                {
                    break;
                }
            }
        }
    }
}
